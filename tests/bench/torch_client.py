"""The peer of the client bench: the job a user would write with torch and paho-mqtt.

It waits for weights on one topic, trains an epoch on its own data, sends the new weights back, and says at the end what
it cost. Weights travel in pieces that a broker takes; no resume, no journal: nothing that would make it heavier than it
has to be.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import paho.mqtt.client as mqtt
import torch
from torch.nn import functional

from support.networks import NETWORKS
from support.process import peak_rss_kb

if TYPE_CHECKING:
    from collections.abc import Callable

IMPORT_S = time.process_time()
PIECE_BYTES = 128 * 1024


def pieces(data: bytes) -> list[bytes]:
    """The same bytes in order, no more than `PIECE_BYTES` at a time."""
    return [data[begin : begin + PIECE_BYTES] for begin in range(0, len(data), PIECE_BYTES)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--network", choices=list(NETWORKS), required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with np.load(options.data) as arrays:
        x, y = arrays["x"], arrays["y"].astype(np.int32)
    network = NETWORKS[options.network]
    model = network.build().train()
    rounds: list[float] = []
    unacknowledged: set[int] = set()
    received, wanted = bytearray(), 4 * sum(p.numel() for p in model.parameters())

    def train(client: mqtt.Client, _: object, message: mqtt.MQTTMessage) -> None:
        received.extend(message.payload)
        if len(received) < wanted:
            return
        started_s = time.monotonic()
        flat = torch.from_numpy(np.frombuffer(bytes(received), np.float32).copy())
        received.clear()
        torch.nn.utils.vector_to_parameters(flat, model.parameters())
        _epoch(model, _scaled(x, network.shape), y, options.batch)
        weights = torch.nn.utils.parameters_to_vector(model.parameters())
        for piece in pieces(weights.detach().numpy().tobytes()):
            unacknowledged.add(client.publish("bench/update", piece, qos=1).mid)
        rounds.append(time.monotonic() - started_s)

    def acknowledge(client: mqtt.Client, _: object, mid: int, *_details: object) -> None:
        unacknowledged.discard(mid)
        if len(rounds) == options.rounds and not unacknowledged:
            client.disconnect()

    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.on_connect = lambda c, *_: c.subscribe("bench/weights", qos=1)
    client.on_subscribe = lambda *_: print("ready", flush=True)
    client.on_message = train
    client.on_publish = acknowledge
    client.connect("127.0.0.1", options.port)
    client.loop_forever()
    print(json.dumps({"rss_peak_kb": peak_rss_kb(), "import_s": IMPORT_S, "cpu_s": time.process_time()}), flush=True)
    return 0


def _scaled(x: np.ndarray, shape: tuple[int, ...]) -> Callable[[np.ndarray], torch.Tensor]:
    """Rows by their numbers, scaled as they are read."""

    def rows(numbers: np.ndarray) -> torch.Tensor:
        chosen = x[numbers]
        scaled = chosen.astype(np.float32) / 255 if x.dtype == np.uint8 else chosen
        return torch.from_numpy(scaled.reshape(-1, *shape))

    return rows


def _epoch(model: torch.nn.Module, rows: Callable[[np.ndarray], torch.Tensor], y: np.ndarray, batch: int) -> None:
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    order = torch.randperm(len(y)).numpy()
    for begin in range(0, len(y), batch):
        chosen = order[begin : begin + batch]
        optimiser.zero_grad()
        functional.cross_entropy(model(rows(chosen)), torch.from_numpy(y[chosen].astype(np.int64))).backward()
        optimiser.step()


if __name__ == "__main__":
    sys.exit(main())
