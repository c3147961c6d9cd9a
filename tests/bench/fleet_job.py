"""Row T30 of `bench fleet`: one small job from its first process to its last, beside Flower with the same network."""

from __future__ import annotations

import statistics
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.fleet_load import running_s
from bench.peers.flower_run import flower_job
from coordinator.broker import start_broker
from coordinator.demo import fleet
from coordinator.demo.datasets import load_split
from models.zoo.builder import Layers
from support.fleet import Federation, enlarged, write_job

if TYPE_CHECKING:
    from pathlib import Path

CLIENTS, ROUNDS, BATCH, LR, MOMENTUM = 4, 5, 32, 0.05, 0.9
SIDE, PARAMETERS = 28, 105_866
NAMES = tuple(f"dev-{i}" for i in range(CLIENTS))
TARGET_CPU_S, TARGET_ROUND_S, TARGET_FIRST_S = 3.0, 0.5, 1.0


def job_row(root: Path) -> dict[str, Any]:
    """Run both jobs, ours first."""
    ours = our_job(root / "ours")
    shards = [root / "ours" / name / "data" / "train.npz" for name in NAMES]
    theirs = flower_job(root / "flower", shards, root / "ours" / fleet.HELD_OUT / "test.npz")
    met = ours["cpu_s"] <= TARGET_CPU_S and ours["round_s"] <= TARGET_ROUND_S and ours["first_s"] <= TARGET_FIRST_S
    return {
        "id": "T30",
        "work": f"a whole job, {CLIENTS} clients, {ROUNDS} rounds, {PARAMETERS} parameters",
        **{f"ours_{key}": value for key, value in ours.items()},
        **{f"peer_{key}": value for key, value in theirs.items()},
        "ratio": None if theirs["cpu_s"] is None else round(theirs["cpu_s"] / ours["cpu_s"], 1),
        "targets": {"cpu_s": TARGET_CPU_S, "round_s": TARGET_ROUND_S, "first_s": TARGET_FIRST_S},
        "met": met,
    }


def our_job(root: Path) -> dict[str, Any]:
    """Processor seconds of broker, coordinator and clients, imports and all; seconds of a round and to the first."""
    split = enlarged(load_split("digits", None, seed=1), SIDE)
    everybody = np.random.default_rng(1).permutation(len(split.y_train))
    fleet.write_shards(split, dict(zip(NAMES, np.array_split(everybody, CLIENTS), strict=True)), root)
    (root / "model.onnx").write_bytes(network())
    write_job(root, devices=CLIENTS, min_updates=CLIENTS, rounds=ROUNDS, batch=BATCH, lr=LR, momentum=MOMENTUM)
    federation = Federation(root, start_broker(None, root / "broker", kind="mosquitto"), list(NAMES))
    assert federation.broker.process is not None
    try:
        began_s = time.monotonic()
        federation.start()
        federation.until(lambda e: e["event"] == "job_done", "end of the job")
        wall_s = time.monotonic() - began_s
        assert federation.coordinator is not None
        pids = [federation.coordinator.pid, federation.broker.process.pid]
        pids += [device.process.pid for device in federation.devices.values()]
        used = [running_s(pid) for pid in pids]
    finally:
        federation.stop()
    rounds_s = [e["seconds"] for e in federation.seen if e["event"] == "round_done"]
    return {
        "cpu_s": round(sum(used), 2),
        "coordinator_cpu_s": round(used[0], 2),
        "client_cpu_s": round(statistics.median(used[2:]), 2),
        "wall_s": round(wall_s, 2),
        "round_s": round(statistics.median(rounds_s), 3),
        "first_s": round(_stamp_s(federation, "update") - _stamp_s(federation, "round_started"), 3),
        "accuracy": next(e["accuracy"] for e in reversed(federation.seen) if e["event"] == "round_done"),
    }


def network() -> bytes:
    """Two convolutions and two dense layers."""
    layers = Layers(1, (1, SIDE, SIDE))
    layers.conv("conv1", 16, 3, 1)
    layers.max_pool("pool1")
    layers.conv("conv2", 32, 3, 1)
    layers.max_pool("pool2")
    layers.flatten()
    layers.dense("fc1", 64, relu=True)
    layers.dense("fc2", 10, relu=False)
    assert sum(int(np.prod(weight.dims)) for weight in layers.weights) == PARAMETERS
    return layers.model("digits", (1, SIDE, SIDE))


def _stamp_s(federation: Federation, kind: str) -> float:
    """When the coordinator told the first event of a kind."""
    first = next(event for event in federation.seen if event["event"] == kind)
    return datetime.fromisoformat(first["time"]).timestamp()
