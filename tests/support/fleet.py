"""A small federation of real processes for end-to-end tests: shards on disk, a job file, a broker."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import dataclass, field, replace
from queue import Empty
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from coordinator.broker import start_broker
from coordinator.demo import fleet
from coordinator.demo.datasets import Split, load_split
from coordinator.demo.partition import dirichlet
from models.zoo import MODELS

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from coordinator.broker import RunningBroker

SITE = "test"
DEADLINE_S = 120.0  # without any event
STALL_S = 400.0  # without one of GOES_ON
# Events without which a job stands still; devices that come, go and are refused are none.
GOES_ON = frozenset({"asked", "round_started", "update", "version", "round_done", "job_done"})


@dataclass
class Federation:
    """Processes of one job, and the events its coordinator has told so far.

    `url` is where they connect, if not straight to the broker; `environments` what a process, by its device's name or
    "coordinator", has in its environment beside this one's.
    """

    root: Path
    broker: RunningBroker
    names: list[str]
    url: str = ""
    environments: dict[str, dict[str, str]] = field(default_factory=dict)
    devices: dict[str, fleet.Device] = field(default_factory=dict)
    coordinator: subprocess.Popen[bytes] | None = None
    reader: fleet.EventReader | None = None
    seen: list[dict[str, Any]] = field(default_factory=list)

    def start_coordinator(self) -> None:
        """Start the coordinator with the same command each time."""
        self.coordinator = fleet.start_coordinator(
            self.root / "job.toml",
            self.root / "coordinator",
            self.url or self.broker.url,
            SITE,
            self.root / "coordinator.log",
            environment=self.environments.get("coordinator"),
        )
        self.reader = fleet.EventReader(self.coordinator)

    def start_device(self, name: str) -> None:
        """Start, or start again, one device on its own folder."""
        self.devices[name] = fleet.start_device(
            name, self.root, self.url or self.broker.url, SITE, environment=self.environments.get(name)
        )

    def start(self) -> None:
        """Start the coordinator and every device."""
        self.start_coordinator()
        for name in self.names:
            self.start_device(name)

    def kill_device(self, name: str) -> None:
        """Kill -9."""
        self.devices[name].process.kill()
        self.devices[name].process.wait()

    def kill_coordinator(self) -> None:
        """Kill -9."""
        assert self.coordinator is not None
        self.coordinator.send_signal(signal.SIGKILL)
        self.coordinator.wait()
        assert self.reader is not None
        self.reader.join()

    def until(self, wanted: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        """Wait for an event; fails with the logs when the coordinator ends, is silent, or the job stands still."""
        assert self.reader is not None
        latest_s = time.monotonic() + STALL_S
        while True:
            try:
                event = self.reader.queue.get(timeout=max(0.0, min(DEADLINE_S, latest_s - time.monotonic())))
            except Empty:
                event = None
            if event is None:
                raise AssertionError(f"no {what}; events {self.seen[-8:]}\n{self.logs()}")
            self.seen.append(event)
            if wanted(event):
                return event
            if event["event"] in GOES_ON:
                latest_s = time.monotonic() + STALL_S

    def until_done(self) -> dict[str, Any]:
        """Wait for the end of the job and of the coordinator's process."""
        done = self.until(lambda e: e["event"] == "job_done", "end of the job")
        assert self.coordinator is not None
        assert self.coordinator.wait(DEADLINE_S) == 0, self.logs()
        return done

    def logs(self) -> str:
        """The end of every log."""
        logs = [self.root / "coordinator.log", *(self.root / name / "client.log" for name in self.names)]
        return "\n".join(f"== {log}\n{fleet.tail(log)}" for log in logs)

    def stop(self) -> None:
        """Stop every process, the broker last."""
        running = [device.process for device in self.devices.values()]
        fleet.stop([*running, *([self.coordinator] if self.coordinator else [])])
        if self.reader is not None:
            self.reader.join()
        self.broker.stop()


def digits_federation(
    root: Path, *, kind: Literal["mosquitto", "embedded"], devices: int = 4, side: int = 8, **job: object
) -> Federation:
    """Real digits on `devices` devices, LeNet; the job file's numbers can be overridden by name.

    `side` enlarges the 8x8 images by repeating and cutting pixels, for a LeNet of the classic size.
    """
    split = enlarged(load_split("digits", None, seed=1), side)
    shards = dirichlet(split.y_train, devices, alpha=0.5, seed=1, min_examples=16)
    names = [f"dev-{i}" for i in range(devices)]
    fleet.write_shards(split, dict(zip(names, shards, strict=True)), root)
    (root / "model.onnx").write_bytes(MODELS["lenet"](split.input_shape, split.classes, 1))
    write_job(root, devices=devices, **job)
    return Federation(root, start_broker(None, root / "broker", kind=kind), names)


def enlarged(split: Split, side: int) -> Split:
    rows = np.arange(side) * split.x_train.shape[-1] // side
    x_train, x_test = (x[..., rows[:, None], rows] for x in (split.x_train, split.x_test))
    return replace(split, x_train=x_train, x_test=x_test)


def _toml(value: object) -> str:
    """A value as TOML writes it: as JSON does, but for the tables of a list."""
    if isinstance(value, list):
        return f"[{', '.join(_toml(each) for each in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {_toml(each)}' for key, each in value.items())}}}"
    return json.dumps(value)


def write_job(root: Path, **overrides: object) -> None:
    """Write ROOT/job.toml; a table is a section of its own, a key that no section has yet is one of [training]."""
    tables: dict[str, dict[str, object]] = {
        "job": {"name": "digits", "seed": 1, "rounds": 3},
        "model": {"onnx": "model.onnx"},
        "method": {"name": "fedavg"},
        "training": {"epochs": 1, "batch": 32, "lr": 0.05, "momentum": 0.9, "weight_decay": 0.0},
        "round": {"devices": 4, "min_updates": 2, "deadline_s": 100.0, "grace_s": 10.0},
        "upload": {"codec": ["dense"]},
        "evaluate": {"data": fleet.HELD_OUT},
    }
    for key, value in overrides.items():
        if isinstance(value, dict):
            tables[key] = tables.get(key, {}) | value
            continue
        table = next((t for t in tables.values() if key in t), tables["training"])
        table[key] = value
    text = "".join(
        f"[{name}]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in table.items())
        for name, table in tables.items()
    )
    (root / "job.toml").write_text(text)
