"""The bound of `bench fleet`: mosquitto alone, with our configuration, moving the same messages from as many sessions.

Nothing is asked for, checked, journalled or answered: sessions publish the chunks of an update, one subscriber counts
them. At most BUDGET_BYTES are on their way at one time, as many as a gateway's open uploads.
"""

from __future__ import annotations

import selectors
import socket
import time
from typing import TYPE_CHECKING, Any

from bench.fleet_load import check_files, running_s
from coordinator import mqtt
from coordinator.broker import start_broker
from edge_runtime.broker_url import parse_url
from edge_runtime.wire import topics
from edge_runtime.wire.chunks import chunk_count, cut_chunk
from edge_runtime.wire.gateway import BUDGET_BYTES

if TYPE_CHECKING:
    from pathlib import Path

SITE = "bound"
READ_BYTES = 1 << 20
WAIT_S = 30.0


class _Client:
    """A connection, and what has not been written to it."""

    def __init__(self, address: tuple[str, int], name: str, buffer_bytes: int) -> None:
        self.socket = socket.create_connection(address)
        self.outgoing = mqtt.Outgoing()
        self.reader = mqtt.Reader(buffer_bytes)
        self.outgoing.append(mqtt.connect(name, 0, None, None))
        self.write()
        while not any(isinstance(packet, mqtt.Connack) for packet in self.read()):
            pass
        self.socket.setblocking(False)  # noqa: FBT003 the method has no keyword

    def write(self) -> None:
        try:
            while self.outgoing:
                self.outgoing.sent(self.socket.sendmsg(self.outgoing.first()))
        except BlockingIOError:
            return

    def read(self) -> list[mqtt.Packet]:
        return self.reader.filled(self.socket.recv_into(self.reader.space()))


def run_bound(sessions: int, update_bytes: int, updates: int, root: Path) -> dict[str, Any]:
    """Move so many updates, one a session in turns; seconds are from the first byte to the last that arrives."""
    check_files(sessions)  # of this process and of the broker each
    pieces = [cut_chunk(bytes(update_bytes), index) for index in range(chunk_count(update_bytes))]
    with start_broker(None, root, kind="mosquitto") as broker:
        assert broker.process is not None
        parsed = parse_url(broker.url)
        address = (parsed.host, parsed.port)
        sink = _Client(address, "sink", READ_BYTES)
        sink.outgoing.append(mqtt.subscribe(1, (topics.upload_all(SITE),), 0))
        sink.write()
        clients = [_Client(address, f"dev-{number}", 256) for number in range(sessions)]
        before_s, began_s = running_s(broker.process.pid), time.monotonic()
        _move(sink, clients, pieces, updates)
        seconds = time.monotonic() - began_s
        used_s = running_s(broker.process.pid) - before_s
        for client in (sink, *clients):
            client.socket.close()
    return {
        "bound_updates_a_s": round(updates / seconds, 1),
        "bound_bytes_a_s": round(updates * update_bytes / seconds),
        "bound_broker_us_an_update": round(1e6 * used_s / updates, 1),
    }


def _move(sink: _Client, clients: list[_Client], pieces: list[bytes], updates: int) -> None:
    sent, arrived, total = 0, 0, updates * len(pieces)
    most = max(1, BUDGET_BYTES // sum(len(piece) for piece in pieces)) * len(pieces)
    unsent: set[_Client] = set()
    with selectors.DefaultSelector() as selector:
        selector.register(sink.socket, selectors.EVENT_READ)
        while arrived < total:
            while sent < total and sent - arrived < most:
                client = clients[sent // len(pieces) % len(clients)]
                index = sent % len(pieces)
                topic = topics.upload(SITE, f"dev-{sent}", "0" * 16, index)
                client.outgoing.append(mqtt.publish_head(topic, len(pieces[index])), pieces[index])
                client.write()
                if client.outgoing:
                    unsent.add(client)
                sent += 1
            for client in list(unsent):
                client.write()
                if not client.outgoing:
                    unsent.discard(client)
            if not selector.select(0.001 if unsent else WAIT_S) and not unsent:
                raise RuntimeError(f"mosquitto has dropped {total - arrived} of {total} messages")
            try:
                arrived += sum(isinstance(packet, mqtt.Message) for packet in sink.read())
            except BlockingIOError:
                continue
