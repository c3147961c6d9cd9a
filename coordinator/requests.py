"""What operators ask of a job: rows of the journal's table `requests`, carried out by whoever holds the job.

A command line writes a row; the coordinator that runs the job sees that the journal has changed and carries the row
out. Where none runs, the command line takes the job's lock and does the same itself. What a request changes and its
answer are one transaction, so a process killed at any moment leaves a request that was carried out, and says so, or one
that still waits.

| verb | argument | what it changes |
| --- | --- | --- |
| pause | | no round is started; the one that runs goes on to its version |
| resume | | rounds are started again; a job that failed may go on |
| stop | | the job is done with the newest version, which is exported |
| rollback | a version | a new version with that one's weights and server state, in the place of a round |
| evict | a device | its open task ends, and it is asked no more |
| readmit | a device | it is asked again |
"""

import getpass
import json
import os
import socket
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from coordinator.journal import JOURNAL_NAME, JournalInUse, connect_beside, explained, is_held
from coordinator.results import ModelMissing, export
from coordinator.store import Store, Write, open_store
from coordinator.versions import VersionMissing, roll_back
from edge_runtime.errors import EdgeError
from edge_runtime.wire.topics import check_id

ANSWER_POLL_S = 0.05
MAX_DIGITS = 30  # of a version; more than any job has, and few enough to be read
NO_WAY_BACK = frozenset({"ef21"})  # methods whose devices hold parts of what the gateway has the sum of, for good


class RequestRefused(Exception):
    """The job is not in a state for it; the message says why and what to do."""


@dataclass(frozen=True)
class Request:
    """A row that waits for its answer."""

    number: int
    verb: str
    argument: str
    asked_by: str


@dataclass(frozen=True)
class Answer:
    """What came of a request; `done` is False when it was refused."""

    done: bool
    message: str


class Inbox:
    """The requests of an open journal, looked for only when another process has written to it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen: int | None = None
        self._left = False

    def waiting(self) -> tuple[Request, ...]:
        """Requests without an answer, the oldest first; costs a few microseconds when there is no news."""
        changes = self._store.foreign_changes()
        if changes == self._seen and not self._left:
            return ()
        self._seen = changes
        found = unanswered(self._store)
        self._left = bool(found)  # what is not carried out at once is found again
        return found


def unanswered(store: Store) -> tuple[Request, ...]:
    """Requests without an answer, the oldest first."""
    columns = "request, verb, argument, asked_by"
    rows = store.rows(f"SELECT {columns} FROM requests WHERE outcome IS NULL ORDER BY request")  # noqa: S608  columns is a constant
    return tuple(Request(*row) for row in rows)


def carry_out(store: Store, request: Request) -> Answer:
    """Change the journal as a request asks and answer it, in one transaction.

    Raises:
        JournalError: It cannot be written; the request still waits.
    """
    try:
        with store.transaction() as write:
            message = _carry_out(store, write, request)
            return _answer(write, request, Answer(done=True, message=message))
    except (RequestRefused, VersionMissing, ModelMissing, EdgeError) as refusal:
        with store.transaction() as write:
            return _answer(write, request, Answer(done=False, message=str(refusal)))


def _carry_out(store: Store, write: Write, request: Request) -> str:
    if request.verb not in VERBS:
        raise RequestRefused(f"{request.verb!r} is none of {', '.join(VERBS)}")
    done = store.done()
    if done is not None:
        raise RequestRefused(f"the job is done: {done}; clone it to go on from one of its versions")
    return VERBS[request.verb](store, write, request)


def _answer(write: Write, request: Request, answer: Answer) -> Answer:
    outcome = "done" if answer.done else "refused"
    row = (_now(), outcome, answer.message, request.number)
    write("UPDATE requests SET answered_at = ?, outcome = ?, message = ? WHERE request = ?", row)
    return answer


def _pause(_store: Store, write: Write, _request: Request) -> str:
    if write("UPDATE job SET paused = 1 WHERE paused = 0") == 0:
        return "was paused already"
    return "paused: the round that runs goes on to its version, and no other is started"


def _resume(_store: Store, write: Write, _request: Request) -> str:
    if write("UPDATE job SET paused = 0, failed = NULL WHERE paused = 1 OR failed IS NOT NULL") == 0:
        return "was not paused"
    return "goes on"


def _stop(store: Store, write: Write, request: Request) -> str:
    done = export(store)
    write("UPDATE job SET done = ?, paused = 0, failed = NULL", (f"stopped by {request.asked_by}",))
    return f"stopped with version {store.latest().version}; {done['model']} is written"


def _rollback(store: Store, write: Write, request: Request) -> str:
    if not request.argument.isdecimal() or len(request.argument) > MAX_DIGITS:
        raise RequestRefused(f"{request.argument!r} is no version: give its number, as `job show` lists them")
    if json.loads(store.definition()["method.name"]) in NO_WAY_BACK:
        raise RequestRefused(
            "devices go on from what they remember, which cannot go back; clone the job from that version"
        )
    made = roll_back(store, write, int(request.argument), request.asked_by)
    return f"version {made} has the weights and the server state of version {request.argument}"


def _evict(store: Store, write: Write, request: Request) -> str:
    device = check_id(request.argument, "device")
    row = (device, f"evicted by {request.asked_by}")
    if write("INSERT INTO evictions VALUES (?, ?) ON CONFLICT DO NOTHING", row) == 0:
        return f"{device} was evicted already"
    write("UPDATE tasks SET state = 'failed', reason = ? WHERE device = ? AND state = 'open'", (row[1], device))
    if not store.rows("SELECT 1 FROM devices WHERE device = ?", (device,)):
        return f"{device}, which the job has not seen yet, takes no part until it is readmitted"
    return f"{device} takes no further part until it is readmitted"


def _readmit(_store: Store, write: Write, request: Request) -> str:
    device = check_id(request.argument, "device")
    found = write("DELETE FROM evictions WHERE device = ?", (device,))
    found += write("UPDATE devices SET unfit = NULL WHERE device = ? AND unfit IS NOT NULL", (device,))
    return f"{device} is asked again" if found else f"{device} was not evicted"


VERBS: Mapping[str, Callable[[Store, Write, Request], str]] = {
    "pause": _pause,
    "resume": _resume,
    "stop": _stop,
    "rollback": _rollback,
    "evict": _evict,
    "readmit": _readmit,
}


# From another process than the one that holds the job.


def request(directory: Path, verb: str, argument: str, timeout_s: float) -> Answer | None:
    """Ask a job for something, and wait until it is carried out: by its coordinator, or here where there is none.

    Returns:
        The answer, or None when the coordinator that holds the job has not given one by then; the request still waits.

    Raises:
        JournalError: The journal is not there or cannot be used.
    """
    path, until_s = directory / JOURNAL_NAME, time.monotonic() + timeout_s
    with closing(connect_beside(path)) as connection, explained(path):
        number = _ask(connection, verb, argument)
        while True:
            if not is_held(directory):
                _carry_out_here(directory)
            query = "SELECT outcome, message FROM requests WHERE request = ?"
            outcome, message = connection.execute(query, (number,)).fetchone()
            if outcome is not None:
                return Answer(outcome == "done", message)
            if time.monotonic() >= until_s:
                return None
            time.sleep(ANSWER_POLL_S)


def _ask(connection: sqlite3.Connection, verb: str, argument: str) -> int:
    columns, row = "verb, argument, asked_by, asked_at", (verb, argument, whoever(), _now())
    cursor = connection.execute(f"INSERT INTO requests ({columns}) VALUES (?, ?, ?, ?)", row)  # noqa: S608  columns is a constant
    return int(cursor.lastrowid or 0)


def _carry_out_here(directory: Path) -> None:
    """Carries out what waits, unless a coordinator takes the job up at this moment: then that does it."""
    with suppress(JournalInUse), closing(open_store(directory)) as store:
        for each in unanswered(store):
            carry_out(store, each)


def whoever() -> str:
    """The user and machine of this process, for the record."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())  # a user without a name, as in containers
    return f"{user}@{socket.gethostname()}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
