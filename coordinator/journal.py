"""The journal's file: its schema, how it is opened and locked, and what its errors say.

| table | a row is |
| --- | --- |
| job | the job (one row): its definition, its last coordinator's epoch, its run's digits, and how it stands |
| versions | one version of the weights, and the server step's state; the blobs of some stay (coordinator.keep) |
| downloads | what devices hold of a version (NULL: its weights), and the delta that made it of the one before |
| devices | a device as last seen |
| rounds | round r makes version r + 1: "open", "folded" (its version is written) or "evaluated", and its metrics |
| tasks | what a device was asked from a round's version: "open", "done" or "failed" with a reason, no bytes then |
| updates | an accepted update, and the round it counts in; its bytes go when that is folded, its digest stays |
| requests | what an operator asked of the job, by whom and when, and what came of it (coordinator.requests) |
| evictions | a device that an operator took out of the job, and why |
| lease | the coordinator that may write (one row; coordinator.lease) |

An update's `folded_in` is the version that it went into, written together with that version, and 0 where a rollback
made it void. It is NULL while its round is open, and for good in a job that was done before its buffer was full: it was
accepted, and no version has it. Its round is that of its task, but for asynchronous schedules: the difference is its
staleness.

Notebooks read the view `rounds_v1` (docs/coordinator.md), whose columns stay when the tables change.
"""

import errno
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

SCHEMA_VERSION = 3
JOURNAL_NAME = "journal.sqlite"
PATIENCE_S = 1.0
BUSY_S = 10.0  # for another process's transaction to end

_SCHEMA = """
CREATE TABLE job (
  id INTEGER PRIMARY KEY CHECK (id = 1), definition TEXT NOT NULL, epoch INTEGER NOT NULL, done TEXT,
  run TEXT NOT NULL, paused INTEGER NOT NULL DEFAULT 0, failed TEXT, run_from INTEGER NOT NULL DEFAULT 1,
  cleared INTEGER NOT NULL DEFAULT 0
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
  devices INTEGER, cohort INTEGER, bytes_up INTEGER, bytes_down INTEGER, seconds REAL, accuracy REAL, loss REAL,
  note TEXT, wanted INTEGER
);
CREATE TABLE tasks (
  round INTEGER NOT NULL REFERENCES rounds, device TEXT NOT NULL, task TEXT NOT NULL, data BLOB NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('open', 'done', 'failed')), reason TEXT, seconds REAL,
  PRIMARY KEY (device, task)
);
CREATE TABLE updates (
  round INTEGER NOT NULL, device TEXT NOT NULL, task TEXT NOT NULL, uid TEXT NOT NULL, sha256 TEXT NOT NULL,
  bytes INTEGER NOT NULL, examples INTEGER NOT NULL, loss REAL NOT NULL, data BLOB, folded_in INTEGER,
  PRIMARY KEY (device, task), FOREIGN KEY (device, task) REFERENCES tasks
);
"""

# Tables that came with schema 3, for new and for older journals. `asked_at` and `answered_at` are for people: nothing
# is decided by the hour of a clock that may be set.
_OPERATIONS = """
CREATE TABLE requests (
  request INTEGER PRIMARY KEY AUTOINCREMENT, verb TEXT NOT NULL, argument TEXT NOT NULL, asked_by TEXT NOT NULL,
  asked_at TEXT NOT NULL, answered_at TEXT, outcome TEXT CHECK (outcome IN ('done', 'refused')), message TEXT
);
CREATE TABLE evictions (device TEXT PRIMARY KEY, reason TEXT NOT NULL);
CREATE TABLE lease (id INTEGER PRIMARY KEY CHECK (id = 1), holder TEXT NOT NULL, machine TEXT NOT NULL);
"""
_DOWNLOADS = """
CREATE TABLE downloads (
  version INTEGER PRIMARY KEY, sha256 TEXT NOT NULL, bytes INTEGER NOT NULL, data BLOB,
  base TEXT, delta_sha256 TEXT, delta_bytes INTEGER, codec TEXT, delta BLOB
);
"""

# Tasks and updates got (device, task) for their key: an asynchronous job asks a device several times in one round.
_KEYED = """
CREATE TABLE keyed_tasks (
  round INTEGER NOT NULL REFERENCES rounds, device TEXT NOT NULL, task TEXT NOT NULL, data BLOB NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('open', 'done', 'failed')), reason TEXT, seconds REAL,
  PRIMARY KEY (device, task)
);
CREATE TABLE keyed_updates (
  round INTEGER NOT NULL, device TEXT NOT NULL, task TEXT NOT NULL, uid TEXT NOT NULL, sha256 TEXT NOT NULL,
  bytes INTEGER NOT NULL, examples INTEGER NOT NULL, loss REAL NOT NULL, data BLOB, folded_in INTEGER,
  PRIMARY KEY (device, task), FOREIGN KEY (device, task) REFERENCES keyed_tasks
);
INSERT INTO keyed_tasks
  SELECT round, device, task, data, CASE WHEN tasks.state = 'open' AND rounds.state != 'open' THEN 'failed'
    ELSE tasks.state END, reason, NULL
  FROM tasks JOIN rounds USING (round) ORDER BY round, device;
INSERT INTO keyed_updates
  SELECT round, device, task, uid, sha256, bytes, examples, updates.loss, updates.data,
    CASE WHEN rounds.state = 'open' THEN NULL ELSE round + 1 END
  FROM updates JOIN tasks USING (round, device) JOIN rounds USING (round) ORDER BY round, device;
DROP TABLE updates;
DROP TABLE tasks;
ALTER TABLE keyed_tasks RENAME TO tasks;
ALTER TABLE keyed_updates RENAME TO updates;
"""

# From a schema version to the next one, for journals that were begun before it.
_UPGRADES = {
    1: "ALTER TABLE job ADD COLUMN run TEXT NOT NULL DEFAULT ''; UPDATE job SET run = lower(hex(randomblob(8)));",
    2: """
ALTER TABLE job ADD COLUMN paused INTEGER NOT NULL DEFAULT 0;
ALTER TABLE job ADD COLUMN failed TEXT;
ALTER TABLE job ADD COLUMN run_from INTEGER NOT NULL DEFAULT 1;
ALTER TABLE job ADD COLUMN cleared INTEGER NOT NULL DEFAULT 0;
ALTER TABLE rounds ADD COLUMN note TEXT;
ALTER TABLE rounds ADD COLUMN wanted INTEGER;
"""
    + _KEYED
    + _OPERATIONS
    + _DOWNLOADS,
}

# Made at every start: journals that were begun without them get them too.
_INDEXES = """
CREATE INDEX IF NOT EXISTS tasks_of_round ON tasks (round, device);
CREATE INDEX IF NOT EXISTS open_tasks ON tasks (round) WHERE state = 'open';
CREATE INDEX IF NOT EXISTS updates_of_round ON updates (round, device, task);
CREATE INDEX IF NOT EXISTS waiting_updates ON updates (round) WHERE folded_in IS NULL;
CREATE INDEX IF NOT EXISTS tasks_of_device ON tasks (device, round);
CREATE INDEX IF NOT EXISTS updates_of_device ON updates (device);
CREATE INDEX IF NOT EXISTS kept_versions ON versions (version) WHERE weights IS NOT NULL;
CREATE INDEX IF NOT EXISTS kept_views ON downloads (version) WHERE data IS NOT NULL;
CREATE INDEX IF NOT EXISTS kept_steps ON downloads (version) WHERE delta IS NOT NULL;
"""

# Made at every start as well. rounds_v1 is for notebooks: one with other columns gets another number. versions_in_use
# has those that an open task, or an update which is still to be folded, started from.
_VIEWS = """
CREATE VIEW IF NOT EXISTS rounds_v1 AS SELECT
  round, version AS version_from, attempt AS attempts, state, devices AS devices_accepted, cohort AS devices_asked,
  bytes_up, bytes_down, seconds, accuracy, loss, note
FROM rounds;
CREATE VIEW IF NOT EXISTS versions_in_use AS
  SELECT round AS version FROM tasks WHERE state = 'open' UNION
  SELECT tasks.round FROM updates JOIN tasks USING (device, task) WHERE updates.folded_in IS NULL
"""

# Free pages are given back to the disk in coordinator.keep; the log's file beyond so many bytes by every checkpoint.
# Updates are most of a journal's bytes. In pages of 64 KiB one takes half of the processor time that it takes in
# those of 4 KiB; the price, a page or two for every small transaction, is shared by all that came with one poll.
_PRAGMAS = (
    "page_size = 65536",
    "auto_vacuum = INCREMENTAL",
    "journal_mode = WAL",
    "synchronous = FULL",
    "foreign_keys = ON",
    f"journal_size_limit = {16 << 20}",
    "wal_autocheckpoint = 256",  # pages, the same 16 MiB
)


class JournalError(Exception):
    """The journal cannot be used; the message says why and what to do."""


class JournalInUse(JournalError):
    """Another coordinator works on this state directory."""


class JournalUnwritable(JournalError):
    """The disk is full, read-only or fails, or another process keeps the journal; writing may go on later."""


class JobChanged(JournalError):
    """The job file is not the one that this journal was begun with."""


def open_lock(directory: Path) -> IO[bytes]:
    """Make the state directory where there is none, and keep every other coordinator out of it.

    Command lines hold the lock for moments, so it is tried for a second.

    Raises:
        JournalInUse: Another coordinator holds it.
        JournalError: It cannot be used.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / "lock").open("ab")
    except OSError as error:
        raise JournalError(f"the state directory {directory} cannot be used: {error.strerror}") from error
    until_s = time.monotonic() + PATIENCE_S
    while not _locked(lock):
        if time.monotonic() >= until_s:
            lock.close()
            raise JournalInUse(
                f"another coordinator works on {directory}; stop it, or give this one a --state or --home of its own"
            )
        time.sleep(0.02)
    return lock


def _locked(lock: IO[bytes]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_held(directory: Path) -> bool:
    """Whether a coordinator, or for a moment a command line, holds the state directory."""
    try:
        with (directory / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def connect(path: Path) -> sqlite3.Connection:
    """Open the journal, making its tables where there are none.

    Raises:
        JournalError: It is no journal, or of another version of this program.
    """
    with explained(path):
        connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY_S)
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            tables = _SCHEMA + _OPERATIONS + _DOWNLOADS
            connection.executescript(f"BEGIN IMMEDIATE; {tables} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        older = version in _UPGRADES
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
        if older:
            connection.execute("VACUUM")  # journals of before did not give free pages back, and this makes them do so
        connection.executescript(_INDEXES)
        connection.executescript(_VIEWS)
    return connection


def connect_to_read(path: Path) -> sqlite3.Connection:
    """Open a journal that another process may be writing to.

    Raises:
        JournalError: There is none, or it is of another version of this program.
    """
    connection = _connect_to_existing(path, "ro")
    with explained(path):
        version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != SCHEMA_VERSION:
        connection.close()
        raise JournalError(
            f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}; start a coordinator on it once"
        )
    return connection


def connect_beside(path: Path) -> sqlite3.Connection:
    """Open a journal for a small write beside the coordinator that holds it.

    Raises:
        JournalError: There is none, or it is of another version of this program.
    """
    connect_to_read(path).close()
    return _connect_to_existing(path, "rw")


def _connect_to_existing(path: Path, mode: str) -> sqlite3.Connection:
    if not path.is_file():
        raise JournalError(f"{path.parent} holds no job: there is no {path.name}")
    with explained(path):
        uri = f"{path.resolve().as_uri()}?mode={mode}"
        return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_S)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into one that names the file and the way out."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        unwritable = _primary(error) in _UNWRITABLE
        what_to_do = "make room or the directory writable, then" if unwritable else "restore a backup, or"
        raise (JournalUnwritable if unwritable else JournalError)(
            f"the journal {path} cannot be used: {error}; nothing that was acknowledged is lost: "
            f"{what_to_do} start the same command again"
        ) from error


# SQLite's primary result codes: a full disk, a read-only one, one that fails; a file that cannot be made; and another
# process that keeps the journal locked for longer than BUSY_S.
_UNWRITABLE = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_BUSY,
}


def _primary(error: sqlite3.DatabaseError) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF  # not set by errors of the module's own


# The same of files: errors that more room, or a disk that is mounted again, may end.
_PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG}


def write_file(path: Path, data: bytes) -> None:
    """Write a file so that it is there wholly or not at all, and stays after a power cut.

    Raises:
        JournalUnwritable: The disk is full, read-only or fails.
        OSError: Anything else.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        if error.errno not in _PASSING:
            raise
        raise JournalUnwritable(
            f"{path} cannot be written: {error.strerror}; make room or the disk writable"
        ) from error


def sync_directory(directory: Path) -> None:
    """Make what was renamed in a directory stay after a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
