"""One model to very many devices: what the broker's memory makes of retained chunks, and of one retained message.

python -m bench.wire_download URL FIRST COUNT   downloads as so many devices, prints how many have all of it
"""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from bench.wire_transfer import PAHO_S, paho_client
from coordinator import mqtt
from coordinator.broker import start_broker
from edge_runtime.link import Connected, Link, Message, Subscribed
from edge_runtime.sending import send
from edge_runtime.wire import DeviceSession, Publish, RunTask, Subscribe, Unsubscribe
from edge_runtime.wire.chunks import chunk_count
from support.boards import Gateway
from support.process import peak_rss_kb

if TYPE_CHECKING:
    from pathlib import Path

    from bench.wire_transfer import PlainMosquitto
    from edge_runtime.wire import DeviceCommand
    from support.boards import Compiled

__all__ = ["chunked_peak_kb", "single_message_peak_kb"]

SITE = "default"
PROCESSES = 2
DEADLINE_S = 300.0


class Checked:
    """A sink that keeps nothing: every chunk was checked on its way, and many devices' blobs would not fit here."""

    def __init__(self, sha256: str, size_bytes: int) -> None:
        self._sha256, self._size_bytes = sha256, size_bytes

    def begin(self) -> bytes:
        """Nothing is there yet."""
        return bytes(-(-chunk_count(self._size_bytes) // 8))

    def write(self, index: int, piece: memoryview, crc: bytes) -> None:
        """Drop a chunk."""

    def digest(self) -> str:
        """What it must be."""
        return self._sha256

    def clear(self) -> None:
        """Nothing has to be forgotten."""

    def take(self) -> None:
        """Nothing is handed over."""


class Light:
    """One device: the real session and link, and nobody who would train."""

    def __init__(self, url: str, name: str) -> None:
        boot = os.urandom(4).hex()
        self.session = DeviceSession(SITE, name, boot=boot, examples=1, open_sink=Checked)
        self.link = Link(url, f"{name}-{boot}", self.session.will(), 120)
        self.whole = False

    def step(self) -> None:
        """Do what there is to do."""
        for event in self.link.poll(0.0):
            now = time.monotonic()
            match event:
                case Connected():
                    self._do(self.session.connected(now))
                case Subscribed(topics, _):
                    self._do(self.session.subscribed(now, topics))
                case Message(topic, payload, retain):
                    self._do(self.session.received(now, topic, payload, retain=retain))
        self._do(self.session.tick(time.monotonic()))

    def _do(self, commands: list[DeviceCommand]) -> None:
        for command in commands:
            match command:
                case Publish() | Subscribe() | Unsubscribe():
                    send(self.link, command)
                case RunTask():
                    self.whole = True


def chunked_peak_kb(root: Path, model: Compiled, devices: int) -> tuple[int, float]:
    """Peak resident set of a mosquitto whose retained chunks so many devices fetch at once, and the seconds it took."""
    with start_broker(None, root / "broker", kind="mosquitto") as broker:
        assert broker.process is not None
        gateway = Gateway(broker.url, SITE)
        gateway.until(lambda: gateway.link.connected)
        share = devices // PROCESSES
        commands = [
            [sys.executable, "-m", "bench.wire_download", broker.url, str(number * share), str(share)]
            for number in range(PROCESSES)
        ]
        children = [subprocess.Popen(each, stdout=subprocess.PIPE, stdin=subprocess.PIPE) for each in commands]
        try:
            gateway.until(lambda: len({event.device for event in gateway.events}) == devices, DEADLINE_S)
            began_s = time.monotonic()
            for number in range(devices):
                gateway.send(f"dev-{number}", f"t-{number}", model)
            gateway.until(lambda: all(child.poll() is not None for child in children), DEADLINE_S)
            took_s = time.monotonic() - began_s
            told = [int(child.stdout.read()) for child in children if child.stdout is not None]
        finally:
            for child in children:
                child.kill()
                child.wait()
            gateway.link.close()
        if sum(told) != devices:
            raise RuntimeError(f"{sum(told)} of {devices} devices have the model")
        return peak_rss_kb(broker.process.pid), took_s


def single_message_peak_kb(broker: PlainMosquitto, size: int, devices: int) -> int:
    """Peak resident set of a mosquitto that hands so many subscribers one retained message."""
    publisher = paho_client(broker.url)
    publisher.publish("bench/model", bytes(size), qos=1, retain=True).wait_for_publish(PAHO_S)
    port = int(broker.url.rsplit(":", 1)[1])
    selector, got = selectors.DefaultSelector(), [0] * devices
    for number in range(devices):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.sendall(mqtt.connect(f"plain-{number}", 120, None, None) + mqtt.subscribe(1, ("bench/model",), 1))
        sock.setblocking(False)  # noqa: FBT003 the method has no keyword
        selector.register(sock, selectors.EVENT_READ, number)
    until_s = time.monotonic() + DEADLINE_S
    while min(got) < size:
        if time.monotonic() > until_s:
            raise RuntimeError(f"a retained message of {size} bytes did not reach {devices} subscribers")
        for key, _ in selector.select(1.0):
            got[key.data] += len(key.fileobj.recv(1 << 18))  # type: ignore[union-attr]  # a socket was registered
    for key in list(selector.get_map().values()):
        key.fileobj.close()  # type: ignore[union-attr]  # a socket was registered
    publisher.disconnect()
    publisher.loop_stop()
    return peak_rss_kb(broker.pid)


def main() -> None:
    """Download as COUNT devices from FIRST on."""
    url, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    devices = [Light(url, f"dev-{number}") for number in range(first, first + count)]
    until_s = time.monotonic() + DEADLINE_S
    while not all(device.whole for device in devices) and time.monotonic() < until_s:
        for device in devices:
            device.step()
    sys.stdout.write(str(sum(device.whole for device in devices)))


if __name__ == "__main__":
    main()
