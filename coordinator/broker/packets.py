"""MQTT 3.1.1 control packets as values, and their bytes. No I/O.

Rule names such as ``MQTT-3.3.1-4`` are the numbers of the normative statements of the OASIS MQTT 3.1.1 standard.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

__all__ = [
    "Connack",
    "Connect",
    "Disconnect",
    "MalformedPacket",
    "Packet",
    "PacketTooLarge",
    "Pingreq",
    "Pingresp",
    "Puback",
    "Pubcomp",
    "Publish",
    "Pubrec",
    "Pubrel",
    "Suback",
    "Subscribe",
    "Unsuback",
    "Unsubscribe",
    "UnsupportedVersion",
    "Will",
    "encode",
    "publish_head",
]

CONNECT, CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP = 1, 2, 3, 4, 5, 6, 7
SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK, PINGREQ, PINGRESP, DISCONNECT = 8, 9, 10, 11, 12, 13, 14

ACCEPTED, BAD_VERSION, BAD_CLIENT_ID, UNAVAILABLE, BAD_LOGIN, NOT_AUTHORISED = 0, 1, 2, 3, 4, 5
SUBSCRIBE_FAILED = 0x80

MAX_REMAINING_BYTES = 268_435_455
MAX_STRING_BYTES = 65_535


class MalformedPacket(ValueError):
    """Bytes that are not an MQTT 3.1.1 packet; ``rule`` names the broken statement of the standard."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(f"{rule}: {message}")
        self.rule = rule


class PacketTooLarge(MalformedPacket):
    """A packet announces more bytes than this receiver accepts."""


class UnsupportedVersion(MalformedPacket):
    """A CONNECT for another protocol level; the answer is CONNACK 1."""


@dataclass(frozen=True, slots=True)
class Will:
    """The message a client leaves to be published when its connection ends without DISCONNECT."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False


@dataclass(frozen=True, slots=True)
class Connect:
    """A client's first packet. ``keepalive_s`` 0 means no keep-alive."""

    client_id: str
    clean_session: bool = True
    keepalive_s: int = 0
    will: Will | None = None
    username: str | None = None
    password: bytes | None = None


@dataclass(frozen=True, slots=True)
class Connack:
    """The answer to CONNECT; ``code`` 0 accepts, 1 to 5 refuse."""

    session_present: bool
    code: int


@dataclass(frozen=True, slots=True)
class Publish:
    """An application message. ``packet_id`` is 0 when and only when ``qos`` is 0."""

    topic: str
    payload: bytes | memoryview
    qos: int = 0
    retain: bool = False
    dup: bool = False
    packet_id: int = 0


@dataclass(frozen=True, slots=True)
class Puback:
    """Ends a QoS 1 delivery."""

    packet_id: int


@dataclass(frozen=True, slots=True)
class Pubrec:
    """First answer in a QoS 2 delivery."""

    packet_id: int


@dataclass(frozen=True, slots=True)
class Pubrel:
    """Second message of a QoS 2 delivery's sender."""

    packet_id: int


@dataclass(frozen=True, slots=True)
class Pubcomp:
    """Ends a QoS 2 delivery."""

    packet_id: int


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Asks for filters, each with a maximum QoS."""

    packet_id: int
    filters: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Suback:
    """One code a filter: the granted QoS, or 0x80."""

    packet_id: int
    codes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Gives filters back."""

    packet_id: int
    filters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Unsuback:
    """Confirms UNSUBSCRIBE."""

    packet_id: int


@dataclass(frozen=True, slots=True)
class Pingreq:
    """A sign of life."""


@dataclass(frozen=True, slots=True)
class Pingresp:
    """The answer to PINGREQ."""


@dataclass(frozen=True, slots=True)
class Disconnect:
    """A clean goodbye; the will is forgotten."""


Packet = (
    Connect
    | Connack
    | Publish
    | Puback
    | Pubrec
    | Pubrel
    | Pubcomp
    | Subscribe
    | Suback
    | Unsubscribe
    | Unsuback
    | Pingreq
    | Pingresp
    | Disconnect
)


def encode(packet: Packet) -> bytes:
    """Write a packet. The caller vouches for topics, filters and QoS values; lengths are checked.

    Args:
        packet: Any control packet.

    Returns:
        Its bytes.

    Raises:
        ValueError: A string is longer than 65,535 bytes, or the packet than 268,435,460.
    """
    match packet:
        case Publish():
            head = publish_head(
                packet.topic.encode(), len(packet.payload), packet.qos, packet.packet_id, packet.retain, packet.dup
            )
            return head + packet.payload
        case Connect():
            body = _connect_body(packet)
        case Connack():
            body = bytes((packet.session_present, packet.code))
        case Subscribe():
            body = packet.packet_id.to_bytes(2) + b"".join(_string(f) + bytes((q,)) for f, q in packet.filters)
        case Suback():
            body = packet.packet_id.to_bytes(2) + bytes(packet.codes)
        case Unsubscribe():
            body = packet.packet_id.to_bytes(2) + b"".join(map(_string, packet.filters))
        case Pingreq() | Pingresp() | Disconnect():
            body = b""
        case _:
            body = packet.packet_id.to_bytes(2)
    return bytes((_FIRST_BYTE[type(packet)],)) + _length(len(body)) + body


_FIRST_BYTE: dict[type, int] = {
    Connect: CONNECT << 4,
    Connack: CONNACK << 4,
    Puback: PUBACK << 4,
    Pubrec: PUBREC << 4,
    Pubrel: PUBREL << 4 | 2,
    Pubcomp: PUBCOMP << 4,
    Subscribe: SUBSCRIBE << 4 | 2,
    Suback: SUBACK << 4,
    Unsubscribe: UNSUBSCRIBE << 4 | 2,
    Unsuback: UNSUBACK << 4,
    Pingreq: PINGREQ << 4,
    Pingresp: PINGRESP << 4,
    Disconnect: DISCONNECT << 4,
}


def publish_head(  # noqa: PLR0913, PLR0917 - the fields of the packet, on the hot path
    topic_utf8: bytes,
    payload_bytes: int,
    qos: int,
    packet_id: int,
    retain: bool,  # noqa: FBT001 - a flag of the packet
    dup: bool,  # noqa: FBT001 - a flag of the packet
) -> bytes:
    """Write all of a PUBLISH but its payload, so that one payload buffer serves every subscriber.

    Args:
        topic_utf8: Encoded topic name, 1 to 65,535 bytes.
        payload_bytes: Length of the payload that follows.
        qos: 0, 1 or 2.
        packet_id: 1 to 65,535; not written when ``qos`` is 0.
        retain: The RETAIN flag.
        dup: The DUP flag.

    Raises:
        ValueError: The packet would be longer than MQTT allows.
    """
    tail = packet_id.to_bytes(2) if qos else b""
    length = _length(2 + len(topic_utf8) + len(tail) + payload_bytes)
    first = PUBLISH << 4 | dup << 3 | qos << 1 | retain
    return b"%c%b%b%b%b" % (first, length, len(topic_utf8).to_bytes(2), topic_utf8, tail)


def _connect_body(packet: Connect) -> bytes:
    will = packet.will
    flags = packet.clean_session << 1
    if will is not None:
        flags |= 4 | will.qos << 3 | will.retain << 5
    flags |= (packet.password is not None) << 6 | (packet.username is not None) << 7
    parts = [b"\x00\x04MQTT\x04", struct.pack(">BH", flags, packet.keepalive_s), _string(packet.client_id)]
    if will is not None:
        parts += [_string(will.topic), _binary(will.payload)]
    if packet.username is not None:
        parts.append(_string(packet.username))
    if packet.password is not None:
        parts.append(_binary(packet.password))
    return b"".join(parts)


def _length(value: int) -> bytes:
    """Remaining length: seven bits a byte, least significant first."""
    if value < 128:
        return bytes((value,))
    if value > MAX_REMAINING_BYTES:
        raise ValueError(f"a packet of {value} bytes is over MQTT's {MAX_REMAINING_BYTES}; send smaller messages")
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _string(text: str) -> bytes:
    return _binary(text.encode())


def _binary(data: bytes) -> bytes:
    if len(data) > MAX_STRING_BYTES:
        raise ValueError(f"a field of {len(data)} bytes is over MQTT's {MAX_STRING_BYTES}; shorten it")
    return len(data).to_bytes(2) + data
