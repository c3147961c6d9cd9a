"""Versions after they were made: a list of them, one with its weights, and how a job goes back to one."""

import hashlib
from dataclasses import dataclass

import numpy as np

from coordinator.server_steps import CHANGES, MEMBERS
from coordinator.store import Store, Version, Write
from edge_runtime.plan import CONTROL
from edge_runtime.tensors import decode_tensors, encode_tensors

MAX_VERSION = 2**63 - 1  # what SQLite can hold


@dataclass(frozen=True)
class KeptVersion:
    """A version as a list shows it; `kept` when its weights are still there, `accuracy` once it was judged."""

    version: int
    sha256: str
    bytes: int
    kept: bool
    accuracy: float | None


class VersionMissing(Exception):
    """There is no such version, or its weights are not kept any more; the message says which are."""


def list_versions(store: Store) -> tuple[KeptVersion, ...]:
    """All versions, the oldest first; the accuracy of version r + 1 is that of round r."""
    query = (
        "SELECT versions.version, sha256, bytes, weights IS NOT NULL, accuracy FROM versions "
        "LEFT JOIN rounds ON rounds.round = versions.version - 1 ORDER BY versions.version"
    )
    return tuple(KeptVersion(row[0], row[1], row[2], bool(row[3]), row[4]) for row in store.rows(query))


def find_version(store: Store, number: int) -> Version:
    """A version with its weights.

    Raises:
        VersionMissing: It is not there, or its weights are not.
    """
    query = "SELECT version, sha256, weights, state FROM versions WHERE version = ? AND weights IS NOT NULL"
    found = store.rows(query, (number,)) if 0 < number <= MAX_VERSION else []
    if not found:
        kept = [str(each.version) for each in list_versions(store) if each.kept]
        raise VersionMissing(f"version {number} is not kept; those that are: {', '.join(kept)}")
    return Version(*found[0])


def roll_back(store: Store, write: Write, number: int, asked_by: str) -> int:
    """Put an older version's weights and server state on top, in the place of the round that is open or would be next.

    The round's tasks end, what was delivered for it does not count, and devices begin with nothing carried over: what
    they carry was left out of updates to a model that is undone, so the job gets a new run. Control variates begin at
    zero again.

    Returns:
        The number of the new version.

    Raises:
        VersionMissing: The older version is not there, or its weights are not.
    """
    old, number_of_round = _without_controls(find_version(store, number)), store.latest().version
    note = f"back to version {number}, asked by {asked_by}"
    opened = (number_of_round, number_of_round)
    write("INSERT OR IGNORE INTO rounds (round, version, attempt, state) VALUES (?, ?, 0, 'open')", opened)
    write(
        "UPDATE rounds SET state = 'folded', devices = 0, cohort = 0, bytes_up = 0, bytes_down = 0, seconds = 0, "
        "note = ? WHERE round = ?",
        (note, number_of_round),
    )
    write("UPDATE tasks SET state = 'failed', reason = ?, data = x'' WHERE state = 'open'", (note,))
    # An asynchronous job may have accepted some for the round after this one already; they are this one's as well.
    write("UPDATE updates SET data = NULL, folded_in = 0, round = ? WHERE folded_in IS NULL", (number_of_round,))
    made = number_of_round + 1
    write("UPDATE job SET run = lower(hex(randomblob(8))), run_from = ?", (made,))
    row = (made, old.sha256, len(old.weights), old.weights, old.state)
    write("INSERT INTO versions VALUES (?, ?, ?, ?, ?)", row)
    return made


def _without_controls(old: Version) -> Version:
    """A version whose control variates are as at the start, since a new run finds none on the devices."""
    weights, state = decode_tensors(old.weights)[0], decode_tensors(old.state)[0]
    controls = [name for name in weights if name.startswith(CONTROL)]
    if not controls:
        return old
    data = encode_tensors({**weights, **{name: np.zeros_like(weights[name]) for name in controls}})
    kept = {name: array for name, array in state.items() if not name.startswith((MEMBERS, CHANGES))}
    return Version(old.version, hashlib.sha256(data).hexdigest(), data, encode_tensors(kept))
