"""Devices that mean harm: the real wire code with a poisoned update, and an update as an honest one would write it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from coordinator.seat import send_all
from edge_runtime.codecs import find_codec
from edge_runtime.link import Connected, Disconnected, Link, Message, Subscribed
from edge_runtime.tensors import decode_tensors
from edge_runtime.wire import (
    DeviceSession,
    Publish,
    RenewWill,
    RunTask,
    StoreBlob,
    Subscribe,
    Unsubscribe,
    UpdateSettled,
    topics,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.wire import Task

EXAMPLES = 50


def metadata_of(task: Task, **changes: str) -> dict[str, str]:
    """What an honest update of this task says of itself."""
    names = {"task": task.task, "job": task.job, "round": str(task.round), "version": str(task.version)}
    return {**names, "device": task.device, "examples": str(EXAMPLES), "steps": "2", "loss": "0.5", **changes}


def encoded(task: Task, tensors: dict[str, Any], metadata: dict[str, str]) -> bytes:
    """Through the task's own codec."""
    return find_codec(task.upload.codec).encode(tensors, metadata, {})


@dataclass
class Hostile:
    """One device: it takes part as any other until it answers its first task with what `poison` makes of it.

    settled holds what the coordinator answered; task is what it was asked to do.
    """

    url: str
    site: str
    name: str
    poison: Callable[[Task, dict[str, Any]], bytes]
    task: Task | None = None
    update: bytes = b""
    settled: list[UpdateSettled] = field(default_factory=list)
    sees_gateway: bool = False

    def __post_init__(self) -> None:
        self._blobs: dict[str, bytes] = {}
        self.session = DeviceSession(
            self.site,
            self.name,
            boot=self.name,
            stored_gen=0,
            examples=EXAMPLES,
            cached=lambda sha256: sha256 in self._blobs,
        )
        self.link = Link(self.url, f"{self.name}-hostile", self.session.will())

    def turn(self) -> None:
        """Take what has come, and let time pass."""
        for event in self.link.poll(0.002):
            self._do(self._take(event))
        self._do(self.session.tick(time.monotonic()))

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """Anything at all, past the session."""
        assert self.link.connected
        self.link.publish(topic, payload, qos, retain=retain)

    def _take(self, event: Any) -> Any:
        now = time.monotonic()
        match event:
            case Connected():
                return self.session.connected(now)
            case Subscribed(granted, ()):
                return self.session.subscribed(now, granted)
            case Message(topic, payload, retain):
                # A coordinator says that it is up after it has subscribed: what is sent from now on reaches it.
                self.sees_gateway |= topic == topics.gateway(self.site) and b'"up"' in payload
                return self.session.received(now, topic, payload, retain=retain)
            case Disconnected():
                return self.session.disconnected(now)
        return []

    def _do(self, commands: list[Any]) -> None:
        for command in commands:
            match command:
                case Publish() | Subscribe() | Unsubscribe():
                    send_all(self.link, [command])
                case RenewWill():
                    self.link.set_will(self.session.will())
                    self.link.reconnect()
                case StoreBlob(sha256, data, _):
                    self._blobs[sha256] = data
                case RunTask(key, task):
                    self._answer(key, task)
                case UpdateSettled():
                    self.settled.append(command)

    def _answer(self, key: str, task: Task) -> None:
        self.task = task
        weights, _ = decode_tensors(self._blobs[task.weights])
        rng = np.random.default_rng(1)
        tensors = {name: rng.normal(0, 0.01, array.shape).astype(np.float32) for name, array in weights.items()}
        self.update = self.poison(task, tensors)
        if self.update:
            self._do(self.session.finished(time.monotonic(), key, self.update))
