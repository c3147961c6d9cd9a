"""The client library that boards use, against both brokers; the test drives its loop, there is no thread."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import paho.mqtt.client as paho
import pytest
from broker.conftest import KINDS, port_of

from coordinator.broker import start_broker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DEADLINE_S = 20.0


class Board:
    """A paho client without a thread, and what it was told."""

    def __init__(self, client_id: str, *, clean: bool = True) -> None:
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id, clean_session=clean)
        self.messages: list[tuple[str, bytes, int, bool]] = []
        self.connects: list[bool] = []  # session present
        self.closes = 0
        self.granted: list[int] = []
        self.client.on_message = self._on_message
        self.client.on_connect = self._on_connect
        self.client.on_disconnect = self._on_disconnect
        self.client.on_subscribe = self._on_subscribe

    def connect(self, port: int) -> None:
        wanted = len(self.connects) + 1
        self.client.connect("127.0.0.1", port, keepalive=5)
        self.run_until(lambda: len(self.connects) == wanted)

    def run_until(self, done: Callable[[], bool]) -> None:
        until_s = time.monotonic() + DEADLINE_S
        while not done():
            assert time.monotonic() < until_s
            self.client.loop(0.05)

    def subscribe(self, *filters: tuple[str, int]) -> None:
        wanted = len(self.granted) + len(filters)
        self.client.subscribe(list(filters))
        self.run_until(lambda: len(self.granted) == wanted)

    def publish(self, topic: str, payload: bytes, qos: int, *, retain: bool = False) -> None:
        self.run_until(self.client.publish(topic, payload, qos, retain).is_published)

    def _on_message(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        self.messages.append((message.topic, message.payload, message.qos, message.retain))

    def _on_connect(self, _client: paho.Client, _data: Any, flags: Any, reason: Any, _properties: Any) -> None:
        assert not reason.is_failure, reason
        self.connects.append(flags.session_present)

    def _on_disconnect(self, *_: Any) -> None:
        self.closes += 1

    def _on_subscribe(self, _client: paho.Client, _data: Any, _mid: int, reasons: list[Any], _properties: Any) -> None:
        self.granted += [reason.value for reason in reasons]


@pytest.fixture
def board(port: int) -> Iterator[Callable[..., Board]]:
    made = []

    def connect(client_id: str, *, clean: bool = True) -> Board:
        made.append(Board(client_id, clean=clean))
        made[-1].connect(port)
        return made[-1]

    yield connect
    for one in made:
        one.client.disconnect()


def test_every_qos_arrives_once_and_in_order(board: Callable[..., Board], name: str) -> None:
    reader, writer = board(f"{name}r"), board(f"{name}w")
    reader.subscribe((f"{name}/#", 2))
    assert reader.granted == [2]
    for number in range(30):
        writer.publish(f"{name}/{number % 3}", b"%d" % number, number % 3)
    reader.run_until(lambda: len(reader.messages) == 30)
    for qos in range(3):
        assert [int(payload) for _, payload, q, _ in reader.messages if q == qos] == list(range(qos, 30, 3))


def test_a_blob_is_pulled_in_retained_chunks(board: Callable[..., Board], name: str) -> None:
    writer, reader = board(f"{name}w"), board(f"{name}r")
    for number in range(8):
        writer.publish(f"{name}/{number}", bytes([number]) * 65_540, 1, retain=True)
    reader.subscribe(*((f"{name}/{number}", 1) for number in range(8)))
    reader.run_until(lambda: len(reader.messages) == 8)
    assert sorted(reader.messages) == [(f"{name}/{n}", bytes([n]) * 65_540, 1, True) for n in range(8)]


def test_a_stored_session_hands_out_what_came_meanwhile(board: Callable[..., Board], name: str, port: int) -> None:
    reader, writer = board(f"{name}r", clean=False), board(f"{name}w")
    reader.subscribe((name, 1))
    reader.client.disconnect()
    for number in range(50):
        writer.publish(name, b"%d" % number, 1)
    reader.connect(port)
    reader.run_until(lambda: len(reader.messages) == 50)
    assert [int(payload) for _, payload, _, _ in reader.messages] == list(range(50))
    assert reader.connects == [False, True]


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_finds_the_broker_again_after_it_was_killed(kind: str, tmp_path: Path) -> None:
    with start_broker(None, tmp_path, kind=kind) as broker:
        board = Board("board")
        board.connect(port_of(broker.url))
        broker.kill()
        board.run_until(lambda: board.closes == 1)
        broker.restart()
        board.connect(port_of(broker.url))
        board.subscribe(("t", 1))
        board.publish("t", b"back", 1)
        board.run_until(lambda: bool(board.messages))
        assert board.messages == [("t", b"back", 1, False)]
        board.client.disconnect()
