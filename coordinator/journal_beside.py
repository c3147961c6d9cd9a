"""The journal read by other threads than the store's: SQLite's connections are not shared."""

import sqlite3
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path

from coordinator.journal import JOURNAL_NAME, explained
from coordinator.journal_records import JournalUpdate


def digests_beside(directory: Path, number: int) -> dict[tuple[str, str], str]:
    """SHA-256 of a round's updates by device and task, for another thread than the store's.

    Raises:
        JournalError: The journal cannot be read.
    """
    path = directory / JOURNAL_NAME
    with explained(path), closing(sqlite3.connect(path, isolation_level=None)) as connection:
        query = "SELECT device, task, sha256 FROM updates WHERE round = ? ORDER BY device, task"
        return {(device, task): sha256 for device, task, sha256 in connection.execute(query, (number,))}


def updates_beside(
    directory: Path, number: int, keys: Iterable[tuple[str, str]] | None = None
) -> Generator[JournalUpdate, None, None]:
    """Store.updates for another thread than the store's: SQLite's connections are not shared.

    Args:
        directory: Of the journal.
        number: The round.
        keys: Of these devices and tasks alone; None for all.

    Raises:
        JournalError: The journal cannot be read.
    """
    path = directory / JOURNAL_NAME
    with explained(path), closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield from updates_of(connection, path, number, keys)


def updates_of(
    connection: sqlite3.Connection, path: Path, number: int, keys: Iterable[tuple[str, str]] | None = None
) -> Iterator[JournalUpdate]:
    """A round's updates in ascending order of (device, task), one at a time; `keys` as in updates_beside."""
    columns = "updates.round, device, task, tasks.round, uid, sha256, examples, loss, updates.data"
    with explained(path):
        names = "SELECT device, task FROM updates WHERE round = ? ORDER BY device, task"
        for key in connection.execute(names, (number,)).fetchall() if keys is None else keys:
            query = f"SELECT {columns} FROM updates JOIN tasks USING (device, task) WHERE device = ? AND task = ?"  # noqa: S608  columns is a constant
            yield JournalUpdate(*connection.execute(query, key).fetchone())


def weights_beside(directory: Path, number: int) -> bytes:
    """What devices trained from that have a task of this version, for another thread than the store's.

    Raises:
        JournalError: The journal cannot be read.
    """
    path = directory / JOURNAL_NAME
    with explained(path), closing(sqlite3.connect(path, isolation_level=None)) as connection:
        query = (
            "SELECT coalesce(downloads.data, weights) FROM versions LEFT JOIN downloads USING (version) "
            "WHERE version = ?"
        )
        found = connection.execute(query, (number,)).fetchone()
    return bytes(found[0])
