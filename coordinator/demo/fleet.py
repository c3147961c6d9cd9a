"""The demo's processes: one coordinator and one client a device, each as a user would start it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from queue import Empty, Queue
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from coordinator.demo.datasets import Split

STOP_TIMEOUT_S = 10.0
LOG_TAIL_LINES = 15
HELD_OUT = "held_out"  # no device id can have an underscore
WATCH_S = 1.0  # how often the device processes are looked at while nothing happens


class ProcessDied(RuntimeError):
    """A process of the demo ended before the job did; the message carries the end of its log.

    Attributes:
        exit_code: What the demo ends with: 2 where the coordinator refused its input, else 3.
    """

    def __init__(self, message: str, exit_code: int = 3) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Device:
    """One running client: its id, its folder (data, state, log) and its process."""

    name: str
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> Path:
        """Where the client's standard error goes."""
        return self.folder / "client.log"


def write_shards(split: Split, shards: Mapping[str, NDArray[np.int64]], root: Path) -> None:
    """Write each device's own examples to ROOT/<device>/data/train.npz, and the held-out ones to ROOT/held_out."""
    for name, rows in shards.items():
        folder = root / name / "data"
        folder.mkdir(parents=True)
        np.savez(folder / "train.npz", x=split.x_train[rows], y=split.y_train[rows])
    (root / HELD_OUT).mkdir()
    np.savez(root / HELD_OUT / "test.npz", x=split.x_test, y=split.y_test)


def write_config(name: str, root: Path, broker_url: str, site: str) -> Path:
    """Write ROOT/<device>/client.toml and return its path."""
    folder = root / name
    values = {
        "broker": broker_url,
        "device": name,
        "site": site,
        "data": str(folder / "data"),
        "state": str(folder / "state"),
    }
    config = folder / "client.toml"
    config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    return config


def start_device(  # noqa: PLR0913  each is a choice of the caller's
    name: str,
    root: Path,
    broker_url: str,
    site: str,
    *,
    python: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Device:
    """Start `edge-runtime client` on the device's folder, with this interpreter or the one of another environment.

    `environment` holds variables that this process has not, or has otherwise.
    """
    config = write_config(name, root, broker_url, site)
    folder = config.parent
    with (folder / "client.log").open("ab") as log:
        process = subprocess.Popen(
            [str(python or sys.executable), "-m", "edge_runtime", "client", "--config", str(config)],
            cwd=folder,  # never the source tree, whose packages would be found before the installed ones
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **(environment or {})},
        )
    return Device(name, folder, process)


def start_coordinator(  # noqa: PLR0913  each is a choice of the caller's
    job: Path, state: Path, broker_url: str, site: str, log: Path, *, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start `edge-runtime coordinator`, whose standard output carries one event a line."""
    command = [
        "coordinator",
        "--job",
        str(job),
        "--state",
        str(state),
        "--broker",
        broker_url,
        "--site",
        site,
    ]
    with log.open("ab") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "edge_runtime", *command, "--events"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **(environment or {})},
        )


class EventReader(threading.Thread):
    """Reads a coordinator's events into a queue, None at the end, and closes its pipe."""

    def __init__(self, coordinator: subprocess.Popen[bytes]) -> None:
        super().__init__(name="events")
        self.queue: Queue[dict[str, Any] | None] = Queue()
        self._coordinator = coordinator
        self.start()

    def run(self) -> None:
        """Read until the coordinator closes its standard output."""
        assert self._coordinator.stdout is not None
        with self._coordinator.stdout:
            for line in self._coordinator.stdout:
                self.queue.put(json.loads(line))
        self.queue.put(None)


def events(coordinator: subprocess.Popen[bytes], log: Path, devices: list[Device]) -> Iterator[dict[str, Any]]:
    """Yield the coordinator's events until it ends.

    Raises:
        ProcessDied: The coordinator failed, or a device process ended while the job ran.
    """
    reader = EventReader(coordinator)
    reason = ""
    while True:
        try:
            event = reader.queue.get(timeout=WATCH_S)
        except Empty:
            _check_alive(devices)
            continue
        if event is None:
            break
        if event["event"] == "error":
            reason = event["message"]  # told once more at the end, where it is looked for
        yield event
    code = coordinator.wait()
    if code != 0:
        said = reason or f"the coordinator ended with code {code}:\n{tail(log)}"
        raise ProcessDied(said, exit_code=2 if code == 2 else 3)


def _check_alive(devices: list[Device]) -> None:
    for device in devices:
        if device.process.poll() is not None:
            code = device.process.returncode
            raise ProcessDied(f"device {device.name} ended with code {code}:\n{tail(device.log)}")


def stop(processes: list[subprocess.Popen[bytes]]) -> None:
    """Ask every process to stop, and kill those that have not after ten seconds."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    for process in processes:
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def last_run(folder: Path) -> dict[str, float]:
    """What the stopped client of a device's folder wrote about its run: peak memory, import time, bytes, tasks.

    Raises:
        ProcessDied: The client did not get as far as a clean stop.
    """
    path = folder / "state" / "last-run.json"
    if not path.exists():
        raise ProcessDied(f"device {folder.name} did not stop cleanly:\n{tail(folder / 'client.log')}")
    found: dict[str, float] = json.loads(path.read_text())
    return found


def tail(log: Path) -> str:
    """The last lines of a log, or a word that there are none."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return "\n".join(lines[-LOG_TAIL_LINES:]) or f"(nothing in {log})"
