"""What must hold after a job, however it was disturbed: the journal against the devices' own logs."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["Accepted", "DeviceLog", "accepted", "device_log", "differences", "version_digests"]

_LINE = re.compile(
    r"(?P<event>task done|update accepted|update refused) task=(?P<task>\S+)(?: .*?bytes=(?P<bytes>\d+))?"
)


@dataclass(frozen=True)
class Accepted:
    """One update in the journal."""

    round: int
    device: str
    task: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class DeviceLog:
    """What a device says it did: bytes of the updates it made by task, and the tasks whose updates it heard of."""

    made: dict[str, set[int]]
    accepted: set[str]
    refused: set[str]


def accepted(journal: Path) -> list[Accepted]:
    """Every update that the journal says was accepted."""
    query = (
        "SELECT updates.round, updates.device, tasks.task, updates.sha256, updates.bytes FROM updates "
        "JOIN tasks USING (round, device) ORDER BY updates.round, updates.device"
    )
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


def differences(
    rows: Sequence[Accepted], logs: dict[str, DeviceLog], wanted: Sequence[tuple[int, str]] | None
) -> list[str]:
    """Where journal and logs disagree; nothing where every update that counts was made once and counted once.

    Args:
        rows: The journal's accepted updates.
        logs: The log of every device.
        wanted: Round and device of every update that must be there; None where that is not known beforehand.
    """
    found = [f"{row.task}: {row.device} never made it" for row in rows if row.task not in logs[row.device].made]
    found += [
        f"{row.task}: {row.size_bytes} bytes in the journal, {sorted(logs[row.device].made[row.task])} made"
        for row in rows
        if row.size_bytes not in logs[row.device].made.get(row.task, {row.size_bytes})
    ]
    counted = {(row.device, row.task) for row in rows}
    heard = {(name, task) for name, log in logs.items() for task in log.accepted}
    found += [
        f"{task}: {name} heard that it counts; it is not in the journal" for name, task in sorted(heard - counted)
    ]
    for what in ("task", "sha256"):
        values = [(row.device, getattr(row, what)) for row in rows]
        found += [
            f"{value}: counted {values.count(value)} times" for value in sorted(set(values)) if values.count(value) > 1
        ]
    if wanted is not None and [(row.round, row.device) for row in rows] != list(wanted):
        found.append(f"accepted {[(row.round, row.device) for row in rows]}, wanted {list(wanted)}")
    return found
