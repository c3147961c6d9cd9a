"""The peer of the client bench: the job a user would write with torch and paho-mqtt.

It waits for weights on one topic, trains an epoch on its own data, sends the new weights back whole, and says at the
end what it cost. No chunks, no resume, no journal: nothing that would make it heavier than it has to be.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import paho.mqtt.client as mqtt
import torch

from support.process import peak_rss_kb
from support.torch_twin import TorchTwin, sgd_epochs

IMPORT_S = time.process_time()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with np.load(options.data) as arrays:
        x, y = arrays["x"], arrays["y"].astype(np.int32)
    twin = TorchTwin(options.model.read_bytes())
    rounds: list[float] = []

    def train(client: mqtt.Client, _: object, message: mqtt.MQTTMessage) -> None:
        started_s = time.monotonic()
        _load(twin, message.payload)
        order = torch.randperm(len(x)).numpy()
        batches = (order[i : i + options.batch] for i in range(0, len(x), options.batch))
        sgd_epochs(twin, ((_scaled(x[b]), y[b]) for b in batches), lr=0.05, momentum=0.9, weight_decay=0.0)
        client.publish("bench/update", b"".join(w.tobytes() for w in twin.arrays().values()), qos=1)
        rounds.append(time.monotonic() - started_s)
        if len(rounds) == options.rounds:
            client.disconnect()

    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.on_connect = lambda c, *_: c.subscribe("bench/weights", qos=1)
    client.on_subscribe = lambda *_: print("ready", flush=True)
    client.on_message = train
    client.connect("127.0.0.1", options.port)
    client.loop_forever()
    print(json.dumps({"rss_peak_kb": peak_rss_kb(), "import_s": IMPORT_S, "cpu_s": time.process_time()}), flush=True)
    return 0


def _scaled(x: np.ndarray) -> np.ndarray:
    rows = x.astype(np.float32) / 255 if x.dtype == np.uint8 else x
    return rows.reshape(len(rows), 1, *rows.shape[-2:])


def _load(twin: TorchTwin, payload: bytes) -> None:
    flat = torch.from_numpy(np.frombuffer(payload, np.float32).copy())
    torch.nn.utils.vector_to_parameters(flat, twin.parameters())


if __name__ == "__main__":
    sys.exit(main())
