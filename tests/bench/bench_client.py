"""`edge-runtime bench client`: what a board client weighs, beside a torch client with the same job in the same run.

T26  peak resident set of a whole client process that does a LeNet-5 job at batch 32 over MQTT
T27  the same for ResNet-8 at batch 32 and MobileNetV2-0.35 at batch 16
T28  the same process connected and idle: resident set, processor share, bytes a minute
T34  the wheel, and an installed client with its dependencies

Ours runs from a fresh environment with the built wheel and the base dependencies only. Jobs alternate, ours then
theirs; a row's ratio is the median of the pairs. The bound of T26 to T28 is a bare process that has imported numpy and
paho-mqtt, measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import paho.mqtt.client as mqtt
import torch

from bench.recording import machine, save
from bench.torch_client import pieces
from coordinator.broker import start_broker
from coordinator.demo import fleet
from coordinator.demo.datasets import Split, load_split
from support import clean_environment
from support.data import REPOSITORY, data_dir
from support.fleet import Federation, write_job
from support.networks import NETWORKS, export
from support.process import cpu_s, rss_kb
from support.real_training import read_cifar10

if TYPE_CHECKING:
    from collections.abc import Callable

    from coordinator.broker import RunningBroker
    from support.clean_environment import CleanEnvironment

ROUNDS = 3
PAIRS = 3
IDLE_S = 30.0
MINUTE_S = 60.0
BARE = """\
import numpy, paho.mqtt.client
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


def main(argv: list[str] | None = None) -> int:
    """Run the bench, print a table or one JSON object; a whole run is kept in tests/bench/results/."""
    parser = argparse.ArgumentParser(prog="edge-runtime bench client", description=__doc__)
    parser.add_argument("--only", metavar="ID", choices=["T26", "T27", "T28", "T34"])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    environment = clean_environment.make(REPOSITORY / "build" / "bench")
    bare_mb = int(subprocess.check_output([environment.python, "-c", BARE])) / 1024
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="edge-bench-") as folder:
        wanted = [work for work in WORKS if options.only in (None, work.row)]
        rows += [_jobs(environment, work, Path(folder) / work.network, bare_mb) for work in wanted]
        if options.only in (None, "T28"):
            rows += _idle(environment, WORKS[0], Path(folder) / "idle", bare_mb)
    if options.only in (None, "T34"):
        rows += _sizes(environment)
    result = {"bench": "client", "machine": machine(), "rows": rows}
    if options.only is None:
        save(result)
    print(json.dumps(result) if options.json else _table(rows))
    return 0


@dataclass(frozen=True)
class Work:
    """A job: its network, the real pictures that a board trains on, and the most its client may take."""

    row: str
    network: str
    data: str
    examples: int
    target_mb: float

    def split(self) -> Split:
        """The first pictures of the set."""
        root = data_dir()
        if root is None or not (root / self.data).is_dir():
            raise FileNotFoundError(f"{self.row} trains on {self.data}: set EDGE_DATA_DIR to a folder that holds it")
        read = read_cifar10(root / self.data) if self.data == "cifar10" else load_split(self.data, root, seed=1)
        few = slice(self.examples)
        return Split(read.name, read.x_train[few], read.y_train[few], read.x_test[:512], read.y_test[:512], None)

    def model(self) -> bytes:
        """The same one at every call."""
        torch.manual_seed(1)
        return export(NETWORKS[self.network].build(), NETWORKS[self.network])


WORKS = (
    Work("T26", "lenet5", "fashion-mnist", 2048, 45.0),
    Work("T27", "resnet8", "cifar10", 1024, 55.0),
    Work("T27", "mobilenet_v2", "cifar10", 512, 85.0),
)


def _jobs(environment: CleanEnvironment, job: Work, work: Path, bare_mb: float) -> dict[str, Any]:
    ours, theirs = [], []
    for pair in range(PAIRS):
        ours.append(_our_job(environment, job, work / f"ours-{pair}"))
        theirs.append(_torch_job(job, work / f"torch-{pair}"))
    ratios = [t["rss_peak_kb"] / o["rss_peak_kb"] for o, t in zip(ours, theirs, strict=True)]
    batch = NETWORKS[job.network].batch
    return {
        "id": job.row,
        "work": f"peak memory of a {job.network} job over MQTT, batch {batch}, {ROUNDS} x {job.examples} of {job.data}",
        "peer": f"torch {metadata.version('torch')}",
        **_both(ours, theirs, "cpu_s", "s", 1.0),
        **_both(ours, theirs, "rss_peak_kb", "mb", 1024.0),
        **_both(ours, theirs, "import_s", "import_s", 1.0),
        **_judged(ratios, ours_mb=statistics.median(o["rss_peak_kb"] for o in ours) / 1024, target_mb=job.target_mb),
        "bound_mb": round(bare_mb, 1),
    }


def _our_job(environment: CleanEnvironment, job: Work, root: Path) -> dict[str, float]:
    federation = _federation(job, root)
    try:
        federation.start_coordinator()
        device = fleet.start_device("dev-0", root, federation.broker.url, "test", python=environment.python)
        federation.devices["dev-0"] = device
        federation.until_done()
        used_s = cpu_s(device.process.pid)
        fleet.stop([device.process])
        return {**fleet.last_run(device.folder), "cpu_s": used_s}
    finally:
        federation.stop()


def _federation(job: Work, root: Path) -> Federation:
    split = job.split()
    fleet.write_shards(split, {"dev-0": np.arange(len(split.y_train))}, root)
    (root / "model.onnx").write_bytes(job.model())
    write_job(root, rounds=ROUNDS, batch=NETWORKS[job.network].batch, devices=1, min_updates=1)
    return Federation(root, start_broker(None, root / "broker", kind="embedded"), ["dev-0"])


def _torch_job(job: Work, root: Path, *, idle: Callable[[int], None] | None = None) -> dict[str, float]:
    """Run the torch client for the same rounds; `idle` is called with its pid before the first."""
    split, network = job.split(), NETWORKS[job.network]
    fleet.write_shards(split, {"dev-0": np.arange(len(split.y_train))}, root)
    broker = start_broker(None, root / "broker", kind="embedded")
    arguments = {"port": _port(broker), "data": root / "dev-0" / "data" / "train.npz", "network": job.network}
    numbers = {"rounds": ROUNDS, "batch": network.batch}
    flags = [part for key, value in {**arguments, **numbers}.items() for part in (f"--{key}", str(value))]
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.torch_client", *flags],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "tests")},
    )
    assert process.stdout is not None
    try:
        if process.stdout.readline().strip() != "ready":
            raise RuntimeError("the torch client did not connect")
        if idle is not None:
            idle(process.pid)
        weights = torch.nn.utils.parameters_to_vector(network.build().parameters())
        _drive(_port(broker), weights.detach().numpy().tobytes())
        found: dict[str, float] = json.loads(process.stdout.readline())
        return found
    finally:
        process.kill()
        process.wait()
        broker.stop()


def _drive(port: int, weights: bytes) -> None:
    """Hand out weights and take the update, once a round."""
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    arrived = threading.Semaphore(0)
    ready = threading.Event()
    client.on_message = lambda *_: arrived.release()
    client.on_subscribe = lambda *_: ready.set()
    client.connect("127.0.0.1", port)
    client.loop_start()
    client.subscribe("bench/update", qos=1)
    ready.wait(10)
    for _ in range(ROUNDS):
        for piece in pieces(weights):
            client.publish("bench/weights", piece, qos=1)
        for _ in pieces(weights):
            if not arrived.acquire(timeout=300):
                raise RuntimeError("the torch client sent no update within five minutes")
    client.disconnect()
    client.loop_stop()


def _idle(environment: CleanEnvironment, job: Work, work: Path, bare_mb: float) -> list[dict[str, Any]]:
    root = work / "ours"
    federation = _federation(job, root)
    counter = _CountingProxy(_port(federation.broker))
    device = fleet.start_device("dev-0", root, counter.url, "test", python=environment.python)
    try:
        counter.wait_for_traffic()
        ours = _watch_idle(device.process.pid, counter)
    finally:
        fleet.stop([device.process])
        federation.stop()
    theirs: dict[str, float] = {}
    _torch_job(job, work / "torch", idle=lambda pid: theirs.update(_watch_idle(pid, None)))
    row = {
        "id": "T28",
        "work": f"connected and idle for {IDLE_S:.0f} s",
        "peer": f"torch {metadata.version('torch')} with paho-mqtt",
        "ours_s": round(ours["cpu_s"], 3),
        "peer_s": round(theirs["cpu_s"], 3),
        "ours_mb": round(ours["rss_mb"], 1),
        "peer_mb": round(theirs["rss_mb"], 1),
        "ours_cpu_percent": round(100 * ours["cpu_s"] / IDLE_S, 2),
        "ours_bytes_a_minute": round(ours["bytes"] * MINUTE_S / IDLE_S),
        **_judged([theirs["rss_mb"] / ours["rss_mb"]], ours_mb=ours["rss_mb"], target_mb=36.0),
        "bound_mb": round(bare_mb, 1),
    }
    flower = {**_absent("T28", row["work"], "Flower SuperNode", "pip install flwr"), "ours_mb": row["ours_mb"]}
    return [row, flower]


def _watch_idle(pid: int, counter: _CountingProxy | None) -> dict[str, float]:
    before_s, before_bytes = cpu_s(pid), counter.bytes if counter else 0
    time.sleep(IDLE_S)  # the measurement is the waiting
    return {
        "cpu_s": cpu_s(pid) - before_s,
        "rss_mb": rss_kb(pid) / 1024,
        "bytes": (counter.bytes if counter else 0) - before_bytes,
    }


class _CountingProxy:
    """Passes one connection on to a local port and counts what goes through; holds the count."""

    def __init__(self, port: int) -> None:
        self.bytes = 0
        self._seen = threading.Event()
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"mqtt://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def wait_for_traffic(self) -> None:
        """Wait until the client's birth has passed, then until nothing has for a second."""
        if not self._seen.wait(30):
            raise RuntimeError("the client did not connect")
        before = -1
        while before != self.bytes:
            before = self.bytes
            time.sleep(1.0)  # quiet for a second means connected and done announcing

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        server = socket.create_connection(("127.0.0.1", self._target))
        for source, sink in ((client, server), (server, client)):
            threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                self.bytes += len(data)
                self._seen.set()
                sink.sendall(data)
        except OSError:
            return  # either end has closed: the measurement is over


def _sizes(environment: CleanEnvironment) -> list[dict[str, Any]]:
    wheel_mb = environment.wheel.stat().st_size / 1e6
    installed = environment.installed_mb
    torch_mb = (
        sum(Path(str(f.locate())).stat().st_size for f in metadata.files("torch") or [] if f.locate().exists()) / 1e6
    )
    common = {"id": "T34", "peer": f"torch {metadata.version('torch')}", "ours_s": None, "peer_s": None}
    return [
        {
            **common,
            "work": "wheel, MB",
            "ours_mb": round(wheel_mb, 2),
            "peer_mb": round(torch_mb, 1),
            **_judged([torch_mb / wheel_mb], ours_mb=wheel_mb, target_mb=1.5),
        },
        {
            **common,
            "work": "installed client with numpy and paho-mqtt, MB",
            "ours_mb": round(installed, 1),
            "peer_mb": round(torch_mb + installed, 1),
            **_judged([(torch_mb + installed) / installed], ours_mb=installed, target_mb=60.0),
        },
    ]


def _both(
    ours: list[dict[str, float]], theirs: list[dict[str, float]], key: str, unit: str, scale: float
) -> dict[str, float]:
    return {
        f"ours_{unit}": round(statistics.median(o[key] for o in ours) / scale, 3),
        f"peer_{unit}": round(statistics.median(t[key] for t in theirs) / scale, 3),
    }


def _judged(ratios: list[float], *, ours_mb: float, target_mb: float) -> dict[str, Any]:
    return {
        "ratio": round(statistics.median(ratios), 2),
        "spread": [round(min(ratios), 2), round(max(ratios), 2)],
        "target_mb": target_mb,
        "met": ours_mb <= target_mb,
    }


def _absent(row: str, work: str, peer: str, install: str) -> dict[str, Any]:
    return {"id": row, "work": work, "peer": peer, "peer_s": None, "peer_mb": None, "ratio": None, "install": install}


def _port(broker: RunningBroker) -> int:
    return int(broker.url.rsplit(":", 1)[1])


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'row':5}{'ours MB':>9}{'peer MB':>9}{'ratio':>8}{'bound MB':>10}{'target MB':>11}  work, peer"]
    for row in rows:
        cells = (row.get("ours_mb"), row.get("peer_mb"), row.get("ratio"), row.get("bound_mb"), row.get("target_mb"))
        shown = ("-" if cell is None else f"{cell:g}" for cell in cells)
        widths = (9, 9, 8, 10, 11)
        text = "".join(f"{cell:>{width}}" for cell, width in zip(shown, widths, strict=True))
        install = f" (not installed: {row['install']})" if "install" in row else ""
        lines.append(f"{row['id']:5}{text}  {row['work']}, {row['peer']}{install}")
    return "\n".join(lines)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
