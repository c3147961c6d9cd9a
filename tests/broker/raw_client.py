"""An MQTT 3.1.1 client that does exactly what a test says, byte for byte; no thread, every wait has a deadline."""

from __future__ import annotations

import itertools
import socket
import time
from typing import Any, Self, TypeVar

from coordinator.broker.packets import (
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    encode,
)
from coordinator.broker.parser import Parser

AnyPacket = TypeVar("AnyPacket", bound=Packet)
DEADLINE_S = 20.0


class ClosedByBrokerError(Exception):
    """The broker closed the connection."""


class RawClient:
    """A socket, a parser, and the packets that came and were not asked for yet."""

    def __init__(self, port: int, *, receive_buffer_bytes: int | None = None) -> None:
        self.sock = socket.socket()
        if receive_buffer_bytes is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.sock.settimeout(DEADLINE_S)
        self.sock.connect(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.inbox: list[Packet] = []
        self.ids = itertools.count(1)
        self._parser = Parser(1 << 28)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, packet: Packet | bytes) -> None:
        self.sock.sendall(packet if isinstance(packet, bytes) else encode(packet))

    def log_in(self, client_id: str, **fields: Any) -> Connack:
        self.send(Connect(client_id, **fields))
        return self.expect(Connack)

    def subscribe(self, *filters: tuple[str, int]) -> tuple[int, ...]:
        """Subscribe, and return the SUBACK's codes; messages that come first stay in the inbox."""
        packet_id = next(self.ids)
        self.send(Subscribe(packet_id, filters))
        answer = self.expect(Suback)
        assert answer.packet_id == packet_id
        return answer.codes

    def publish(self, topic: str, payload: bytes = b"", qos: int = 0, *, retain: bool = False) -> None:
        """Publish, and go through the whole acknowledgement."""
        packet_id = next(self.ids) if qos else 0
        self.send(Publish(topic, payload, qos, retain, dup=False, packet_id=packet_id))
        if qos == 1:
            assert self.expect(Puback).packet_id == packet_id
        elif qos == 2:
            assert self.expect(Pubrec).packet_id == packet_id
            self.send(Pubrel(packet_id))
            assert self.expect(Pubcomp).packet_id == packet_id
        else:
            self.settle()

    def expect(self, kind: type[AnyPacket]) -> AnyPacket:
        """Wait for the next packet of a type; others stay in the inbox, in order."""
        until_s = time.monotonic() + DEADLINE_S
        while True:
            for i, packet in enumerate(self.inbox):
                if isinstance(packet, kind):
                    del self.inbox[i]
                    return packet
            self._receive(until_s)

    def settle(self) -> None:
        """Wait until the broker has handled all that was sent, and sent all that was due: a ping is answered last."""
        self.send(Pingreq())
        self.expect(Pingresp)

    def messages(self) -> list[Publish]:
        """Take every message that is due to this client, acknowledging those that ask for it."""
        out = []
        while True:
            self.settle()
            due = [packet for packet in self.inbox if isinstance(packet, Publish)]
            if not due:
                return out
            for message in due:
                self.inbox.remove(message)
                self.acknowledge(message)
            out += due

    def next_message(self) -> Publish:
        """Wait for one message and acknowledge it."""
        message = self.expect(Publish)
        self.acknowledge(message)
        return message

    def acknowledge(self, message: Publish) -> None:
        if message.qos == 1:
            self.send(Puback(message.packet_id))
        elif message.qos == 2:
            self.send(Pubrec(message.packet_id))
            assert self.expect(Pubrel).packet_id == message.packet_id
            self.send(Pubcomp(message.packet_id))

    def disconnect(self) -> None:
        self.send(Disconnect())
        self.expect_close()

    def expect_close(self) -> None:
        """Wait until the broker closes the connection; packets before that go to the inbox."""
        until_s = time.monotonic() + DEADLINE_S
        try:
            while True:
                self._receive(until_s)
        except ClosedByBrokerError:
            self.sock.close()

    def _receive(self, until_s: float) -> None:
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(f"nothing within {DEADLINE_S} s; inbox: {self.inbox}")
        self.sock.settimeout(left_s)
        try:
            data = self.sock.recv(1 << 18)
        except ConnectionError as error:
            raise ClosedByBrokerError from error
        if not data:
            raise ClosedByBrokerError
        self.inbox.extend(self._parser.feed(data))
