"""The weights a client holds on disk: one tensor file, named by its SHA-256, from which deltas lead to newer ones.

They are mapped, not read: the bytes are the page cache's, which the system takes back when memory is short.
"""

import contextlib
import hashlib
import mmap
from collections.abc import Iterable
from pathlib import Path

from edge_runtime.state_directory import write_atomically

__all__ = ["WeightsCache", "digest_of"]

_PIECE_BYTES = 1 << 16


class WeightsCache:
    """One directory; reading raises nothing, what does not pass its check counts as absent."""

    def __init__(self, directory: Path) -> None:
        """Read and make nothing yet."""
        self._directory = directory
        self._checked = ""  # what this process has written or checked

    def has(self, sha256: str) -> bool:
        """Whether there is such a file; `read` says whether it is whole."""
        return (self._directory / sha256).exists()

    def read(self, sha256: str) -> memoryview | None:
        """The file's bytes, mapped and checked against its name; None, and no file any more, if they are not that."""
        try:
            with (self._directory / sha256).open("rb") as file:
                mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError):  # ValueError: an empty file cannot be mapped
            self.drop(sha256)
            return None
        if sha256 != self._checked and digest_of([mapped]) != sha256:
            self.drop(sha256)
            return None
        self._checked = sha256
        return mapped

    def keep(self, sha256: str, parts: Iterable[bytes | memoryview]) -> None:
        """Write the file of this digest, which is the caller's word, and remove all others.

        Raises:
            OSError: It could not be written; what was there stays.
        """
        self._directory.mkdir(exist_ok=True)
        write_atomically(self._directory / sha256, *parts)
        self._checked = sha256
        for path in self._directory.iterdir():
            if path.name != sha256:
                path.unlink()

    def drop(self, sha256: str) -> None:
        """Remove a file."""
        with contextlib.suppress(OSError):
            (self._directory / sha256).unlink()


def digest_of(parts: Iterable[bytes | memoryview]) -> str:
    """SHA-256 of parts one behind the other, in pieces, so that mapped ones pass through memory."""
    digest = hashlib.sha256()
    for part in parts:
        for begin in range(0, len(part), _PIECE_BYTES):
            digest.update(part[begin : begin + _PIECE_BYTES])
    return digest.hexdigest()
