"""A blob on its way onto the disk: chunks are written where they belong, and a restart goes on where they ended.

    size bytes      the chunks
    4 a chunk       their CRC-32, 0 where there is none yet

While it is incomplete its name ends in ".part". Nothing is synced before the end: a chunk that a power cut has torn
does not have its CRC-32 any more, and is fetched again.
"""

import contextlib
import hashlib
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from edge_runtime.wire.chunks import CHUNK_BYTES, chunk_count

__all__ = ["PARTIAL", "BlobFile", "digest_of_file"]

PARTIAL = ".part"
_CRC_BYTES = 4


class BlobFile:
    """A wire.chunks.Sink on disk. Where the disk fails on the way, memory takes over, and `failed` is told why."""

    def __init__(
        self, path: Path, size_bytes: int, done: Callable[[str], None], failed: Callable[[OSError], None]
    ) -> None:
        """Open or make the file, with all the room it needs.

        Args:
            path: Where the blob shall be.
            size_bytes: Of the blob.
            done: Called with the file's name once it has it.
            failed: Called when the disk fails.

        Raises:
            OSError: There is no room, or no writing.
        """
        self._path, self._size_bytes = path, size_bytes
        self._done, self._failed = done, failed
        self._partial = path.with_name(path.name + PARTIAL)
        self._memory: bytearray | None = None
        whole_bytes = size_bytes + _CRC_BYTES * chunk_count(size_bytes)
        self._file = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if os.fstat(self._file).st_size != whole_bytes:
                os.ftruncate(self._file, 0)
                os.posix_fallocate(self._file, 0, whole_bytes)
        except OSError:
            self._forget_file()
            raise

    def begin(self) -> bytes:
        """The bitmap of the chunks that are here, each checked against its CRC-32."""
        chunks = chunk_count(self._size_bytes)
        have = bytearray(-(-chunks // 8))
        try:
            sums = os.pread(self._file, _CRC_BYTES * chunks, self._size_bytes)
            for index in range(chunks):
                crc = sums[_CRC_BYTES * index :][:_CRC_BYTES]
                if any(crc) and _crc(self._piece(index)) == crc:
                    have[index // 8] |= 1 << (index % 8)
        except OSError as error:
            self._go_on_in_memory(error)
            return bytes(len(have))
        return bytes(have)

    def write(self, index: int, piece: memoryview, crc: bytes) -> None:
        """Put a chunk and its CRC-32 in their places."""
        if self._memory is None:
            try:
                _write_all(self._file, piece, index * CHUNK_BYTES)
                _write_all(self._file, crc, self._size_bytes + _CRC_BYTES * index)
            except OSError as error:
                self._go_on_in_memory(error)
        if self._memory is not None:
            first = index * CHUNK_BYTES
            self._memory[first : first + len(piece)] = piece

    def digest(self) -> str:
        """SHA-256 of what is here, read in chunks; of nothing where it cannot be read."""
        if self._memory is not None:
            return hashlib.sha256(self._memory).hexdigest()
        try:
            digest = hashlib.sha256()
            for index in range(chunk_count(self._size_bytes)):
                digest.update(self._piece(index))
            return digest.hexdigest()
        except OSError as error:
            self._go_on_in_memory(error)
            return ""

    def clear(self) -> None:
        """Forget the CRC-32 of every chunk."""
        if self._memory is None:
            try:
                _write_all(self._file, bytes(_CRC_BYTES * chunk_count(self._size_bytes)), self._size_bytes)
            except OSError as error:
                self._go_on_in_memory(error)

    def take(self) -> bytes | None:
        """Give the file its name, durably; the bytes where they are in memory.

        A file that cannot be finished is gone, and `failed` was told.
        """
        if self._memory is not None:
            data, self._memory = bytes(self._memory), bytearray()
            return data
        try:
            os.ftruncate(self._file, self._size_bytes)
            os.fsync(self._file)
            self._partial.replace(self._path)
            self._done(self._path.name)
            _sync_directory(self._path.parent)
        except OSError as error:
            self._failed(error)
            with contextlib.suppress(OSError):
                self._partial.unlink()
        self.close()
        return None

    def close(self) -> None:
        """Leave the file as it is; a later sink goes on with it."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _piece(self, index: int) -> bytes:
        first = index * CHUNK_BYTES
        return os.pread(self._file, min(CHUNK_BYTES, self._size_bytes - first), first)

    def _go_on_in_memory(self, error: OSError) -> None:
        """What was written may still be read; if it is wrong, the blob's SHA-256 will say so."""
        self._memory = bytearray(self._size_bytes)
        with contextlib.suppress(OSError):
            os.preadv(self._file, [self._memory], 0)
        self._forget_file()
        self._failed(error)

    def _forget_file(self) -> None:
        self.close()
        with contextlib.suppress(OSError):
            self._partial.unlink()


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file, read in chunks. OSError where it cannot be read."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        for piece in _pieces(file.fileno()):
            digest.update(piece)
    return digest.hexdigest()


def _pieces(file: int) -> Iterator[bytes]:
    while piece := os.read(file, CHUNK_BYTES):
        yield piece


def _crc(piece: bytes) -> bytes:
    return zlib.crc32(piece).to_bytes(_CRC_BYTES, "little")


def _write_all(file: int, data: bytes | memoryview, first: int) -> None:
    written = 0
    while written < len(data):
        written += os.pwrite(file, data[written:], first + written)


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
