"""A socket for paho-mqtt that keeps the payload of a large message to itself, so that a chunk is in memory once.

paho holds a PUBLISH as it came, and copies of what is left of it behind the topic's length, behind the topic and behind
the number: up to three chunks at one time for one. Here it gets the same packet without the payload, which it confirms
and reports as ever, and the payload waits where the socket has written it. Of paho nothing is relied on but that it
reads packets one by one, with recv().
"""

import io
import socket
from typing import NamedTuple

__all__ = ["PayloadSocket"]

# Chunks are; what is longer than anything of this protocol takes memory as it comes, in paho.
LARGE_BYTES, LARGEST_BYTES = 1 << 14, 1 << 17
_PUBLISH, _QOS, _QOS_2 = 0x30, 0x06, 0x04
_MAX_LENGTH_DIGITS = 4


class PayloadSocket:
    """A connected socket as paho sees it: every packet as it came, but for the payloads of large PUBLISH packets."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._head = bytearray()
        self._ready = b""  # for paho, before the _left bytes that it reads straight from the socket
        self._left = 0
        self._payload: io.BytesIO | None = None
        self._filled = 0
        self._whole: bytes | None = None

    def take(self) -> bytes | None:
        """The payload of the PUBLISH that paho reports, if it was kept from it; it is forgotten here."""
        whole, self._whole = self._whole, None
        return whole

    def recv(self, size: int) -> bytes:
        """Give paho at most `size` bytes, none at the end; BlockingIOError until there is something for it."""
        if not self._ready and not self._left and not self._next():
            return b""
        if self._ready:
            data, self._ready = self._ready[:size], self._ready[size:]
        else:
            data = self._sock.recv(min(size, self._left))
            self._left = self._left - len(data)
        return data

    def send(self, data: bytes | bytearray) -> int:
        """Send as much as there is room for."""
        return self._sock.send(data)

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def fileno(self) -> int:
        """The socket's number."""
        return self._sock.fileno()

    def setblocking(self, flag: bool) -> None:  # noqa: FBT001 named by the socket's own
        """Have calls wait, or not."""
        self._sock.setblocking(flag)

    def _next(self) -> bool:
        """Read on until something is ready for paho; False at the end."""
        if not self._head:
            self._whole = None  # of a packet that paho has not reported, as one with a topic that is none
        while (outline := _outline(self._head)).lacking:
            data = self._sock.recv(outline.lacking)
            if not data:
                return False
            self._head += data
        if outline.kept and not self._keep(outline.kept):
            return False
        self._ready, self._left, self._head = outline.shown, outline.left, bytearray()
        return True

    def _keep(self, size: int) -> bool:
        """Read on in a payload; False at the end of the connection."""
        if self._payload is None:
            # Its whole value is had as bytes without a copy, which a bytearray's is not.
            self._payload, self._filled = io.BytesIO(bytes(size)), 0
        with self._payload.getbuffer() as room:
            while self._filled < size:
                with room[self._filled :] as rest:
                    read = self._sock.recv_into(rest)
                if not read:
                    return False
                self._filled += read
        self._whole, self._payload = self._payload.getvalue(), None
        return True


class _Outline(NamedTuple):
    """What the first bytes of a packet say: how many more say more, or else what paho gets and what it does not.

    Attributes:
        lacking: Bytes of the head that are known to come; the rest counts only when it is 0.
        shown: What paho gets first.
        left: Bytes that it reads itself thereafter.
        kept: Bytes of a payload that it does not get.
    """

    lacking: int = 0
    shown: bytes = b""
    left: int = 0
    kept: int = 0


def _outline(head: bytearray) -> _Outline:
    """MQTT 3.1.1, sections 2.2 and 3.3. What breaks its rules is left to paho as it is."""
    end = next((at for at in range(2, len(head) + 1) if head[at - 1] < 0x80), 0)
    if not end and len(head) <= 1 + _MAX_LENGTH_DIGITS:
        return _Outline(lacking=max(1, 2 - len(head)))
    length = sum((digit & 0x7F) << 7 * place for place, digit in enumerate(head[1:end]))
    at_once = head[0] & 0xF0 == _PUBLISH and head[0] & _QOS < _QOS_2  # of QoS 2 paho reports later
    if not at_once or not LARGE_BYTES <= length <= LARGEST_BYTES:
        return _Outline(shown=bytes(head), left=length)
    body = head[end:]
    if len(body) < 2:
        return _Outline(lacking=2 - len(body))
    before = 2 + int.from_bytes(body[:2], "big") + (2 if head[0] & _QOS else 0)
    if before > length:
        return _Outline(shown=bytes(head), left=length - len(body))
    if len(body) < before:
        return _Outline(lacking=before - len(body))
    return _Outline(shown=bytes([head[0], *_digits(before)]) + body, kept=length - before)


def _digits(length: int) -> list[int]:
    """A remaining length as MQTT writes it: seven bits a byte, the least significant first."""
    return [length] if length < 0x80 else [length & 0x7F | 0x80, *_digits(length >> 7)]
