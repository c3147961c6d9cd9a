"""How much of a job stays on the gateway's disk: the versions that keep their weights, and pages that nobody needs.

The newest `versions` keep weights and server state, so does every `every`-th, and whatever an open task or an update
that is still to be folded started from. Digests, rounds and accuracies of all stay, some hundred bytes each.

Pages that a round's updates leave free are used again by the next round's, so they stay in the file; only what is far
more than that is given back to the disk, a piece at a time, and all of it when the job is done.
"""

import sqlite3
from dataclasses import dataclass
from typing import Protocol

FREE_BYTES = 64 << 20  # of free pages that may stay in any case
PIECE_BYTES = 16 << 20  # given back at one time: a fraction of a second on a slow disk


class _Write(Protocol):
    def __call__(self, statement: str, values: tuple[int, ...] = (), /) -> int: ...


@dataclass(frozen=True)
class Keep:
    """The [keep] section of a job file; `every` None keeps no others."""

    versions: int = 3
    every: int | None = None


KEEP = Keep()


def drop_weights(write: _Write, newest: int, keep: Keep) -> None:
    """Drop the weights and server states that the policy does not keep."""
    write(
        "UPDATE versions SET weights = NULL, state = NULL WHERE version <= ? AND weights IS NOT NULL "
        "AND version NOT IN (SELECT version FROM versions_in_use) AND (? = 0 OR version % ? != 0)",
        (newest - keep.versions, keep.every or 0, keep.every or 1),
    )


def give_back(connection: sqlite3.Connection, *, all_of_it: bool = False) -> int:
    """Give free pages at the end of a journal's file back to the disk, where there are too many; returns the bytes."""
    page_bytes, pages, free = (_pragma(connection, name) for name in ("page_size", "page_count", "freelist_count"))
    allowed = 0 if all_of_it else max(FREE_BYTES // page_bytes, pages // 2)
    surplus = free - allowed if all_of_it else min(free - allowed, PIECE_BYTES // page_bytes)
    if surplus <= 0:
        return 0
    # As a script, which goes on to the end: every page is a step of the statement, and `execute` takes one.
    connection.executescript(f"PRAGMA incremental_vacuum({surplus})")
    return (pages - _pragma(connection, "page_count")) * page_bytes


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])
