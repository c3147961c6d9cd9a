"""A driver process of `bench fleet`: many devices, each the real wire session over an MQTT connection of its own.

Done as a board does it, by the device's session: births, subscriptions, tasks read and checked, blobs fetched and
hashed, updates hashed, offered and answered; each device has a socket, packet ids and confirmations of its own.

Not done: nothing is trained, and nothing is kept on a disk. When a task comes, a tensor file is described, with the
task's metadata and slices of fixed noise in the shapes of the weights that came; it is put together when it is offered.
Updates are held back until every device of the driver has its task, then all are offered at once.

python -m bench.fleet_driver URL SITE DEVICES FIRST STEP
    has every STEP-th device from FIRST on; ends at the end of its input, and prints one JSON object
"""

from __future__ import annotations

import json
import math
import os
import select
import selectors
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from coordinator import mqtt
from edge_runtime.broker_url import parse_url
from edge_runtime.link_events import Message
from edge_runtime.tensors import decode_tensors, tensor_file_parts
from edge_runtime.wire import (
    DeviceCommand,
    DeviceSession,
    Publish,
    RenewWill,
    RunTask,
    Stop,
    StoreBlob,
    Subscribe,
    Task,
    Unsubscribe,
    UpdateSettled,
    Warned,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

KEEPALIVE_S = 120
TICK_S = 0.25
CONNECTS_A_TICK = 250
LAST_ANSWERS_S = 10.0
BUFFER_BYTES = 4096
EXAMPLES = 10
NOISE = np.random.default_rng(1).normal(0.0, 1e-3, 1 << 20).astype(np.float32)


@dataclass
class Seen:
    """What a driver saw: seconds from offer to `done`, the windows of each round's uploads, and what went wrong."""

    latencies_s: list[float] = field(default_factory=list)
    rounds: dict[int, list[float]] = field(default_factory=dict)
    busy: int = 0
    troubles: list[str] = field(default_factory=list)

    def trouble(self, what: str) -> None:
        """Keep the first few."""
        if len(self.troubles) < 20:
            self.troubles.append(what)


class Device:
    """One device: its session, its connection, and the update it is about."""

    def __init__(self, name: str, driver: Driver) -> None:
        self._driver = driver
        self._boot = os.urandom(4).hex()
        self.session = DeviceSession(driver.site, name, boot=self._boot, examples=EXAMPLES)
        self.ready: RunTask | None = None
        self._update: list[bytes | memoryview] = []
        self.offering = False
        self._round = 0
        self._offered_at = 0.0
        self._shapes: dict[str, tuple[int, ...]] = {}

    def connect(self) -> None:
        """Dial and send CONNECT; loopback connects at once."""
        self.socket = socket.create_connection(self._driver.address)
        self.socket.setblocking(False)  # noqa: FBT003 the method has no keyword
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader, self._outgoing, self._last_id, self._writable = (
            mqtt.Reader(BUFFER_BYTES),
            mqtt.Outgoing(),
            0,
            True,
        )
        self._driver.selector.register(self.socket, selectors.EVENT_READ, self)
        client_id = f"{self.session.device}-{self._boot}"
        self._outgoing.append(mqtt.connect(client_id, KEEPALIVE_S, self.session.will(), None))
        self.sent_at = time.monotonic()
        self.write()

    def write(self) -> None:
        """Write until the socket is full."""
        full = False
        try:
            while self._outgoing:
                self._outgoing.sent(self.socket.sendmsg(self._outgoing.first()))
        except BlockingIOError:
            full = True
        if self._writable is full:
            self._writable = not full
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if full else 0)
            self._driver.selector.modify(self.socket, wanted, self)

    def read(self) -> None:
        """Read once and do what follows."""
        count = self.socket.recv_into(self._reader.space())
        if count == 0:
            raise ConnectionError(f"the broker closed the connection of {self.session.device}")
        now = time.monotonic()
        for packet in self._reader.filled(count):
            match packet:
                case Message(topic, payload, retain):
                    self.do(self.session.received(now, topic, payload, retain=retain))
                case mqtt.Connack(0):
                    self.do(self.session.connected(now))
                case mqtt.Suback():
                    self.do(self.session.subscribed(now, self._asked_status()))
                case mqtt.Connack(code):
                    raise ConnectionError(f"CONNACK {code}")
        if self._reader.acks:
            self._outgoing.append(bytes(self._reader.acks))
            self._reader.acks.clear()
        self.write()

    def tick(self, now: float) -> None:
        """Let time pass."""
        self.do(self.session.tick(now))
        if now - self.sent_at > KEEPALIVE_S / 2:
            self.sent_at = now
            self._outgoing.append(mqtt.PINGREQ)
        self.write()

    def offer(self, now: float) -> None:
        """Hand over the update of the task that waits."""
        run, self.ready = self.ready, None
        assert run is not None, "only a device with a task offers"
        self._offered_at, self._round, self.offering = now, run.task.round, True
        self.do(self.session.finished(now, run.key, b"".join(self._update)))
        self.write()

    def do(self, commands: list[DeviceCommand]) -> None:
        """What the session wants of its shell."""
        for command in commands:
            match command:
                case Publish() | Subscribe() | Unsubscribe():
                    self._send(command)
                case StoreBlob(_, data, is_plan=False):
                    self._shapes = {name: array.shape for name, array in decode_tensors(data)[0].items()}
                case RunTask():
                    self.ready, self._update = command, _update(command.task, self._shapes)
                    self._driver.waiting += 1
                case UpdateSettled(_, _, "done"):
                    self._done()
                case RenewWill():
                    self._renew()
                case Warned(_, "GatewayBusy"):
                    self._driver.seen.busy += 1
                case Warned(_, rule, message) | Stop(rule, message) | UpdateSettled(_, _, _, rule, message):
                    self._driver.seen.trouble(f"{self.session.device}: {rule}: {message}")

    def _send(self, command: Publish | Subscribe | Unsubscribe) -> None:
        match command:
            case Publish(topic, payload, qos, retain):
                head = mqtt.publish_head(topic, len(payload), self._next_id() if qos else 0, retain=retain)
                self._outgoing.append(head, payload)
            case Subscribe(topics, qos):
                self._outgoing.append(mqtt.subscribe(self._next_id(), topics, qos))
            case Unsubscribe(topics):
                self._outgoing.append(mqtt.unsubscribe(self._next_id(), topics))

    def _renew(self) -> None:
        self._driver.selector.unregister(self.socket)
        self.socket.sendall(mqtt.DISCONNECT)
        self.socket.close()
        self.connect()

    def _done(self) -> None:
        now, seen = time.monotonic(), self._driver.seen
        self.offering = False
        seen.latencies_s.append(now - self._offered_at)
        window = seen.rounds.setdefault(self._round, [self._offered_at, now, 0])
        window[0], window[1], window[2] = min(window[0], self._offered_at), now, window[2] + 1

    def _asked_status(self) -> tuple[str, ...]:
        # The first subscription of a connection is to the own status, and only its confirmation matters.
        return (f"edge/v1/{self.session.site}/d/{self.session.device}/status",)

    def _next_id(self) -> int:
        self._last_id = self._last_id % 0xFFFF + 1
        return self._last_id


class Driver:
    """Every device of this process, on one selector."""

    def __init__(self, url: str, site: str, numbers: range) -> None:
        parsed = parse_url(url)
        self.address = (parsed.host, parsed.port)
        self.site = site
        self.seen = Seen()
        self.waiting = 0
        self._connected = 0
        self._next_tick = 0.0
        self.selector = selectors.DefaultSelector()
        self.devices = [Device(f"dev-{number:05}", self) for number in numbers]

    def run(self) -> None:
        """Connect all, then serve until the end of the input, and on until the last answers have come."""
        until: float | None = None
        while until is None or (time.monotonic() < until and any(device.offering for device in self.devices)):
            if until is None and _input_ended():
                until = time.monotonic() + LAST_ANSWERS_S
            self._tick(time.monotonic())
            if self.waiting == len(self.devices):
                self.waiting = 0
                for device in self.devices:
                    device.offer(time.monotonic())
            self._serve()

    def _tick(self, now: float) -> None:
        """A few more devices connect, and time passes for those that have."""
        if now < self._next_tick:
            return
        self._next_tick = now + TICK_S
        for device in self.devices[self._connected : self._connected + CONNECTS_A_TICK]:
            device.connect()
        self._connected = min(len(self.devices), self._connected + CONNECTS_A_TICK)
        for device in self.devices[: self._connected]:
            device.tick(now)

    def _serve(self) -> None:
        for key, ready in self.selector.select(max(0.0, self._next_tick - time.monotonic())):
            if ready & selectors.EVENT_WRITE:
                key.data.write()
            if ready & selectors.EVENT_READ:
                key.data.read()


def _update(task: Task, shapes: dict[str, tuple[int, ...]]) -> list[bytes | memoryview]:
    """The parts of a tensor file of noise, a different slice for every device and round; no noise is copied."""
    begin = hash((task.device, task.round)) % (len(NOISE) // 2)
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, shape in shapes.items():
        end = begin + math.prod(shape)
        tensors[name] = NOISE[begin:end].reshape(shape)
        begin = end
    words = {
        "task": task.task,
        "job": task.job,
        "round": str(task.round),
        "version": str(task.version),
        "device": task.device,
        "examples": str(EXAMPLES),
        "steps": "1",
        "loss": "1.0",
    }
    return tensor_file_parts(tensors, words)


def _input_ended() -> bool:
    """Whether the bench has closed this process's input; it writes nothing there."""
    return bool(select.select([sys.stdin], [], [], 0)[0])


def main() -> None:
    """Drive devices until the input ends, then say what was seen."""
    url, site, devices, first, step = sys.argv[1:6]
    driver = Driver(url, site, range(int(first), int(devices), int(step)))
    driver.run()
    json.dump(vars(driver.seen), sys.stdout)


if __name__ == "__main__":
    main()
