"""What a process finds around it that can be taken away: room on its disk, and the time of day."""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

__all__ = ["DISK_MB", "Clock", "Disk", "find_faketime", "why_no_disks"]

DISK_MB = 48
PIECE = bytes(65_536)
LIBRARY = "faketime/libfaketime.so.1"


def why_no_disks() -> str:
    """Why no small file system can be mounted here, "" where it can."""
    if os.geteuid() != 0:
        return "a disk is filled on a tmpfs of its own, which only root can mount"
    with tempfile.TemporaryDirectory() as place:
        disk = Disk(Path(place))
        try:
            disk.mount()
        except (OSError, subprocess.CalledProcessError) as error:  # a container without the right to
            return f"no tmpfs can be mounted: {error}"
        disk.unmount()
    return ""


@dataclass
class Disk:
    """A small tmpfs at a directory, which can be filled to the last byte."""

    directory: Path
    size_mb: int = DISK_MB

    def mount(self) -> None:
        """Mount it; the directory is made where it is not there."""
        self.directory.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={self.size_mb}m", "tmpfs", str(self.directory)],  # noqa: S607  as on PATH
            check=True,
        )

    def unmount(self) -> None:
        """Take it away, content and all."""
        subprocess.run(["umount", "-l", str(self.directory)], check=True)  # noqa: S607  as on PATH

    def fill(self) -> None:
        """Leave no room at all."""
        with self._ballast.open("ab", buffering=0) as file:
            piece = PIECE
            while piece:
                try:
                    file.write(piece)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    piece = piece[: len(piece) // 2]

    def clear(self) -> None:
        """Give the room back."""
        self._ballast.unlink()

    @property
    def _ballast(self) -> Path:
        return self.directory / "ballast"


def find_faketime() -> Path | None:
    """Find libfaketime, which Debian's package faketime installs below the machine's library folder."""
    return next(Path("/usr/lib").glob(f"*/{LIBRARY}"), None)


@dataclass(frozen=True)
class Clock:
    """The wall clock of one process, as libfaketime makes it read a file; monotonic clocks stay true."""

    library: Path
    file: Path

    def environment(self) -> dict[str, str]:
        """What the process is started with."""
        return {
            "LD_PRELOAD": str(self.library),
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, offset_s: int) -> None:
        """Set the clock so far from the true time, for a running process too."""
        beside = self.file.with_suffix(".new")
        beside.write_text(f"{offset_s:+d}\n")
        beside.replace(self.file)
