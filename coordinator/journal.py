"""The journal's file: its schema, how it is opened and locked, and what its errors say.

| table | a row is |
| --- | --- |
| job | the job (one row): its definition, how often a coordinator started on it, whether it is done, its run's digits |
| versions | one version of the weights, and the server step's state; the blobs of the last few are kept |
| views | what devices hold of a version (NULL: its weights), and the delta that made it of the view before |
| devices | a device as last seen |
| rounds | a round: "open", "folded" (its version is written) or "evaluated", and its metrics |
| tasks | what one device was asked in one round: "open", "done" or "failed" with a reason; its bytes go with the fold |
| updates | an accepted update; its bytes go when its round is folded, its digest stays |
"""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

SCHEMA_VERSION = 3
JOURNAL_NAME = "journal.sqlite"

_VIEWS = """
CREATE TABLE views (
  version INTEGER PRIMARY KEY, sha256 TEXT NOT NULL, bytes INTEGER NOT NULL, data BLOB,
  base TEXT, delta_sha256 TEXT, delta_bytes INTEGER, codec TEXT, delta BLOB
);
"""
_SCHEMA = """
CREATE TABLE job (
  id INTEGER PRIMARY KEY CHECK (id = 1), definition TEXT NOT NULL, epoch INTEGER NOT NULL, done TEXT,
  run TEXT NOT NULL
);
CREATE TABLE versions (
  version INTEGER PRIMARY KEY, sha256 TEXT NOT NULL, bytes INTEGER NOT NULL, weights BLOB, state BLOB
);
CREATE TABLE devices (
  device TEXT PRIMARY KEY, presence TEXT NOT NULL, examples INTEGER NOT NULL, unfit TEXT
);
CREATE TABLE rounds (
  round INTEGER PRIMARY KEY, version INTEGER NOT NULL REFERENCES versions, attempt INTEGER NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('open', 'folded', 'evaluated')),
  devices INTEGER, cohort INTEGER, bytes_up INTEGER, bytes_down INTEGER, seconds REAL, accuracy REAL, loss REAL
);
CREATE TABLE tasks (
  round INTEGER NOT NULL REFERENCES rounds, device TEXT NOT NULL, task TEXT NOT NULL, data BLOB NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('open', 'done', 'failed')), reason TEXT,
  PRIMARY KEY (round, device)
);
CREATE TABLE updates (
  round INTEGER NOT NULL, device TEXT NOT NULL, uid TEXT NOT NULL, sha256 TEXT NOT NULL, bytes INTEGER NOT NULL,
  examples INTEGER NOT NULL, loss REAL NOT NULL, data BLOB,
  PRIMARY KEY (round, device), FOREIGN KEY (round, device) REFERENCES tasks
);
""" + _VIEWS


# From a schema version to the next one, for journals that were begun before it.
_UPGRADES = {
    1: "ALTER TABLE job ADD COLUMN run TEXT NOT NULL DEFAULT ''; UPDATE job SET run = lower(hex(randomblob(8)));",
    2: _VIEWS,
}

# Made at every start: journals that were begun without it get it too. Every `begin` of an upload looks a task up so.
_INDEXES = "CREATE INDEX IF NOT EXISTS tasks_of_device ON tasks (device, task)"


class JournalError(Exception):
    """The journal cannot be used; the message says why and what to do."""


class JournalInUse(JournalError):
    """Another coordinator works on this state directory."""


class JobChanged(JournalError):
    """The job file is not the one that this journal was begun with."""


def open_lock(directory: Path) -> IO[bytes]:
    """Make the state directory where there is none, and keep every other coordinator out of it.

    Raises:
        JournalInUse: Another coordinator holds it.
        JournalError: It cannot be used.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / "lock").open("ab")
    except OSError as error:
        raise JournalError(f"the state directory {directory} cannot be used: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise JournalInUse(
            f"another coordinator works on {directory}; stop it, or give this one another --state directory"
        ) from error
    return lock


def connect(path: Path) -> sqlite3.Connection:
    """Open the journal, making its tables where there are none.

    Raises:
        JournalError: It is no journal, or of another version of this program.
    """
    with explained(path):
        connection = sqlite3.connect(path, isolation_level=None)
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        while version in _UPGRADES:
            upgrade = f"BEGIN IMMEDIATE; {_UPGRADES[version]} PRAGMA user_version = {version + 1}; COMMIT;"
            connection.executescript(upgrade)
            version += 1
        if version not in {0, SCHEMA_VERSION}:
            connection.close()
            raise JournalError(
                f"{path} has schema version {version}, this program writes {SCHEMA_VERSION}; "
                "use the program that began the job, or another --state directory"
            )
        connection.execute(_INDEXES)
    return connection


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into one that names the file and the way out."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise JournalError(
            f"the journal {path} cannot be used: {error}; nothing that was acknowledged is lost: "
            "make room or the directory writable, then start the same command again"
        ) from error


def write_file(path: Path, data: bytes) -> None:
    """Write a file so that it is there wholly or not at all, and stays after a power cut."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
