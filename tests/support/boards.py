"""What the tests of the board share: links polled until something happens, compiled models, a small gateway."""

import contextlib
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from coordinator.speaker import GatewaySpeaker
from edge_runtime.link import Connected, Disconnected, Link, LinkEvent, Message
from edge_runtime.sending import send
from edge_runtime.tensors import encode_tensors
from edge_runtime.wire import (
    Phase,
    Publish,
    Subscribe,
    Task,
    Unsubscribe,
    Upload,
)
from edge_runtime.wire.events import Outcome, UpdateReceived
from edge_runtime.wire.gateway import GatewaySession
from models.compiler import compile_training, import_onnx, weights_of
from models.zoo import MODELS


def poll_until(links: list[Link], found: Callable[[LinkEvent], bool], deadline_s: float = 15.0) -> list[LinkEvent]:
    """Poll links in turn until an event of any of them is the one; returns all events."""
    end = time.monotonic() + deadline_s
    events: list[LinkEvent] = []
    while time.monotonic() < end:
        for link in links:
            events += link.poll(0.02)
        if any(found(event) for event in events):
            return events
    pytest.fail(f"not in {deadline_s} s; there was {events}")


def connect(*links: Link) -> None:
    for link in links:
        poll_until([link], lambda event: isinstance(event, Connected))


@dataclass(frozen=True)
class Compiled:
    """A model's plan and first weights."""

    plan: bytes
    weights: dict[str, NDArray[np.float32]]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.plan).hexdigest()


def compile_model(name: str, shape: tuple[int, ...], *, batch: int, classes: int = 10) -> Compiled:
    model = MODELS[name](shape, classes, 3)
    compiled = compile_training(import_onnx(model, batch=batch))
    return Compiled(compiled.plan, weights_of(model))


def task_for(device: str, name: str, model: Compiled, weights: bytes, **changes: object) -> Task:
    digest = hashlib.sha256(weights).hexdigest()
    values = {
        "task": name,
        "job": "job",
        "round": 1,
        "version": 1,
        "device": device,
        "phases": (Phase(model.sha256, 1, {"lr": 0.05}),),
        "weights": digest,
        "blobs": {model.sha256: len(model.plan), digest: len(weights)},
        "classes": 10,
        "seed": 11,
        "upload": Upload(),
        "deadline_s": 60.0,
    }
    return Task(**{**values, **changes})  # type: ignore[arg-type]  # the fields are checked by the task's own writer


class Gateway:
    """A gateway of a few lines: it accepts every update and keeps every event."""

    def __init__(self, url: str, site: str = "default", epoch: int = 1) -> None:
        self.done: dict[tuple[str, str], str] = {}
        self.session = GatewaySession(
            site, epoch, os.urandom(8).hex(), already_done=lambda device, task: self.done.get((device, task))
        )
        self.link = Link(url, f"gateway-{os.getpid()}-{id(self)}", self.session.will(), speak=GatewaySpeaker)
        self.events: list[Outcome] = []
        self.updates: list[UpdateReceived] = []

    def send(self, device: str, name: str, model: Compiled, **changes: object) -> Task:
        weights = encode_tensors(model.weights)
        task = task_for(device, name, model, weights, **changes)
        blobs = {model.sha256: model.plan, hashlib.sha256(weights).hexdigest(): weights}
        self._do(self.session.send_task(device, task, blobs))
        return task

    def drop_blob(self, sha256: str) -> None:
        self._do(self.session.drop_blob(sha256))

    def step(self, timeout_s: float = 0.05) -> None:
        for event in self.link.poll(timeout_s):
            now = time.monotonic()
            match event:
                case Connected():
                    self._do(self.session.connected(now))
                case Disconnected():
                    self._do(self.session.disconnected(now))
                case Message(topic, payload, retain):
                    self._do(self.session.received(now, topic, payload, retain=retain))

    def until(self, found: Callable[[], object], deadline_s: float = 20.0) -> None:
        end = time.monotonic() + deadline_s
        while not found():
            if time.monotonic() > end:
                pytest.fail(f"not in {deadline_s} s; there was {self.events}")
            self.step()

    def seen(self, kind: type[Outcome]) -> list[Outcome]:
        return [event for event in self.events if isinstance(event, kind)]

    def _do(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            match outcome:
                case Publish() | Subscribe() | Unsubscribe():
                    send(self.link, outcome)
                case UpdateReceived():
                    self.updates.append(outcome)
                    self.done[outcome.device, outcome.task] = outcome.sha256
                    self._do(self.session.accept(outcome.device, outcome.uid))
                case _:
                    self.events.append(outcome)


@dataclass
class ClientProcess:
    """A running `edge-runtime client`."""

    process: subprocess.Popen[bytes]
    log: Path
    arguments: list[str] = field(default_factory=list)

    def text(self) -> str:
        return self.log.read_text()

    def stop(self, deadline_s: float = 5.0) -> int:
        self.process.terminate()
        return self.process.wait(deadline_s)


def start_client(url: str, device: str, data: Path, state: Path, *options: str) -> ClientProcess:
    arguments = ["--broker", url, "--device", device, "--data", str(data), "--state", str(state), *options]
    log = state.with_suffix(f".{device}.log")
    with log.open("ab") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "edge_runtime", "client", *arguments], stderr=errors, stdin=subprocess.DEVNULL
        )
    return ClientProcess(process, log, arguments)


@contextlib.contextmanager
def broker_that_denies(*filters: str) -> Iterator[str]:
    """URL of an embedded broker that refuses subscriptions to these topics."""
    denied = [word for each in filters for word in ("--deny-subscribe", each)]
    command = [sys.executable, "-m", "coordinator.broker.cli", "--port", "0", *denied]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().decode().split()[1]
        finally:
            process.terminate()
