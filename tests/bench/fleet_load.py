"""One run of `bench fleet`: broker, coordinator and drivers as processes, and what /proc says of them meanwhile."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coordinator.broker import start_broker
from coordinator.demo import fleet
from coordinator.demo.datasets import load_split
from models.zoo.builder import Layers
from support.data import REPOSITORY
from support.fleet import write_job
from support.process import peak_rss_kb

if TYPE_CHECKING:
    from coordinator.broker import RunningBroker

SITE = "fleet"
DRIVERS = 2
SAMPLE_S = 0.05
FEATURES, CLASSES = 64, 10
WAIT_S = 900.0
# Of each process: standard streams, libraries, a journal; far more than either needs.
SPARE_FILES = 200


@dataclass(frozen=True)
class Load:
    """How many devices, for how many rounds, and the units of the hidden layer, which decide an update's bytes."""

    devices: int
    rounds: int
    hidden: int

    @property
    def parameters(self) -> int:
        """Of the model."""
        return self.hidden * (FEATURES + 1) + CLASSES * (self.hidden + 1)


def check_files(devices: int) -> None:
    """Allow this process and its children as many open files as a broker with so many sessions needs.

    Raises:
        OSError: The machine's hard limit is lower.
    """
    needed = devices + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < needed:
        raise OSError(f"{devices} sessions need {needed} open files, the hard limit is {hard}; raise it (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))


def run_load(load: Load, root: Path) -> dict[str, Any]:
    """Run a whole job and return its figures; see `figures`."""
    check_files(load.devices)
    _write_work(load, root)
    with start_broker(None, root / "broker", kind="mosquitto") as broker:
        log = root / "coordinator.log"
        coordinator = fleet.start_coordinator(root / "job.toml", root / "coordinator", broker.url, SITE, log)
        reader = fleet.EventReader(coordinator)
        assert broker.process is not None
        drivers = _start_drivers(broker, load.devices)
        pids = {"coordinator": (coordinator.pid,), "broker": (broker.process.pid,), "bench": (os.getpid(),)}
        sampler = Sampler(pids | {"drivers": tuple(driver.pid for driver in drivers)})
        try:
            events = _events_until_done(reader, log)
            sampler.stop()
            coordinator_mb, broker_mb = (peak_rss_kb(pid) / 1024 for pid in (coordinator.pid, broker.process.pid))
        finally:
            sampler.stop()
            seen = [_finish(driver) for driver in drivers]
            fleet.stop([coordinator])
            reader.join()
    return figures(load, seen, events, sampler) | {
        "coordinator_peak_mb": round(coordinator_mb, 1),
        "broker_peak_mb": round(broker_mb, 1),
    }


def figures(load: Load, seen: list[dict[str, Any]], events: list[dict[str, Any]], sampler: Sampler) -> dict[str, Any]:
    """What a run says: rates and processor time in the windows from a round's first offer to its last `done`."""
    windows = _windows(seen)
    updates = sum(count for _, _, count in windows)
    window_s = sum(last - first for first, last, _ in windows)
    bytes_up = statistics.median(e["bytes"] for e in events if e["event"] == "update")
    cpu = {name: sum(sampler.used_s(name, *window[:2]) for window in windows) for name in sampler.pids}
    latencies = sorted(each for one in seen for each in one["latencies_s"])
    rounds_s = [e["seconds"] for e in events if e["event"] == "round_done"]
    return {
        "devices": load.devices,
        "rounds": load.rounds,
        "parameters": load.parameters,
        "update_bytes": int(bytes_up),
        "updates": updates,
        "updates_a_s": round(updates / window_s, 1),
        "bytes_a_s": round(updates * bytes_up / window_s),
        "done_p50_s": round(latencies[len(latencies) // 2], 3),
        "done_p99_s": round(latencies[len(latencies) * 99 // 100], 3),
        **{f"{name}_us_an_update": round(1e6 * used_s / updates, 1) for name, used_s in cpu.items()},
        "updates_a_coordinator_core_s": round(updates / cpu["coordinator"], 1),
        "coordinator_job_us_an_update": round(1e6 * sampler.used_s("coordinator") / updates, 1),
        "round_s": round(statistics.median(rounds_s), 3),
        "busy_answers": sum(one["busy"] for one in seen),
        "troubles": [each for one in seen for each in one["troubles"]],
    }


def _windows(seen: list[dict[str, Any]]) -> list[tuple[float, float, int]]:
    """Per round: its first offer, its last `done`, and how many there were."""
    rounds: dict[str, list[list[float]]] = {}
    for one in seen:
        for number, window in one["rounds"].items():
            rounds.setdefault(number, []).append(window)
    return [
        (min(w[0] for w in each), max(w[1] for w in each), int(sum(w[2] for w in each))) for each in rounds.values()
    ]


class Sampler(threading.Thread):
    """Reads the processor time of processes, together under a name, every 50 ms: it can be told for any window then."""

    def __init__(self, pids: dict[str, tuple[int, ...]]) -> None:
        super().__init__(name="sampler", daemon=True)
        self.pids = pids
        self._samples: dict[str, list[tuple[float, float]]] = {name: [] for name in pids}
        self._ended = threading.Event()
        self.start()

    def run(self) -> None:
        """Sample until stopped."""
        while not self._ended.wait(SAMPLE_S):
            for name, pids in self.pids.items():
                self._samples[name].append((time.monotonic(), sum(map(running_s, pids))))

    def stop(self) -> None:
        """Take no more samples."""
        self._ended.set()
        self.join()

    def used_s(self, name: str, begin_s: float | None = None, end_s: float | None = None) -> float:
        """Processor seconds between two times, interpolated between samples; without times all there is."""
        at, used = zip(*self._samples[name], strict=True)
        first = 0.0 if begin_s is None else float(np.interp(begin_s, at, used))
        return float(used[-1] if end_s is None else np.interp(end_s, at, used)) - first


def running_s(pid: int) -> float:
    """Processor seconds of all threads of a process so far, to the nanosecond."""
    total_ns = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total_ns += int((task / "schedstat").read_text().split()[0])
    return total_ns / 1e9


def _write_work(load: Load, root: Path) -> None:
    split = load_split("digits", None, seed=1)
    root.mkdir(parents=True, exist_ok=True)
    fleet.write_shards(split, {}, root)
    layers = Layers(1, split.input_shape)
    layers.flatten()
    layers.dense("fc1", load.hidden, relu=True)
    layers.dense("fc2", CLASSES, relu=False)
    (root / "model.onnx").write_bytes(layers.model("fleet", split.input_shape))
    write_job(root, rounds=load.rounds, devices=load.devices, min_updates=load.devices, deadline_s=WAIT_S, grace_s=60.0)


def _start_drivers(broker: RunningBroker, devices: int) -> list[subprocess.Popen[str]]:
    # Tasks are sent in the order of names: dealt out in turns, devices of all drivers have theirs at about one time.
    path = os.pathsep.join((str(REPOSITORY / "tests"), str(REPOSITORY)))
    return [
        subprocess.Popen(
            [sys.executable, "-m", "bench.fleet_driver", broker.url, SITE, str(devices), str(first), str(DRIVERS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        for first in range(DRIVERS)
    ]


def _finish(driver: subprocess.Popen[str]) -> dict[str, Any]:
    said, _ = driver.communicate()
    if driver.returncode != 0:
        raise RuntimeError(f"a driver ended with status {driver.returncode}")
    found: dict[str, Any] = json.loads(said)
    return found


def _events_until_done(reader: fleet.EventReader, log: Path) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    while True:
        event = reader.queue.get(timeout=WAIT_S)
        if event is None:
            raise RuntimeError(f"the coordinator ended early; {events[-3:]}\n{fleet.tail(log)}")
        events.append(event)
        if event["event"] == "job_done":
            return events
