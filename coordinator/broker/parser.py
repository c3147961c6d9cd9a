"""An incremental, strict parser of MQTT 3.1.1 packets. No I/O; caps are checked before anything is allocated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.broker import packets as p
from coordinator.broker.packets import MalformedPacket, Packet, PacketTooLarge, UnsupportedVersion
from coordinator.broker.topics import check_filter, check_topic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Parser"]

# Flags of the fixed header that the standard fixes (MQTT-2.2.2-2) where they are not 0; PUBLISH has its own.
_FIXED_FLAGS = {p.PUBREL: 2, p.SUBSCRIBE: 2, p.UNSUBSCRIBE: 2}

# A body's buffer grows as its bytes come, so that announcing a large packet and stalling costs little. The first step
# holds a chunk of 64 KB with its header; the next one, any packet under the default cap.
FIRST_BYTES = 72 * 1024
GROWTH = 4


class Parser:
    """Bytes in, packets out.

    It holds at most one unfinished packet: its header, then a body whose announced length is within the cap.

    Args:
        max_packet_bytes: Cap on the remaining length; may be changed between packets.
        only: The one packet type accepted now (CONNECT before login), or 0 for any; may be changed likewise.
    """

    __slots__ = ("_body", "_filled", "_first", "_length", "_shift", "max_packet_bytes", "only")

    def __init__(self, max_packet_bytes: int, only: int = 0) -> None:
        self.max_packet_bytes = max_packet_bytes
        self.only = only
        self._body: bytearray | None = None
        self._reset()

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[Packet]:
        """Yield the packets that these bytes complete, in order; payloads never refer to ``data``.

        The iterator must be run to its end, or the parser given up.

        Raises:
            MalformedPacket: After the packets before the broken one were yielded. The parser is then unusable.
        """
        view = memoryview(data)
        at, end = 0, len(view)
        while at < end:
            if self._body is not None:
                take = min(end - at, len(self._body) - self._filled)
                self._body[self._filled : self._filled + take] = view[at : at + take]
                at += take
                if (packet := self.filled(take)) is not None:
                    yield packet
                continue
            complete = self._header_byte(view[at])
            at += 1
            if not complete:
                continue
            length = self._length
            if end - at < length:
                self._body = bytearray(min(length, FIRST_BYTES))
                continue
            body = bytes(view[at : at + length])
            at += length
            yield self._finish(body)

    def space(self) -> memoryview | None:
        """Room in the body of an unfinished packet, for a socket to write into directly; None between packets.

        It must be released before :meth:`filled` is called, which may move the body.
        """
        return None if self._body is None else memoryview(self._body)[self._filled :]

    def filled(self, n_bytes: int) -> Packet | None:
        """Take note of bytes written into :meth:`space`.

        Returns:
            The packet they complete, if any.

        Raises:
            MalformedPacket: The packet breaks a rule.
        """
        self._filled += n_bytes
        body = self._body
        if body is None or self._filled < len(body):
            return None
        if len(body) == self._length:
            return self._finish(body)
        body.extend(bytes(min(self._length - len(body), GROWTH * len(body))))
        return None

    def _reset(self) -> None:
        self._first = -1
        self._length = 0
        self._shift = 0
        self._filled = 0
        self._body = None

    def _header_byte(self, byte: int) -> bool:
        """Take one byte of the fixed header; True when it was the last."""
        if self._first < 0:
            _check_first(byte, self.only)
            self._first = byte
            return False
        self._length |= (byte & 127) << self._shift
        self._shift += 7
        if byte & 128:
            if self._shift == 28:
                raise MalformedPacket("MQTT-2.2.3", "the remaining length has more than four bytes")
            return False
        if self._length > self.max_packet_bytes:
            raise PacketTooLarge(
                "packet size",
                f"{self._length} bytes announced, at most {self.max_packet_bytes} accepted here; send smaller packets "
                f"or raise {'--max-connect-kb' if self.only else '--max-packet-kb'}",
            )
        return True

    def _finish(self, body: bytes | bytearray) -> Packet:
        first = self._first
        self._reset()
        if first >> 4 == p.PUBLISH:
            return _publish(first & 15, body)
        return _DECODERS[first >> 4](body)


def _check_first(byte: int, only: int) -> None:
    kind, flags = byte >> 4, byte & 15
    if kind in {0, 15}:
        raise MalformedPacket("MQTT-2.2.1", f"packet type {kind} is reserved")
    if only and kind != only:
        raise MalformedPacket("MQTT-3.1.0-1", f"packet type {kind} came where only type {only} is allowed")
    if kind == p.PUBLISH:
        if flags & 6 == 6:
            raise MalformedPacket("MQTT-3.3.1-4", "a PUBLISH with QoS 3")
        if flags & 8 and not flags & 6:
            raise MalformedPacket("MQTT-3.3.1-2", "a PUBLISH with QoS 0 and the DUP flag")
    elif flags != _FIXED_FLAGS.get(kind, 0):
        raise MalformedPacket("MQTT-2.2.2-2", f"flags {flags:#x} on packet type {kind}")


class _Body:
    """A cursor over a body: every read is checked against its end."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes | bytearray) -> None:
        self._data = data
        self._at = 0

    def take(self, n_bytes: int) -> bytes | bytearray:
        end = self._at + n_bytes
        if end > len(self._data):
            raise MalformedPacket("MQTT-2.2.3", f"a field ends at byte {end} of a body of {len(self._data)}")
        out = self._data[self._at : end]
        self._at = end
        return out

    def u8(self) -> int:
        return self.take(1)[0]

    def u16(self) -> int:
        return int.from_bytes(self.take(2))

    def packet_id(self) -> int:
        value = self.u16()
        if value == 0:
            raise MalformedPacket("MQTT-2.3.1-1", "packet identifier 0")
        return value

    def binary(self) -> bytes:
        return bytes(self.take(self.u16()))

    def string(self) -> str:
        raw = self.take(self.u16())
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise MalformedPacket("MQTT-1.5.3-1", f"a string is not UTF-8 at byte {error.start}") from None
        if "\0" in text:
            raise MalformedPacket("MQTT-1.5.3-2", "a string holds U+0000")
        return text

    def rest(self) -> memoryview:
        return memoryview(self._data).toreadonly()[self._at :]

    def more(self) -> bool:
        return self._at < len(self._data)

    def end(self) -> None:
        if self.more():
            raise MalformedPacket("MQTT-2.2.3", f"{len(self._data) - self._at} bytes after the last field")


def _publish(flags: int, data: bytes | bytearray) -> p.Publish:
    body = _Body(data)
    topic = _checked("MQTT-3.3.2-2", check_topic, body.string())
    qos = flags >> 1 & 3
    packet_id = body.packet_id() if qos else 0
    return p.Publish(topic, body.rest(), qos, bool(flags & 1), bool(flags & 8), packet_id)


def _checked(rule: str, check: Callable[[str], None], text: str) -> str:
    try:
        check(text)
    except ValueError as error:
        raise MalformedPacket(rule, str(error)) from None
    return text


def _connect(data: bytes | bytearray) -> p.Connect:
    body = _Body(data)
    name, level = body.string(), body.u8()
    if (name, level) != ("MQTT", 4):
        if name not in {"MQTT", "MQIsdp"}:
            raise MalformedPacket("MQTT-3.1.2-1", f"the protocol name is {name!r}, not 'MQTT'")
        raise UnsupportedVersion("MQTT-3.1.2-2", f"protocol level {level}; this broker speaks 3.1.1 (level 4)")
    flags, keepalive_s = body.u8(), body.u16()
    _check_connect_flags(flags)
    client_id = body.string()
    will = None
    if flags & 4:
        topic = _checked("MQTT-3.3.2-2", check_topic, body.string())
        will = p.Will(topic, body.binary(), flags >> 3 & 3, bool(flags & 32))
    username = body.string() if flags & 128 else None
    password = body.binary() if flags & 64 else None
    body.end()
    return p.Connect(client_id, bool(flags & 2), keepalive_s, will, username, password)


def _check_connect_flags(flags: int) -> None:
    if flags & 1:
        raise MalformedPacket("MQTT-3.1.2-3", "the reserved connect flag is set")
    if flags & 4 and flags & 24 == 24:
        raise MalformedPacket("MQTT-3.1.2-14", "a will with QoS 3")
    if not flags & 4 and flags & 56:
        raise MalformedPacket("MQTT-3.1.2-13", "will QoS or will retain without a will")
    if flags & 64 and not flags & 128:
        raise MalformedPacket("MQTT-3.1.2-22", "a password without a user name")


def _connack(data: bytes | bytearray) -> p.Connack:
    body = _Body(data)
    present, code = body.u8(), body.u8()
    body.end()
    if present > 1 or code > p.NOT_AUTHORISED or (present and code):
        raise MalformedPacket("MQTT-3.2.2", f"session present {present} with return code {code}")
    return p.Connack(bool(present), code)


def _id_only(make: Callable[[int], Packet]) -> Callable[[bytes | bytearray], Packet]:
    def decode(data: bytes | bytearray) -> Packet:
        body = _Body(data)
        packet_id = body.packet_id()
        body.end()
        return make(packet_id)

    return decode


def _subscribe(data: bytes | bytearray) -> p.Subscribe:
    body = _Body(data)
    packet_id = body.packet_id()
    filters = []
    while body.more():
        name, qos = _checked("MQTT-4.7.1", check_filter, body.string()), body.u8()
        if qos > 2:
            raise MalformedPacket("MQTT-3.8.3-4", f"requested QoS byte {qos:#x}")
        filters.append((name, qos))
    if not filters:
        raise MalformedPacket("MQTT-3.8.3-3", "a SUBSCRIBE without a filter")
    return p.Subscribe(packet_id, tuple(filters))


def _suback(data: bytes | bytearray) -> p.Suback:
    body = _Body(data)
    packet_id, codes = body.packet_id(), tuple(body.rest())
    if not codes or any(code > 2 and code != p.SUBSCRIBE_FAILED for code in codes):
        raise MalformedPacket("MQTT-3.9.3-2", f"return codes {codes[:8]}")
    return p.Suback(packet_id, codes)


def _unsubscribe(data: bytes | bytearray) -> p.Unsubscribe:
    body = _Body(data)
    packet_id = body.packet_id()
    filters = []
    while body.more():
        filters.append(_checked("MQTT-4.7.1", check_filter, body.string()))
    if not filters:
        raise MalformedPacket("MQTT-3.10.3-2", "an UNSUBSCRIBE without a filter")
    return p.Unsubscribe(packet_id, tuple(filters))


def _empty(make: Callable[[], Packet]) -> Callable[[bytes | bytearray], Packet]:
    def decode(data: bytes | bytearray) -> Packet:
        _Body(data).end()
        return make()

    return decode


_DECODERS: dict[int, Callable[[bytes | bytearray], Packet]] = {
    p.CONNECT: _connect,
    p.CONNACK: _connack,
    p.PUBACK: _id_only(p.Puback),
    p.PUBREC: _id_only(p.Pubrec),
    p.PUBREL: _id_only(p.Pubrel),
    p.PUBCOMP: _id_only(p.Pubcomp),
    p.SUBSCRIBE: _subscribe,
    p.SUBACK: _suback,
    p.UNSUBSCRIBE: _unsubscribe,
    p.UNSUBACK: _id_only(p.Unsuback),
    p.PINGREQ: _empty(p.Pingreq),
    p.PINGRESP: _empty(p.Pingresp),
    p.DISCONNECT: _empty(p.Disconnect),
}
