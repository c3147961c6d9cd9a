"""What must hold after a job, however it was disturbed: the journal against the devices' own logs."""

from __future__ import annotations

import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "Accepted",
    "DeviceLog",
    "Wanted",
    "accepted",
    "device_log",
    "differences",
    "every_round",
    "full_buffers",
    "version_digests",
]

# What must have been folded: the journal's rows -> what is wrong with them.
Wanted = Callable[[Sequence["Accepted"]], list[str]]

_LINE = re.compile(
    r"(?P<event>task done|update accepted|update refused) task=(?P<task>\S+)(?: .*?bytes=(?P<bytes>\d+))?"
)


@dataclass(frozen=True)
class Accepted:
    """One update in the journal: the round it counts in, and the version it was folded into."""

    round: int
    device: str
    task: str
    sha256: str
    size_bytes: int
    folded_in: int | None


@dataclass(frozen=True)
class DeviceLog:
    """What a device says it did: bytes of the updates it made by task, and the tasks whose updates it heard of."""

    made: dict[str, set[int]]
    accepted: set[str]
    refused: set[str]


def accepted(journal: Path) -> list[Accepted]:
    """Every update that the journal says was accepted."""
    query = "SELECT round, device, task, sha256, bytes, folded_in FROM updates ORDER BY round, device, task"
    with closing(sqlite3.connect(journal)) as connection:
        return [Accepted(*row) for row in connection.execute(query)]


def version_digests(journal: Path) -> list[str]:
    """The SHA-256 of every version, in order."""
    with closing(sqlite3.connect(journal)) as connection:
        return [digest for (digest,) in connection.execute("SELECT sha256 FROM versions ORDER BY version")]


def device_log(path: Path) -> DeviceLog:
    """Read a client's log, of all its processes."""
    made: dict[str, set[int]] = {}
    heard: dict[str, set[str]] = {"update accepted": set(), "update refused": set()}
    for line in path.read_text(errors="replace").splitlines():
        if (found := _LINE.search(line)) is None:
            continue
        if found["event"] == "task done":
            made.setdefault(found["task"], set()).add(int(found["bytes"]))
        else:
            heard[found["event"]].add(found["task"])
    return DeviceLog(made, heard["update accepted"], heard["update refused"])


def differences(rows: Sequence[Accepted], logs: dict[str, DeviceLog], wanted: Wanted) -> list[str]:
    """Where journal and logs disagree; nothing where every update that counts was made once and counted once.

    Args:
        rows: The journal's accepted updates.
        logs: The log of every device.
        wanted: What a job of this kind must have folded.
    """
    return [*_not_made(rows, logs), *_not_counted(rows, logs), *_counted_twice(rows), *wanted(rows)]


def _not_made(rows: Sequence[Accepted], logs: dict[str, DeviceLog]) -> list[str]:
    made = {(name, task): sizes for name, log in logs.items() for task, sizes in log.made.items()}
    return [
        f"{row.task}: {row.size_bytes} bytes in the journal, {sorted(made.get((row.device, row.task), ()))} made"
        for row in rows
        if row.size_bytes not in made.get((row.device, row.task), ())
    ]


def _not_counted(rows: Sequence[Accepted], logs: dict[str, DeviceLog]) -> list[str]:
    counted = {(row.device, row.task) for row in rows}
    heard = {(name, task) for name, log in logs.items() for task in log.accepted}
    refused = {(name, task) for name, log in logs.items() for task in log.refused}
    return [
        *(f"{task}: {name} heard that it counts; it is not in the journal" for name, task in sorted(heard - counted)),
        *(f"{task}: {name} heard both that it counts and that it is refused" for name, task in sorted(heard & refused)),
    ]


def _counted_twice(rows: Sequence[Accepted]) -> list[str]:
    values = [(row.device, value) for row in rows for value in (row.task, row.sha256)]
    return [f"{value} of {name} counted {times} times" for (name, value), times in Counter(values).items() if times > 1]


def every_round(rounds: int, devices: Sequence[str]) -> Wanted:
    """Of a synchronous job of all devices: one update a round and device, folded into the next version."""

    def check(rows: Sequence[Accepted]) -> list[str]:
        wanted = [(number, name, number + 1) for number in range(1, rounds + 1) for name in sorted(devices)]
        found = [(row.round, row.device, row.folded_in) for row in rows]
        return [] if found == wanted else [f"folded {sorted(set(found) ^ set(wanted))} more or less than wanted"]

    return check


def full_buffers(rounds: int, buffer: int) -> Wanted:
    """Of a buffered job: every version is of `buffer` updates, and only what came after the last one is in none."""

    def check(rows: Sequence[Accepted]) -> list[str]:
        sizes = Counter(row.folded_in for row in rows)
        late = sizes.pop(None, 0)
        wanted = dict.fromkeys(range(2, rounds + 2), buffer)
        found = [] if dict(sizes) == wanted else [f"updates by version {dict(sizes)}, wanted {wanted}"]
        return found if late < buffer else [*found, f"{late} updates of a buffer of {buffer} were never folded"]

    return check
