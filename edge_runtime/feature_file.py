"""Features on disk: one file of rows, written whole or not at all, every row under a check sum.

    magic "EDGEFEAT", u32 version = 1, u32 row_bytes, u64 rows, 32 bytes key      56 bytes
    rows x row_bytes                                                              the features
    rows x u32                                                                    CRC-32 of each row
    SHA-256 of everything but the rows                                            32 bytes

Little-endian. Rows are read with pread into a buffer of the caller's, not mapped: mapped pages would count as memory of
the process.
"""

import contextlib
import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import LocalError

_HEADER = struct.Struct("<8sIIQ32s")
_MAGIC, _VERSION, _CHECK_BYTES = b"EDGEFEAT", 1, 32


class CacheDamaged(LocalError):
    """Kept features cannot be read any more; they are gone now, and the next task computes them again."""


class FeatureFile:
    """An open file of features."""

    def __init__(self, path: Path, descriptor: int, sums: NDArray[np.uint32], row_bytes: int) -> None:
        self._path, self._file, self._sums, self._row_bytes = path, descriptor, sums, row_bytes

    def read(self, row: int, into: NDArray[np.uint8]) -> None:
        """Copy one row.

        Raises:
            CacheDamaged: The disk gives other bytes than were written, or none.
        """
        if not self.whole(row, into):
            self._path.unlink(missing_ok=True)
            raise CacheDamaged(f"row {row} of {self._path.name} cannot be read back; the task must be asked for again")

    def whole(self, row: int, into: NDArray[np.uint8]) -> bool:
        """Copy one row; whether it is what was written."""
        try:
            got = os.preadv(self._file, [into.data], _HEADER.size + row * self._row_bytes)
        except OSError:
            return False
        return got == self._row_bytes and zlib.crc32(into.data) == self._sums[row]

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def open_features(directory: Path, key: str, rows: int, row_bytes: int) -> FeatureFile | None:
    """Take up what an earlier run has kept, if it is whole: every row is read once.

    Args:
        directory: Where.
        key: 64 hex digits that name what the features follow from.
        rows: As many must be there.
        row_bytes: Of each.
    """
    path = directory / key
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    found = _checked(path, file, _HEADER.pack(_MAGIC, _VERSION, row_bytes, rows, bytes.fromhex(key)), rows, row_bytes)
    if found is None:
        os.close(file)
        with contextlib.suppress(OSError):
            path.unlink()
    return found


def _checked(path: Path, file: int, header: bytes, rows: int, row_bytes: int) -> FeatureFile | None:
    end = len(header) + rows * row_bytes
    try:
        if os.fstat(file).st_size != end + 4 * rows + _CHECK_BYTES or os.pread(file, len(header), 0) != header:
            return None
        table = os.pread(file, 4 * rows + _CHECK_BYTES, end)
    except OSError:
        return None
    if len(table) != 4 * rows + _CHECK_BYTES:
        return None
    sums, check = table[:-_CHECK_BYTES], table[-_CHECK_BYTES:]
    if hashlib.sha256(header + sums).digest() != check:
        return None
    opened = FeatureFile(path, file, np.frombuffer(sums, "<u4"), row_bytes)
    buffer = np.empty(row_bytes, np.uint8)
    return opened if all(opened.whole(row, buffer) for row in range(rows)) else None


def write_features(
    directory: Path, key: str, rows: int, row_bytes: int, data: Iterator[NDArray[np.uint8]]
) -> FeatureFile:
    """Write the rows beside their place, synced, and move them over: after a power cut all are there or none.

    Raises:
        OSError: The disk is full or cannot be written; nothing is left behind.
    """
    directory.mkdir(parents=True, exist_ok=True)
    beside, path = directory / f"{key}.new", directory / key
    header = _HEADER.pack(_MAGIC, _VERSION, row_bytes, rows, bytes.fromhex(key))
    sums = np.empty(rows, "<u4")
    try:
        with beside.open("wb") as file:
            file.write(header)
            for row, values in enumerate(data):
                sums[row] = zlib.crc32(values.data)
                file.write(values.data)
            file.write(sums.tobytes())
            file.write(hashlib.sha256(header + sums.tobytes()).digest())
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)  # not there any more unless something failed
    return FeatureFile(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC), sums, row_bytes)


def drop_others(directory: Path, key: str) -> None:
    """Remove the features of other weights or data, and what a killed process has left half written."""
    with contextlib.suppress(OSError):
        for path in directory.iterdir():
            if path.name != key:
                path.unlink()
