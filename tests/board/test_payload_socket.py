"""The socket that boards give paho: however the network cuts, every packet comes, and a payload is in memory once."""

from __future__ import annotations

import tracemalloc
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.payload_socket import LARGE_BYTES, LARGEST_BYTES, PayloadSocket
from edge_runtime.wire.chunks import CHUNK_BYTES
from support.joined import blob


class Pieces:
    """A socket that has what is left of its pieces, one piece at a time, and none between two of them."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = deque(memoryview(piece) for piece in pieces)

    def recv(self, size: int) -> bytes:
        room = bytearray(size)
        return bytes(room[: self.recv_into(memoryview(room))])

    def recv_into(self, room: memoryview) -> int:
        if not self._pieces:
            return 0
        if not self._pieces[0]:
            self._pieces.popleft()
            raise BlockingIOError
        piece = self._pieces[0][: len(room)]
        room[: len(piece)] = piece
        self._pieces[0] = self._pieces[0][len(piece) :]
        return len(piece)


def packet(first: int, body: bytes) -> bytes:
    digits, left = [], len(body)
    while True:
        digits.append(left & 0x7F | (0x80 if left > 0x7F else 0))
        left >>= 7
        if not left:
            return bytes([first, *digits]) + body


def publish(topic: bytes, payload: bytes, qos: int = 1) -> bytes:
    number = b"\x00\x07" if qos else b""
    return packet(0x30 | qos << 1, len(topic).to_bytes(2, "big") + topic + number + payload)


def read(sock: PayloadSocket, size: int) -> bytes | None:
    """Exactly so many bytes; None at the end."""
    data = b""
    while len(data) < size:
        try:
            more = sock.recv(size - len(data))
        except BlockingIOError:
            continue
        if not more:
            return None
        data += more
    return data


def packets_of(sock: PayloadSocket) -> list[bytes]:
    """Read as paho does, byte by byte to the length; the packets as they were, with the payloads that were kept."""
    found = []
    while (head := read(sock, 1)) is not None:
        length, place = 0, 0
        while True:
            digit = read(sock, 1)
            assert digit is not None
            length |= (digit[0] & 0x7F) << place
            place += 7
            if digit[0] < 0x80:
                break
        body = read(sock, length)
        assert body is not None
        found.append(packet(head[0], body + (sock.take() or b"")))
    return found


SIZES = (0, 1, 127, 128, LARGE_BYTES - 9, LARGE_BYTES, CHUNK_BYTES + 4, LARGEST_BYTES + 1)
PACKETS = {
    **{f"publish {size}, QoS {q}": publish(b"t/\xff", blob("p", size), q) for size in SIZES for q in (0, 1, 2)},
    **{
        f"type {kind}, {size}": packet(kind << 4, bytes(size)) for kind in (2, 4, 9, 13) for size in (0, 2, LARGE_BYTES)
    },
    **{f"no room for a topic in {size}": packet(0x32, b"\xff\xff" + bytes(size)) for size in (0, CHUNK_BYTES - 1)},
    "a topic and no payload": packet(0x30, b"\xff\xfd" + bytes(0xFFFD)),
}


@given(st.lists(st.sampled_from(sorted(PACKETS)), max_size=6), st.lists(st.integers(1, 70_000), min_size=1, max_size=8))
@settings(deadline=None)
def test_however_the_stream_is_cut_all_packets_come_and_all_bytes_of_them(names: list[str], cuts: list[int]) -> None:
    sent = [PACKETS[name] for name in names]
    stream, pieces = memoryview(b"".join(sent)), []
    while stream and len(pieces) < 1000:
        size = cuts[len(pieces) % len(cuts)]
        pieces.append(bytes(stream[:size]))
        stream = stream[size:]
    pieces.append(bytes(stream))
    assert packets_of(PayloadSocket(Pieces(pieces))) == sent  # type: ignore[arg-type]  # as much of a socket as is used


@pytest.mark.parametrize(("qos", "kept"), [(0, True), (1, True), (2, False)])
def test_a_large_payload_is_kept_from_paho_where_it_reports_the_message_at_once(qos: int, *, kept: bool) -> None:
    payload = blob("p", CHUNK_BYTES)
    sock = PayloadSocket(Pieces([publish(b"t", payload, qos)]))  # type: ignore[arg-type]  # as above
    assert read(sock, 2) is not None
    assert sock.take() == (payload if kept else None)
    assert sock.take() is None


def test_a_length_of_five_digits_is_left_to_paho_which_refuses_it() -> None:
    sock = PayloadSocket(Pieces([b"\x30" + 10 * b"\xff"]))  # type: ignore[arg-type]  # as above
    assert read(sock, 6) == b"\x30" + 5 * b"\xff"


def test_the_end_of_a_connection_within_a_payload_is_the_end() -> None:
    sock = PayloadSocket(Pieces([publish(b"t", blob("p", CHUNK_BYTES))[:-1]]))  # type: ignore[arg-type]  # as above
    assert read(sock, 1) is None


def test_a_chunk_is_in_memory_once_while_it_comes_and_when_it_is_there() -> None:
    pieces = [publish(b"t", blob("p", CHUNK_BYTES))]
    pieces = [pieces[0][first : first + 1460] for first in range(0, len(pieces[0]), 1460)]
    sock = PayloadSocket(Pieces(pieces))  # type: ignore[arg-type]  # as above
    tracemalloc.start()
    try:
        read(sock, 1)
        payload = sock.take()
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert payload is not None
    assert CHUNK_BYTES < peak_bytes < 1.2 * CHUNK_BYTES


def test_a_payload_that_was_not_reported_is_not_taken_for_that_of_the_next_message() -> None:
    large, small = publish(b"", blob("chunk", LARGE_BYTES)), publish(b"a", b"small")
    sock = PayloadSocket(Pieces([large, small]))  # type: ignore[arg-type]  # as much of a socket as is needed
    shown = large[:1] + bytes([4]) + large[-LARGE_BYTES - 4 : -LARGE_BYTES]
    assert read(sock, len(shown)) == shown
    assert read(sock, len(small)) == small
    assert sock.take() is None
