"""The bytes of a file from some place on, read when they are asked for, so that sending them takes no memory."""

import os
from pathlib import Path

from edge_runtime.errors import RemoteError

__all__ = ["FileSlice", "FileUnreadable"]


class FileUnreadable(RemoteError):
    """The disk does not give back what was written."""


class FileSlice:
    """An open file's bytes; they stay the same when the file is removed or replaced."""

    def __init__(self, path: Path, first: int) -> None:
        """Open a file.

        Args:
            path: The file.
            first: Its bytes before this one are left out.

        Raises:
            OSError: It cannot be opened.
        """
        self._first = first
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._size = os.fstat(self._file).st_size - first

    def __len__(self) -> int:
        """Bytes."""
        return self._size

    def __getitem__(self, where: slice) -> bytes:
        """Read some of them.

        Raises:
            FileUnreadable: They are not there any more.
        """
        begin, end, _ = where.indices(self._size)
        try:
            data = os.pread(self._file, max(0, end - begin), self._first + begin)
        except OSError as error:
            raise FileUnreadable(f"bytes {begin} .. {end} cannot be read: {error.strerror}") from None
        if len(data) != max(0, end - begin):
            raise FileUnreadable(f"bytes {begin} .. {end} are not there any more")
        return data

    def __del__(self) -> None:
        """Close the file."""
        if hasattr(self, "_file"):
            os.close(self._file)
