"""What a bad network or a bad relay does to MQTT packets: pure, seeded, one object a direction of a connection.

TCP neither repeats nor reorders bytes, so a fault that ends see must be made of whole packets. Two promises of every
MQTT broker are kept, for without them no protocol over MQTT could work: the order of messages within a topic (MQTT
3.1.1, 4.6), and the delivery of QoS 1 messages. One may come twice, late, shortened or with wrong bits; it comes.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, fields

__all__ = ["CALM", "Frames", "Harm", "Odds", "Passed", "Publication", "client_id_of", "parse_publish"]

CONNECT, PUBLISH, DISCONNECT = 1, 3, 14
MAX_REMAINING_BYTES = 268_435_455
LATE_S = (0.02, 0.4)


class NotMqtt(ValueError):
    """Bytes that cannot be cut into MQTT packets."""


@dataclass(frozen=True)
class Odds:
    """The chance of each fault for a PUBLISH packet; at most one strikes a packet.

    duplicate: sent twice, the second time with the DUP flag where QoS is 1. late: overtaken by what follows on other
    topics. drop: QoS 0 only. truncate: the payload loses its end, in a valid frame. corrupt: 1 to 8 bits of the payload
    flip. garble: a bit of the frame itself flips (type, flags, lengths).
    """

    duplicate: float = 0.0
    late: float = 0.0
    drop: float = 0.0
    truncate: float = 0.0
    corrupt: float = 0.0
    garble: float = 0.0


CALM = Odds()


@dataclass(frozen=True)
class Publication:
    """Where the parts of a PUBLISH packet begin, and what it is about."""

    topic: bytes
    qos: int
    head_bytes: int
    payload_at: int


@dataclass(frozen=True)
class Passed:
    """Bytes to hand on, `late_s` after their turn; `topic` keeps its own order, and nothing overtakes a `last` one."""

    data: bytes
    topic: bytes | None = None
    late_s: float = 0.0
    last: bool = False


class Frames:
    """Cuts a stream of bytes into whole MQTT packets."""

    def __init__(self) -> None:
        self._kept = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The packets that are whole now.

        Raises:
            NotMqtt: A packet's length cannot be read.
        """
        self._kept += data
        packets: list[bytes] = []
        while (size := _packet_bytes(self._kept)) is not None and size <= len(self._kept):
            packets.append(bytes(self._kept[:size]))
            del self._kept[:size]
        return packets


def _packet_bytes(data: bytearray) -> int | None:
    """The whole length of the packet that begins here; None while its head is not whole."""
    remaining = 0
    for place in range(4):
        if len(data) < 2 + place:
            return None
        remaining |= (data[1 + place] & 0x7F) << 7 * place
        if not data[1 + place] & 0x80:
            return 2 + place + remaining
    raise NotMqtt("a remaining length of more than four bytes")


def parse_publish(packet: bytes) -> Publication | None:
    """What a packet publishes; None where it is another packet."""
    if packet[0] >> 4 != PUBLISH:
        return None
    head_bytes = 1 + next(place for place in range(1, 5) if not packet[place] & 0x80)
    (topic_bytes,) = struct.unpack_from(">H", packet, head_bytes)
    qos = packet[0] >> 1 & 3
    topic_at = head_bytes + 2
    topic = packet[topic_at : topic_at + topic_bytes]
    return Publication(topic, qos, head_bytes, topic_at + topic_bytes + (2 if qos else 0))


def client_id_of(packet: bytes) -> str:
    """The client id of a CONNECT packet.

    Raises:
        NotMqtt: It is another packet.
    """
    if packet[0] >> 4 != CONNECT:
        raise NotMqtt(f"a connection that begins with packet type {packet[0] >> 4}")
    head_bytes = 1 + next(place for place in range(1, 5) if not packet[place] & 0x80)
    (name_bytes,) = struct.unpack_from(">H", packet, head_bytes)
    at = head_bytes + 2 + name_bytes + 4  # level, flags, keepalive
    (id_bytes,) = struct.unpack_from(">H", packet, at)
    return packet[at + 2 : at + 2 + id_bytes].decode()


class Harm:
    """One direction of one connection: what becomes of each of its packets."""

    def __init__(self, seed: str, odds: Odds) -> None:
        self.odds = odds
        self._chance = random.Random(seed)  # noqa: S311  a schedule, not a secret

    def pass_on(self, packet: bytes) -> tuple[str, list[Passed]]:
        """The fault that struck, "" for none, and what is handed on."""
        publication = parse_publish(packet)
        if publication is None:
            return "", [Passed(packet, last=packet[0] >> 4 == DISCONNECT)]
        fault = self._draw(publication, len(packet))
        return fault, self._made(fault, packet, publication)

    def _draw(self, publication: Publication, size: int) -> str:
        drawn = self._chance.random()
        for each in fields(self.odds):
            drawn -= getattr(self.odds, each.name)
            if drawn < 0:
                return each.name if _fits(each.name, publication, size) else ""
        return ""

    def _made(self, fault: str, packet: bytes, publication: Publication) -> list[Passed]:  # noqa: PLR0911  one a fault
        topic, chance = publication.topic, self._chance
        match fault:
            case "duplicate":
                again = bytes([packet[0] | (0x08 if publication.qos else 0)]) + packet[1:]
                return [Passed(packet, topic), Passed(again, topic)]
            case "late":
                return [Passed(packet, topic, late_s=chance.uniform(*LATE_S))]
            case "drop":
                return []
            case "truncate":
                kept = chance.randrange(publication.payload_at, len(packet))
                return [Passed(_with_length(packet[:kept], publication), topic)]
            case "corrupt":
                bits = [
                    chance.randrange(8 * publication.payload_at, 8 * len(packet)) for _ in range(chance.randint(1, 8))
                ]
                return [Passed(_flipped(packet, bits), topic)]
            case "garble":
                return [Passed(_flipped(packet, [chance.randrange(8 * (publication.head_bytes + 2))]), topic)]
            case _:
                return [Passed(packet, topic)]


def _fits(fault: str, publication: Publication, size: int) -> bool:
    if fault == "drop":
        return publication.qos == 0
    return fault not in {"truncate", "corrupt"} or size > publication.payload_at


def _with_length(packet: bytes, publication: Publication) -> bytes:
    """A shortened packet with the remaining length it has now."""
    remaining, length = len(packet) - publication.head_bytes, bytearray()
    while True:
        remaining, digit = remaining >> 7, remaining & 0x7F
        length.append(digit | (0x80 if remaining else 0))
        if not remaining:
            return packet[:1] + bytes(length) + packet[publication.head_bytes :]


def _flipped(packet: bytes, bits: list[int]) -> bytes:
    data = bytearray(packet)
    for bit in set(bits):
        data[bit // 8] ^= 1 << bit % 8
    return bytes(data)
