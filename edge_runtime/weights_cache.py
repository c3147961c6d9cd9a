"""The weights a client holds on disk, and the deltas on their way: files named by their SHA-256.

Files are mapped, not read: the bytes are the page cache's, which the system takes back when memory is short.
"""

import contextlib
import mmap
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from edge_runtime.blob_file import PARTIAL, BlobFile, digest_of_file
from edge_runtime.state_directory import write_atomically
from edge_runtime.wire.chunks import CHUNK_BYTES

__all__ = ["WeightsCache"]


class WeightsCache:
    """One directory; reading raises nothing, what does not pass its check counts as absent."""

    def __init__(self, directory: Path, warn: Callable[[str], None]) -> None:
        """Read and make nothing yet; `warn` is told when the disk cannot be used."""
        self._directory = directory
        self._warn = warn
        self._checked: set[str] = set()  # what this process has written or checked
        self._failed = False
        self._sink: BlobFile | None = None

    def has(self, sha256: str) -> bool:
        """Whether there is such a file; `read` says whether it is whole."""
        return (self._directory / sha256).exists()

    def open_sink(self, sha256: str, size_bytes: int) -> BlobFile | None:
        """Where the chunks of a blob go; None for memory: what fits one chunk, and what the disk cannot take.

        What an earlier process has left of it is taken up, what is left of other blobs is removed.
        """
        if size_bytes <= CHUNK_BYTES:
            return None
        if self._sink is not None:
            self._sink.close()  # of a task that was withdrawn
            self._sink = None
        if self._failed:
            self._failed = False  # the disk is tried again with the next blob
            return None
        try:
            self._directory.mkdir(exist_ok=True)
            for path in self._directory.glob("*" + PARTIAL):
                if path.name != sha256 + PARTIAL:
                    path.unlink()
            # It gets its name once it is checked.
            self._sink = BlobFile(self._directory / sha256, size_bytes, self._checked.add, self._told)
        except OSError as error:
            self._told(error)
        return self._sink

    def read(self, sha256: str) -> memoryview | None:
        """The file's bytes, mapped and checked against its name; None, and no file any more, if they are not that."""
        path = self._directory / sha256
        try:
            if sha256 not in self._checked and digest_of_file(path) != sha256:
                self.drop(sha256)
                return None
            with path.open("rb") as file:
                mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError):  # ValueError: an empty file cannot be mapped
            self.drop(sha256)
            return None
        self._checked.add(sha256)
        return mapped

    def keep(self, sha256: str, parts: Iterable[bytes | memoryview]) -> None:
        """Write the file of this digest, which is the caller's word.

        Raises:
            OSError: It could not be written.
        """
        self._directory.mkdir(exist_ok=True)
        write_atomically(self._directory / sha256, *parts)
        self._checked.add(sha256)

    def drop(self, *names: str) -> None:
        """Remove files."""
        for sha256 in names:
            self._checked.discard(sha256)
            with contextlib.suppress(OSError):
                (self._directory / sha256).unlink()

    def retain(self, names: Collection[str]) -> None:
        """Remove all other files."""
        with contextlib.suppress(OSError):
            for path in self._directory.iterdir():
                if path.name not in names:
                    self.drop(path.name)

    def _told(self, error: OSError) -> None:
        self._failed = True
        self._warn(f"{self._directory}: {error.strerror}; weights are gathered in memory")
