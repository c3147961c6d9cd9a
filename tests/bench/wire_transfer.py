"""One big blob down to a real client, and one big update up from it, over a link that the bench makes and breaks."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import paho.mqtt.client as paho

from coordinator.broker import find_mosquitto, start_broker
from coordinator.broker.mosquitto import free_port
from coordinator.demo import fleet
from edge_runtime.tensors import encode_tensors
from edge_runtime.wire.chunks import CHUNK_BYTES
from models.compiler import compile_training, import_onnx, weights_of
from models.zoo.builder import Layers
from support.boards import Compiled, Gateway
from support.process import peak_rss_kb, rss_kb
from support.proxy import Proxy, Shape

if TYPE_CHECKING:
    from collections.abc import Iterator

    from coordinator.broker import RunningBroker

__all__ = [
    "PAHO_S",
    "PahoPair",
    "PlainMosquitto",
    "Transfer",
    "World",
    "dense_model",
    "paho_client",
    "plain_mosquitto",
    "single_publish_bytes",
    "transferred",
    "upload_seconds",
    "world",
]

DEVICE, SITE = "dev-0", "default"
FEATURES, CLASSES = 16_384, 10
DEADLINE_S = PAHO_S = 240.0
START_S = 10.0


# Asked all the time: (seconds since the first chunk, bytes so far) -> whether to cut the link now.
Cut = Callable[[float, int], bool]


@dataclass(frozen=True)
class Transfer:
    """What one way of a transfer took.

    Attributes:
        payload_bytes: Of the blob or the update.
        wire_bytes: All that went that way over the device's socket meanwhile, whatever it was for.
        back_bytes: All that went the other way.
        seconds: From the first sign of it to its end.
        cuts: Connections cut meanwhile.
        peak_extra_kb: Growth of the client's peak resident set meanwhile.
    """

    payload_bytes: int
    wire_bytes: int
    back_bytes: int
    seconds: float
    cuts: int
    peak_extra_kb: int


def dense_model(size_bytes: int) -> Compiled:
    """A classifier of two dense layers whose weights take about so many bytes, for pictures of 16,384 values."""
    layers = Layers(1, (FEATURES,))
    layers.dense("fc1", size_bytes // 4 // (FEATURES + CLASSES + 1), relu=True)
    layers.dense("fc2", CLASSES, relu=False)
    model = layers.model("dense", (FEATURES,))
    compiled = compile_training(import_onnx(model, batch=2))
    return Compiled(compiled.plan, weights_of(model))


@dataclass
class World:
    """A broker, a gateway of a few lines, a proxy, and a real client behind it with two examples to learn."""

    root: Path
    broker: RunningBroker
    proxy: Proxy
    gateway: Gateway
    client: subprocess.Popen[bytes]

    def log(self) -> str:
        """What the client has said."""
        return (self.root / DEVICE / "client.log").read_text()


@contextlib.contextmanager
def world(root: Path, *, proxied: bool = True) -> Iterator[World]:
    """Start one, and wait until the gateway has heard of the client, which connects through the proxy if `proxied`."""
    data = root / DEVICE / "data"
    data.mkdir(parents=True)
    x = np.random.default_rng(1).normal(0.0, 1.0, (2, FEATURES)).astype(np.float32)
    np.savez(data / "train.npz", x=x, y=np.array([0, 1]))
    broker = start_broker(None, root / "broker", kind="mosquitto")
    proxy = Proxy(broker.url, packets=True)
    gateway = Gateway(broker.url, SITE)
    client = fleet.start_device(DEVICE, root, proxy.url if proxied else broker.url, SITE)
    try:
        gateway.until(lambda: gateway.events)
        yield World(root, broker, proxy, gateway, client.process)
    finally:
        fleet.stop([client.process])
        gateway.link.close()
        proxy.stop()
        broker.stop()


def transferred(
    here: World, name: str, model: Compiled, shape: Shape, *, cut_down: Cut, cut_up: Cut
) -> tuple[Transfer, Transfer]:
    """Have the client fetch the model, train on it, and send the update back; (download, upload).

    Args:
        here: Where.
        name: Of the task; equal names are one task.
        model: What is sent; its update has the same size.
        shape: Of the link.
        cut_down: When the link is cut on the way down.
        cut_up: On the way back.
    """
    size, had = len(encode_tensors(model.weights)), len(here.gateway.updates)
    here.proxy.shape(DEVICE, shape)
    down = _watched(
        here,
        "down",
        size,
        cut_down,
        lambda: f"task task={name} " in here.log(),
        lambda: here.gateway.send(DEVICE, name, model),
    )
    # The board trains on without its gateway, and offers its update to it when it is turned again.
    until_s = time.monotonic() + DEADLINE_S
    while f"task done task={name} " not in here.log():
        if time.monotonic() > until_s:
            raise TimeoutError(f"no end of the training of {name}:\n{here.log()[-2000:]}")
        time.sleep(0.01)
    up = _watched(here, "up", size, cut_up, lambda: len(here.gateway.updates) > had)
    here.gateway.until(lambda: f"update accepted task={name}" in here.log(), DEADLINE_S)
    return down, up


def _watched(  # noqa: PLR0917  all of it is the transfer's
    here: World,
    way: str,
    size: int,
    cut: Cut,
    over: Callable[[], bool],
    begin: Callable[[], object] = lambda: None,
) -> Transfer:
    """Turn the gateway until it is over; counts every byte, and times and weighs from the first chunk to the last."""
    counted, until_s = here.proxy.wire_bytes.copy(), time.monotonic() + DEADLINE_S
    # A blob is weighed from before the task is known, an update from before it is asked for.
    began_s, cuts, peak_kb, first_kb = 0.0, 0, 0, _forget_peak(here.client.pid)
    begin()
    while not over():
        now_s = time.monotonic()
        if now_s > until_s:
            raise RuntimeError(f"{size} bytes {way} are not through in {DEADLINE_S:.0f} s\n{here.log()[-2000:]}")
        here.gateway.step(0.01)
        sent = here.proxy.wire_bytes[DEVICE, way] - counted[DEVICE, way]
        if not began_s and sent > CHUNK_BYTES:
            began_s = now_s
        if began_s and sent < size:  # what comes after the last byte, training above all, is another matter
            peak_kb = max(peak_kb, peak_rss_kb(here.client.pid))
            if cut(now_s - began_s, sent):
                here.proxy.cut(DEVICE, reset=True)
                cuts += 1
    other = "up" if way == "down" else "down"
    return Transfer(
        payload_bytes=size,
        wire_bytes=here.proxy.wire_bytes[DEVICE, way] - counted[DEVICE, way],
        back_bytes=here.proxy.wire_bytes[DEVICE, other] - counted[DEVICE, other],
        seconds=time.monotonic() - began_s,
        cuts=cuts,
        peak_extra_kb=max(0, peak_kb - first_kb),
    )


def _forget_peak(pid: int) -> int:
    """Have the kernel count a process's peak from now on; returns what it has now, in KiB."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return rss_kb(pid)


def upload_seconds(here: World, name: str, model: Compiled) -> float:
    """Seconds from the gateway's first word of an upload to the update in its hands, over an undisturbed link."""
    had = len(here.gateway.updates)
    here.gateway.send(DEVICE, name, model)
    here.gateway.until(lambda: here.gateway.session.open_bytes, DEADLINE_S)
    began_s = time.monotonic()
    here.gateway.until(lambda: len(here.gateway.updates) > had, DEADLINE_S)
    took_s = time.monotonic() - began_s
    here.gateway.until(lambda: f"update accepted task={name}" in here.log(), DEADLINE_S)
    here.gateway.updates.clear()
    return took_s


# The peer: the same bytes in one PUBLISH of paho-mqtt.


def _wait_for(port: int) -> None:
    until_s = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            if time.monotonic() > until_s:
                raise
            time.sleep(0.05)
        else:
            return


@dataclass(frozen=True)
class PlainMosquitto:
    """Where it listens, and its process."""

    url: str
    pid: int


@contextlib.contextmanager
def plain_mosquitto(root: Path) -> Iterator[PlainMosquitto]:
    """A mosquitto with its own defaults, which take a packet of any size."""
    root.mkdir(parents=True)
    port = free_port("127.0.0.1")
    config = root / "plain.conf"
    user = "user root\n" if os.geteuid() == 0 else ""
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n{user}")
    with (root / "plain.log").open("wb") as log:
        process = subprocess.Popen([str(find_mosquitto()), "-c", str(config)], stdout=log, stderr=log)
    try:
        url = f"mqtt://127.0.0.1:{port}"
        _wait_for(port)
        yield PlainMosquitto(url, process.pid)
    finally:
        process.terminate()
        process.wait()


def paho_client(url: str) -> paho.Client:
    """A client with a thread of its own that connects, and connects again a second after a cut."""
    client = paho.Client(paho.CallbackAPIVersion.VERSION2)
    client.reconnect_delay_set(1, 1)
    client.connect("127.0.0.1", int(url.rsplit(":", 1)[1]))
    client.loop_start()
    return client


class PahoPair:
    """A paho publisher, over any URL, and a paho subscriber straight at the broker."""

    def __init__(self, publish_url: str, subscribe_url: str) -> None:
        self._arrived = threading.Semaphore(0)
        self._subscriber = paho_client(subscribe_url)
        self._subscriber.on_message = lambda *_: self._arrived.release()
        ready = threading.Event()
        self._subscriber.on_subscribe = lambda *_: ready.set()
        self._subscriber.subscribe("bench/update", qos=1)
        ready.wait(10)
        self._publisher = paho_client(publish_url)

    def seconds(self, data: bytes) -> float:
        """Seconds from publish() until the subscriber has it."""
        began_s = time.monotonic()
        self._publisher.publish("bench/update", data, qos=1)
        if not self._arrived.acquire(timeout=DEADLINE_S):
            raise RuntimeError(f"a PUBLISH of {len(data)} bytes did not arrive in {DEADLINE_S:.0f} s")
        return time.monotonic() - began_s

    def stop(self) -> None:
        """Disconnect both."""
        for client in (self._publisher, self._subscriber):
            client.disconnect()
            client.loop_stop()


def single_publish_bytes(root: Path, size: int, shape: Shape, cuts_at: list[int]) -> int:
    """Bytes that a single PUBLISH takes up to the broker when its link is cut so many bytes into it, each time."""
    with plain_mosquitto(root) as broker, Proxy(broker.url, packets=False) as proxy:
        proxy.shape("", shape)
        pair = PahoPair(proxy.url, broker.url)
        thread = threading.Thread(target=pair.seconds, args=(bytes(size),))
        thread.start()
        left, begun = list(cuts_at), 0
        while thread.is_alive():
            if left and proxy.wire_bytes["", "up"] > begun + left[0]:
                proxy.cut("", reset=True)
                # It begins from the start again: the next cut comes so far into the message.
                begun = proxy.wire_bytes["", "up"]
                del left[0]
            thread.join(0.01)
        sent = proxy.wire_bytes["", "up"]
        pair.stop()
    return sent
