"""MQTT 3.1.1 as a gateway speaks it: packets to bytes and bytes to packets; no sockets, no clock.

Clean sessions, QoS 0 and 1. What may come from a broker is CONNACK, PUBLISH of QoS 0 or 1, PUBACK, SUBACK, UNSUBACK and
PINGRESP; anything else, a length that does not fit, or a packet over the cap is a BadPacket, after which the connection
is of no use. Rule numbers are those of the OASIS standard.
"""

from collections import deque
from dataclasses import dataclass

from edge_runtime.errors import RemoteError
from edge_runtime.link_events import Message

__all__ = [
    "DISCONNECT",
    "MAX_PACKET_BYTES",
    "PINGREQ",
    "BadPacket",
    "Connack",
    "Login",
    "Outgoing",
    "Packet",
    "Pingresp",
    "Puback",
    "Reader",
    "Suback",
    "Unsuback",
    "connect",
    "publish_head",
    "subscribe",
    "unsubscribe",
]

PINGREQ = b"\xc0\x00"
DISCONNECT = b"\xe0\x00"
# As the generated mosquitto.conf has it: several times a chunk of 64 KiB, the largest thing that is sent.
MAX_PACKET_BYTES = 400_000

_CLEAN_SESSION = 0x02
_WILL_QOS1_RETAINED = 0x2C
_PASSWORD, _USER = 0x40, 0x80
# Smaller payloads are joined with their head: copying costs less than one more buffer in a system call.
_JOIN_BYTES = 4096
_JOINED_BYTES = 65_536
_MAX_BUFFERS = 64


class BadPacket(RemoteError):
    """What the broker sent is no packet that may come here."""


@dataclass(frozen=True, slots=True)
class Connack:
    """The answer to CONNECT: 0 accepts."""

    code: int


@dataclass(frozen=True, slots=True)
class Puback:
    """The broker has a message of QoS 1."""

    packet_id: int


@dataclass(frozen=True, slots=True)
class Suback:
    """The answer to SUBSCRIBE: a code a topic, 0x80 for one that is not granted."""

    packet_id: int
    codes: bytes


@dataclass(frozen=True, slots=True)
class Unsuback:
    """The answer to UNSUBSCRIBE."""


@dataclass(frozen=True, slots=True)
class Pingresp:
    """The broker is there."""


Packet = Message | Connack | Puback | Suback | Unsuback | Pingresp
_UNSUBACK, _PINGRESP = Unsuback(), Pingresp()


@dataclass(frozen=True)
class Login:
    """User name and password, of which the latter may be missing."""

    user: str
    password: str | None


def connect(client_id: str, keepalive_s: int, will: tuple[str, bytes] | None, login: Login | None) -> bytes:
    """CONNECT with a clean session; the will is (topic, payload), retained, QoS 1."""
    flags, fields = _CLEAN_SESSION, [_string(client_id)]
    if will is not None:
        flags |= _WILL_QOS1_RETAINED
        fields += [_string(will[0]), len(will[1]).to_bytes(2, "big"), will[1]]
    if login is not None:
        flags |= _USER
        fields.append(_string(login.user))
        if login.password is not None:
            flags |= _PASSWORD
            fields.append(_string(login.password))
    body = b"".join([_string("MQTT"), bytes((4, flags)), keepalive_s.to_bytes(2, "big"), *fields])
    return b"\x10" + _varint(len(body)) + body


def publish_head(topic: str, payload_bytes: int, packet_id: int = 0, *, retain: bool = False) -> bytes:
    """PUBLISH up to where the payload begins; QoS 1 where there is a packet id, else 0."""
    name = topic.encode()
    first = 0x30 | (2 if packet_id else 0) | retain
    length = 2 + len(name) + payload_bytes
    if not packet_id:
        return b"%c%b%b%b" % (first, _varint(length), len(name).to_bytes(2, "big"), name)
    return b"%c%b%b%b%b" % (
        first,
        _varint(length + 2),
        len(name).to_bytes(2, "big"),
        name,
        packet_id.to_bytes(2, "big"),
    )


def subscribe(packet_id: int, topics: tuple[str, ...], qos: int) -> bytes:
    """SUBSCRIBE to topics, all with the same QoS."""
    body = packet_id.to_bytes(2, "big") + b"".join(_string(topic) + bytes((qos,)) for topic in topics)
    return b"\x82" + _varint(len(body)) + body


def unsubscribe(packet_id: int, topics: tuple[str, ...]) -> bytes:
    """UNSUBSCRIBE from topics."""
    body = packet_id.to_bytes(2, "big") + b"".join(_string(topic) for topic in topics)
    return b"\xa2" + _varint(len(body)) + body


class Reader:
    """Packets out of a stream of bytes, in one buffer that a socket fills.

    Take space(), have the socket write there, and say how much came to filled(). The buffer grows to the largest packet
    that was announced, at most the cap; a packet's payload is copied out of it once.

    Attributes:
        acks: PUBACKs of the messages of QoS 1 that were read; the owner sends and clears them.
    """

    def __init__(self, buffer_bytes: int, max_packet_bytes: int = MAX_PACKET_BYTES) -> None:
        self.acks = bytearray()
        self._max_bytes = max_packet_bytes
        self._buffer = bytearray(buffer_bytes)
        self._view = memoryview(self._buffer)
        self._end = 0

    def space(self) -> memoryview:
        """Where the next bytes of the stream go; never empty."""
        return self._view[self._end :]

    def filled(self, count: int) -> list[Packet]:
        """Take `count` bytes that were written into space(), and give the packets that are complete.

        Raises:
            BadPacket: Bytes that are no packet; the reader is of no further use.
        """
        packets: list[Packet] = []
        buffer, at, end = self._buffer, 0, self._end + count
        wanted = 2
        while end - at >= 2:
            length, body = buffer[at + 1], at + 2
            if length > 127:
                length, body = _long_length(buffer, at, end)
                if body < 0:
                    break
            if body + length > end:
                wanted = body + length - at
                break
            packets.append(self._packet(buffer[at], body, body + length))
            at = body + length
        self._keep(at, end, wanted)
        return packets

    def _keep(self, at: int, end: int, wanted_bytes: int) -> None:
        """Move the rest to the front of a buffer that the packet it begins fits into."""
        if wanted_bytes > self._max_bytes:
            raise BadPacket(f"a packet of {wanted_bytes} bytes; at most {self._max_bytes} are taken")
        rest = self._view[at:end]
        if wanted_bytes > len(self._buffer):
            self._buffer = bytearray(wanted_bytes)
            self._view = memoryview(self._buffer)
        self._view[: end - at] = rest
        self._end = end - at

    def _packet(self, first: int, begin: int, end: int) -> Packet:
        if first >> 4 == 3:
            return self._message(first, begin, end)
        body = bytes(self._view[begin:end])
        match first, len(body):
            case 0x20, 2:
                return Connack(body[1])
            case 0x40, 2:
                return Puback(body[0] << 8 | body[1])
            case 0x90, length if length > 2:
                return Suback(body[0] << 8 | body[1], body[2:])
            case 0xB0, 2:
                return _UNSUBACK
            case 0xD0, 0:
                return _PINGRESP
        raise BadPacket(f"a packet that begins with {first:#04x} and {len(body)} bytes may not come from a broker")

    def _message(self, first: int, begin: int, end: int) -> Message:
        buffer, view = self._buffer, self._view
        qos = first >> 1 & 3
        if end - begin < 2:
            raise BadPacket("PUBLISH ends before its topic")
        topic_end = begin + 2 + (buffer[begin] << 8 | buffer[begin + 1])
        payload = topic_end + (2 if qos else 0)
        if payload > end or qos > 1:
            raise BadPacket("PUBLISH ends before its payload" if qos < 2 else f"PUBLISH of QoS {qos} was not asked for")
        if qos:
            self.acks += b"\x40\x02"
            self.acks += view[topic_end:payload]
        try:
            topic = str(view[begin + 2 : topic_end], "utf-8")
        except UnicodeDecodeError:
            topic = ""  # no topic of any protocol is empty, so whoever reads it will say so
        return Message(topic, bytes(view[payload:end]), bool(first & 1))


class Outgoing:
    """Bytes that wait for the socket, in order: at most 64 buffers go into one system call."""

    def __init__(self) -> None:
        self._buffers: deque[bytes | bytearray | memoryview] = deque()

    def __bool__(self) -> bool:
        return bool(self._buffers)

    def append(self, head: bytes, payload: bytes = b"") -> None:
        """Add a packet, or its head and its payload."""
        if len(payload) >= _JOIN_BYTES:
            self._buffers += (head, payload)
            return
        last = self._buffers[-1] if self._buffers else None
        if not isinstance(last, bytearray) or len(last) > _JOINED_BYTES:
            last = bytearray()
            self._buffers.append(last)
        last += head
        last += payload

    def first(self) -> list[bytes | bytearray | memoryview]:
        """What to write next."""
        buffers = self._buffers
        return [buffers[i] for i in range(min(len(buffers), _MAX_BUFFERS))]

    def sent(self, count: int) -> None:
        """Take away bytes that the socket has accepted."""
        while count:
            buffer = self._buffers.popleft()
            if count < len(buffer):
                self._buffers.appendleft(memoryview(buffer)[count:])
                return
            count -= len(buffer)


def _string(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(2, "big") + data


def _varint(length: int) -> bytes:
    if length < 128:
        return b"%c" % length
    parts = bytearray()
    while length > 127:
        parts.append(length & 127 | 128)
        length >>= 7
    parts.append(length)
    return bytes(parts)


def _long_length(buffer: bytearray, at: int, end: int) -> tuple[int, int]:
    """A remaining length of two bytes or more (2.2.3): (its value, where the body begins), or (0, -1) if cut off."""
    length = 0
    for place in range(4):
        if at + 1 + place >= end:
            return 0, -1
        byte = buffer[at + 1 + place]
        length |= (byte & 127) << 7 * place
        if byte < 128:
            return length, at + 2 + place
    raise BadPacket("a remaining length of more than four bytes")
