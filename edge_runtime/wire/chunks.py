"""Chunks: big things cut into pieces of 64 KiB, each with its own CRC-32, put together again in any order."""

import hashlib
import io
import zlib
from typing import Protocol

from edge_runtime.errors import RemoteError

__all__ = [
    "CHUNK_BYTES",
    "Assembler",
    "BadBitmap",
    "BadChunk",
    "BadChunkIndex",
    "BlobTooLarge",
    "Readable",
    "Sink",
    "checked_piece",
    "chunk_count",
    "cut_chunk",
    "digest_of",
    "missing_chunks",
    "parse_bitmap",
]

CHUNK_BYTES = 65_536
_CRC_BYTES = 4


class BadChunk(RemoteError):
    """A chunk has the wrong length or the wrong check sum."""


class BadChunkIndex(RemoteError):
    """A chunk's index lies beyond the end."""


class BlobTooLarge(RemoteError):
    """An announced size is over the cap."""


class BadBitmap(RemoteError):
    """A bitmap of chunks is not the hexadecimal text it must be."""


def chunk_count(size_bytes: int) -> int:
    """How many chunks a thing of this size has."""
    return -(-size_bytes // CHUNK_BYTES)


class Readable(Protocol):
    """Bytes in memory, or in a file of the shell's."""

    def __len__(self) -> int:
        """How many."""

    def __getitem__(self, where: slice, /) -> bytes:
        """Some of them; RemoteError where they cannot be read."""


def digest_of(data: Readable) -> str:
    """SHA-256, read in chunks."""
    digest = hashlib.sha256()
    for first in range(0, len(data), CHUNK_BYTES):
        digest.update(data[first : first + CHUNK_BYTES])
    return digest.hexdigest()


def cut_chunk(data: Readable, index: int) -> bytes:
    """Give chunk `index` as it travels: CRC-32 of the piece, little-endian, then the piece."""
    piece = data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
    return zlib.crc32(piece).to_bytes(_CRC_BYTES, "little") + piece


def checked_piece(payload: bytes, index: int, size_bytes: int) -> memoryview:
    """Give the piece in chunk `index`, one of those of size_bytes, without a copy.

    Raises:
        BadChunk: Its length or check sum is wrong.
    """
    wanted = min(CHUNK_BYTES, size_bytes - index * CHUNK_BYTES)
    if len(payload) != wanted + _CRC_BYTES:
        raise BadChunk(f"chunk {index} has {len(payload)} bytes instead of {wanted + _CRC_BYTES}")
    piece = memoryview(payload)[_CRC_BYTES:]
    if zlib.crc32(piece) != int.from_bytes(payload[:_CRC_BYTES], "little"):
        raise BadChunk(f"chunk {index} does not have the CRC-32 it came with")
    return piece


def parse_bitmap(text: str, chunks: int) -> bytes:
    """Read a bitmap of received chunks: hexadecimal, bit i of byte i // 8, least significant first.

    Raises:
        BadBitmap: It is not exactly as long as `chunks` needs, or not hexadecimal.
    """
    wanted = -(-chunks // 8)
    if len(text) != 2 * wanted:
        raise BadBitmap(f"a bitmap of {len(text)} digits for {chunks} chunks, which take {2 * wanted}")
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise BadBitmap(f"a bitmap that begins {text[:20]!a} is not hexadecimal") from None


def missing_chunks(have: bytes | bytearray, chunks: int, limit: int) -> list[int]:
    """Give the first `limit` indexes whose bit is not set."""
    found: list[int] = []
    for place, bits in enumerate(have):
        if len(found) >= limit:
            break
        if bits != 0xFF:  # of a large thing most bytes are full
            eight = range(8 * place, min(8 * place + 8, chunks))
            found += [index for index in eight if not bits >> index % 8 & 1]
    return found[:limit]


class Sink(Protocol):
    """Where the chunks of one thing go: memory, or a file of the shell's."""

    def begin(self) -> bytes:
        """The bitmap of the chunks that an earlier process has left here."""

    def write(self, index: int, piece: memoryview, crc: bytes) -> None:
        """Put a chunk in its place; its CRC-32, as it travelled, is right."""

    def digest(self) -> str:
        """SHA-256 of the whole."""

    def clear(self) -> None:
        """Forget every chunk."""

    def take(self) -> bytes | None:
        """Hand over the bytes; None when they stay where they are. The sink is of no further use."""


class _Memory:
    """A sink that keeps the bytes, and hashes them as they come: at the end that would be a wait for nothing else."""

    def __init__(self, size_bytes: int) -> None:
        # Hands its bytes over without a copy, which no bytearray does.
        self._data = io.BytesIO(bytes(size_bytes))
        self._size_bytes = size_bytes
        self.clear()

    def begin(self) -> bytes:
        return bytes(-(-chunk_count(self._size_bytes) // 8))

    def write(self, index: int, piece: memoryview, crc: bytes) -> None:  # noqa: ARG002 of use to a sink that may be torn
        first = index * CHUNK_BYTES
        self._data.seek(first)
        self._data.write(piece)
        if first == self._hashed_bytes:
            self._hash(piece)

    def digest(self) -> str:
        with self._data.getbuffer() as whole, whole[self._hashed_bytes :] as rest:
            self._hash(rest)
        return self._sha256.hexdigest()

    def clear(self) -> None:
        """Chunks that come again are written over those that are here."""
        self._sha256, self._hashed_bytes = hashlib.sha256(), 0

    def _hash(self, piece: memoryview) -> None:
        self._sha256.update(piece)
        self._hashed_bytes += len(piece)

    def take(self) -> bytes:
        data, self._data = self._data.getvalue(), io.BytesIO()
        return data


class _Piece:
    """A sink for what is one chunk, which needs no place but its own: of small updates there are thousands a second."""

    def __init__(self) -> None:
        self._data = b""

    def begin(self) -> bytes:
        return b"\0"

    def write(self, index: int, piece: memoryview, crc: bytes) -> None:  # noqa: ARG002 of use to a sink that may be torn
        self._data = bytes(piece)

    def digest(self) -> str:
        return hashlib.sha256(self._data).hexdigest()

    def clear(self) -> None:
        """The chunk that comes again is put in its place."""

    def take(self) -> bytes:
        return self._data


def _memory(size_bytes: int) -> Sink:
    return _Memory(size_bytes) if size_bytes > CHUNK_BYTES else _Piece()


class Assembler:
    """Collects the chunks of one thing whose size and SHA-256 are known.

    Its memory, size_bytes and a bit a chunk, is taken once, after the size has passed the cap; with a sink of another
    kind only the bits.
    """

    def __init__(self, sha256: str, size_bytes: int, cap_bytes: int, sink: Sink | None = None) -> None:
        """Take the memory, or take up what is in the sink.

        Raises:
            BlobTooLarge: size_bytes is over cap_bytes; nothing was allocated.
        """
        if size_bytes > cap_bytes:
            raise BlobTooLarge(f"{size_bytes} bytes are announced; the cap here is {cap_bytes}")
        self.sha256 = sha256
        self.size_bytes = size_bytes
        self.chunks = chunk_count(size_bytes)
        self._sink: Sink = _memory(size_bytes) if sink is None else sink
        self._have = bytearray(self._sink.begin())
        self._left = self.chunks - sum(bits.bit_count() for bits in self._have)

    @property
    def complete(self) -> bool:
        """Whether every chunk is here."""
        return self._left == 0

    def add(self, index: int, payload: bytes) -> bool:
        """Put a chunk in its place.

        Returns:
            Whether it was new; one that is already there is checked but not written again.

        Raises:
            BadChunkIndex: There is no such chunk.
            BadChunk: Its length or check sum is wrong.
        """
        if not 0 <= index < self.chunks:
            raise BadChunkIndex(f"chunk {index} of {self.chunks}")
        piece = checked_piece(payload, index, self.size_bytes)
        if self._have[index // 8] >> (index % 8) & 1:
            return False
        self._sink.write(index, piece, payload[:_CRC_BYTES])
        self._have[index // 8] |= 1 << (index % 8)
        self._left -= 1
        return True

    def have(self) -> bytes:
        """The bitmap of the chunks that are here."""
        return bytes(self._have)

    def missing(self, limit: int) -> list[int]:
        """The first `limit` chunks that are not here."""
        return missing_chunks(self._have, self.chunks, limit)

    def take(self) -> bytes | None:
        """Hand over the whole if its SHA-256 is right, else forget every chunk and return None.

        Only for a complete assembler. After a success it is empty and of no further use.
        """
        return self.release() if self.whole() else None

    def release(self) -> bytes | None:
        """Hand over the whole, which is known to be right; None when it stays in a sink of another kind."""
        return self._sink.take()

    def whole(self) -> bool:
        """Whether the SHA-256 is right; if not, every chunk is forgotten. Only for a complete assembler."""
        if self._sink.digest() == self.sha256:
            return True
        self._sink.clear()
        self._have = bytearray(len(self._have))
        self._left = self.chunks
        return False
