"""What a client keeps on disk: its generation, a cache of plans, the update that is not yet settled, and a lock.

Every file is written beside its place, synced, and renamed over it, so that a power cut leaves the old one or the new
one. Whatever is read back is checked; what does not pass is moved aside (NAME.damaged), told of, and fetched or trained
again. Reading raises nothing: a disk that fails, or that the kernel has made read-only, costs time only.
"""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edge_runtime.errors import LocalError
from edge_runtime.file_slice import FileSlice, FileUnreadable
from edge_runtime.strict_json import dump_object, load_object
from edge_runtime.wire import Outbox
from edge_runtime.wire.chunks import digest_of

__all__ = ["StateDirectory", "StateInUse", "StateUnusable", "kept_plans"]

_MAX_HEADER_BYTES = 4096


class StateInUse(LocalError):
    """Another client has this state directory."""


class StateUnusable(LocalError):
    """The state directory cannot be made, read or written."""


class StateDirectory:
    """One client's state directory, locked for as long as the object lives."""

    def __init__(self, directory: Path, cache_bytes: int) -> None:
        """Make the directory if it is not there, and lock it.

        Args:
            directory: Where.
            cache_bytes: Cap on the plans kept; the one used longest ago goes first, the newest always stays.

        Raises:
            StateInUse: Another process has the lock.
            StateUnusable: The directory cannot be made or written.
        """
        self._directory = directory
        self._plans = directory / "plans"
        self._cache_bytes = cache_bytes
        self._troubles: list[str] = []
        try:
            self._plans.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StateUnusable(
                f"state directory {directory}: {error.strerror}; give one that can be written"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise StateInUse(
                f"state directory {directory} is in use by another client; give every client its own"
            ) from None

    def close(self) -> None:
        """Give the lock back."""
        os.close(self._lock)

    def troubles(self) -> list[str]:
        """What was found damaged or could not be read since the last call, in words."""
        told, self._troubles = self._troubles, []
        return told

    def gen(self) -> int:
        """The generation of the last start, 0 if there was none; a lost one is found again on the broker."""
        path = self._directory / "gen"
        try:
            gen = int(path.read_bytes()[:20])
        except FileNotFoundError:
            return 0
        except OSError as error:
            self._troubles.append(f"{path} cannot be read: {error.strerror}")
            return 0
        except ValueError:
            self._troubles.append(set_aside(path, "holds no number"))
            return 0
        return gen

    def keep_gen(self, gen: int) -> None:
        """Keep this start's generation."""
        write_atomically(self._directory / "gen", str(gen).encode("ascii"))

    def has_plan(self, sha256: str) -> bool:
        """Whether the cache has this plan, whole; a damaged one is removed."""
        return self.plan(sha256) is not None

    def plan(self, sha256: str) -> bytes | None:
        """The bytes of a cached plan, checked against its name; None if it is not there."""
        path = self._plans / sha256
        try:
            data = path.read_bytes()
        except OSError:
            return None  # not there, or on a part of the disk that fails: either way it must be fetched
        whole = hashlib.sha256(data).hexdigest() == sha256
        with contextlib.suppress(OSError):
            os.utime(path) if whole else path.unlink()
        if not whole:
            self._troubles.append(f"{path} was damaged, and is fetched again")
        return data if whole else None

    def keep_plan(self, sha256: str, data: bytes) -> None:
        """Put a plan into the cache and drop those used longest ago until the rest fits."""
        write_atomically(self._plans / sha256, data)
        files = sorted(self._plans.iterdir(), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        total = 0
        for path in files:
            total += path.stat().st_size
            if total > self._cache_bytes and path.name != sha256:
                path.unlink()

    def outbox(self, examples: int) -> Outbox | None:
        """The update that was not settled when the last process ended.

        Args:
            examples: Of the present data: an update that was trained on more or fewer is not theirs, and the gateway
                would refuse it.
        """
        path = self._directory / "outbox"
        try:
            with path.open("rb") as file:
                header = file.readline(_MAX_HEADER_BYTES)
            fields = load_object(header.rstrip(b"\n"))
            found = Outbox(str(fields["key"]), str(fields["task"]), FileSlice(path, len(header)))
            whole = fields.pop("check") == _check(fields) and fields["sha256"] == digest_of(found.data)
            fits = fields["examples"] == examples
        except FileNotFoundError:
            return None
        except OSError as error:
            self._troubles.append(f"{path} cannot be read: {error.strerror}; its update is trained again")
            return None
        except (ValueError, KeyError, FileUnreadable):
            whole = fits = False
        if not whole:
            self._troubles.append(set_aside(path, "is not what was written; its update is trained again"))
        elif not fits:
            self._troubles.append(
                f"the update of {found.task} was trained on other data than there are now; it is dropped"
            )
        return found if whole and fits else None

    def keep_update(self, key: str, task: str, data: bytes, examples: int) -> FileSlice:
        """Keep an update and the number of examples it was trained on, in place of the one before it.

        Returns:
            The update, to be read from the disk.
        """
        digest = hashlib.sha256(data).hexdigest()
        fields = {"key": key, "task": task, "sha256": digest, "examples": examples}
        header = dump_object(fields | {"check": _check(fields)})
        path = self._directory / "outbox"
        write_atomically(path, header, b"\n", data)
        return FileSlice(path, len(header) + 1)

    def drop_update(self) -> None:
        """Forget the update."""
        (self._directory / "outbox").unlink(missing_ok=True)

    def keep_summary(self, values: dict[str, int | float | str]) -> None:
        """Write last-run.json: what a process measured by the time it stopped."""
        write_atomically(self._directory / "last-run.json", dump_object(dict(values)), b"\n")


def kept_plans(directory: Path) -> Iterator[bytes]:
    """The plans a client keeps, whole ones only, the one that was given or used last first.

    Reads only and takes no lock: the client may be running.
    """
    with contextlib.suppress(OSError):
        for path in sorted((directory / "plans").iterdir(), key=lambda path: path.stat().st_mtime_ns, reverse=True):
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() == path.name:
                yield data


def _check(fields: dict[str, Any]) -> str:
    """What tells a header with a flipped bit from the one that was written."""
    return hashlib.sha256(dump_object(fields)).hexdigest()[:16]


def set_aside(path: Path, why: str) -> str:
    """Move a damaged file out of the way, over one that was moved before; returns what to tell."""
    aside = path.with_name(path.name + ".damaged")
    try:
        path.replace(aside)
    except OSError as error:
        return f"{path} {why}; it cannot be moved aside ({error.strerror})"
    return f"{path} {why}; it is kept as {aside.name}"


def write_atomically(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file so that after a power cut the old content is there or the new one, never a mixture."""
    beside = path.with_name(path.name + ".new")
    with beside.open("wb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
