"""The journal of one job: SQLite in the state directory. What is not in it has not happened.

Every method that writes is one transaction, committed with an fsync (WAL, synchronous=FULL) before it returns, so a
process killed at any moment leaves the state before or after it and nothing between. Inside `batch` they are one
transaction together, committed at its end.

The tables are described in coordinator.journal. Version 1 is the first weights; round r starts from version r and makes
version r + 1.
"""

import json
import secrets
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from coordinator.fleet import Presence
from coordinator.journal import JOURNAL_NAME, JobChanged, connect, connect_to_read, explained, open_lock
from coordinator.journal_beside import digests_beside, updates_beside, updates_of, weights_beside
from coordinator.journal_records import EXPIRED, JournalTask, JournalUpdate, RoundFigures, Version
from coordinator.journal_state import read_evicted, read_journalled, read_paused, read_standing
from coordinator.keep import KEEP, drop_weights, give_back
from coordinator.lease import Lease, beat, end_lease, new_lease, take_lease, wait_for_silence
from coordinator.round_records import Journalled, Standing
from coordinator.transactions import Transactions, Write
from coordinator.views import digests, drop_views, insert_view, read_view

__all__ = [
    "EXPIRED",
    "JournalTask",
    "JournalUpdate",
    "RoundFigures",
    "Store",
    "Version",
    "Write",
    "digests_beside",
    "open_reader",
    "open_store",
    "updates_beside",
    "weights_beside",
]


class Store(Transactions):
    """An open journal; holds the connection and the lock that keeps a second coordinator out."""

    def __init__(
        self, connection: sqlite3.Connection, lock: IO[bytes] | None, path: Path, lease: Lease | None = None
    ) -> None:
        super().__init__(connection, path, lease)
        self._lock = lock
        self.keep = KEEP
        self.beats = True  # whether the disk took the last beat

    def close(self) -> None:
        """Close the journal and let another coordinator in."""
        self._connection.close()
        if self._lease is not None:
            end_lease(self.directory, self._lease)
        if self._lock is not None:
            self._lock.close()

    def beat(self) -> None:
        """Show other machines that the holder lives; call it every coordinator.lease.BEAT_S."""
        if self._lease is None:
            return
        try:
            beat(self.directory, self._lease)
            self.beats = True
        except OSError:  # on a disk that takes nothing nobody else can take over either
            self.beats = False

    # The job.

    def begin(self, definition: Mapping[str, str], weights: Version) -> bool:
        """Write the job and its first version, or check that the journal holds the very same job.

        Returns:
            True when the job is new.

        Raises:
            JobChanged: The journal's job differs; names every difference.
        """
        found = self._one("SELECT definition FROM job")
        if found is not None:
            _check_same(json.loads(found[0]), definition, self._path.parent)
            return False
        with self._writing() as write:
            columns = (json.dumps(definition, sort_keys=True), secrets.token_hex(8))
            write("INSERT INTO job (id, definition, epoch, run) VALUES (1, ?, 0, ?)", columns)
            _insert_version(write, weights)
        return True

    def definition(self) -> dict[str, str]:
        """Everything that decides the job's result, as JSON by name; empty before the job was begun."""
        found = self._one("SELECT definition FROM job")
        return {} if found is None else json.loads(found[0])

    def run(self) -> str:
        """16 hexadecimal digits drawn when the job was begun: what devices carry over is of this run or of another."""
        return str(self._one("SELECT run FROM job")[0])

    def epoch(self) -> int:
        """The epoch of the last coordinator on this job; 0 before the first."""
        return int(self._one("SELECT epoch FROM job")[0])

    def keep_epoch(self, epoch: int) -> None:
        """A coordinator of this epoch works on the job."""
        with self._writing() as write:
            write("UPDATE job SET epoch = ?", (epoch,))

    def forgive(self) -> None:
        """Forget which devices are unfit, and their failed tasks of an open round.

        Called when the job fails: to start it again is the operator's word that the devices are mended.
        """
        with self._writing() as write:
            write("UPDATE devices SET unfit = NULL")
            write(
                "DELETE FROM tasks WHERE state = 'failed' AND round IN (SELECT round FROM rounds WHERE state = 'open')"
            )

    def done(self) -> str | None:
        """Why the job is done, or None while it is not."""
        found = self._one("SELECT done FROM job")
        return None if found is None or found[0] is None else str(found[0])

    def finish(self, reason: str) -> None:
        """The job is done."""
        with self._writing() as write:
            write("UPDATE job SET done = ?", (reason,))

    def give_back(self) -> int:
        """Give pages that nobody needs back to the disk, all of them once the job is done; returns the bytes."""
        with explained(self._path):
            return give_back(self._connection, all_of_it=self.done() is not None)

    def cleared(self) -> bool:
        """Whether nothing of this job is left on the broker, as far as is known."""
        return self.epoch() == 0 or bool(self._one("SELECT cleared FROM job")[0])

    def clear(self) -> None:
        """What the ended job had on the broker was taken off."""
        with self._writing() as write:
            write("UPDATE job SET cleared = 1")

    def failed(self) -> str | None:
        """Why the job failed when it last ran, or None."""
        found = self._one("SELECT failed FROM job")
        return None if found is None else found[0]

    def fail(self, reason: str | None) -> None:
        """The job cannot go on, until an operator says that it can; None: it goes on."""
        with self._writing() as write:
            write("UPDATE job SET failed = ?", (reason,))

    def paused(self) -> bool:
        """Whether an operator wants no further round."""
        return read_paused(self._all)

    def evicted(self) -> frozenset[str]:
        """The devices that an operator took out of the job."""
        return read_evicted(self._all)

    # Devices.

    def see_device(self, name: str, presence: Presence, examples: int) -> None:
        """Write a device as it was last seen."""
        with self._writing() as write:
            write(
                "INSERT INTO devices VALUES (?, ?, ?, NULL) ON CONFLICT (device) "
                "DO UPDATE SET presence = excluded.presence, examples = excluded.examples",
                (name, presence.value, examples),
            )

    # Rounds.

    def start_round(self, number: int, attempt: int, tasks: tuple[JournalTask, ...], wanted: int | None = None) -> None:
        """Write that a round starts (again), with the tasks of those who are asked now; other open tasks stay.

        Args:
            number: The round, and the version that the tasks start from.
            attempt: How often it was started with this.
            tasks: Each with a name that its device had no task of before.
            wanted: With how many updates the round closes early, if it does.
        """
        with self._writing() as write:
            _open_round(write, number)
            write("UPDATE rounds SET attempt = ?, wanted = ? WHERE round = ?", (attempt, wanted, number))
            for task in tasks:
                row = (number, task.device, task.task, task.data)
                write("INSERT INTO tasks VALUES (?, ?, ?, ?, 'open', NULL, NULL)", row)

    def add_update(self, update: JournalUpdate, seconds: float | None = None) -> bool:
        """Write an update; it counts from here on, in `update.round`.

        Args:
            update: With its bytes.
            seconds: What the device takes for the whole work, from publication to now, if this process published it.

        Returns:
            False, with nothing written, when its task is not open.
        """
        key = (update.device, update.task)
        claims = (update.uid, update.sha256, len(update.data), update.examples, update.loss, update.data)
        with self._writing() as write:
            changed: int = write(
                "UPDATE tasks SET state = 'done', data = x'', seconds = ? "
                "WHERE device = ? AND task = ? AND state = 'open'",
                (seconds, *key),
            )
            if changed == 1:
                row = (update.round, *key, *claims)
                write("INSERT INTO updates VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)", row)
        return changed == 1

    def fail_task(self, number: int, device: str, reason: str, *, unfit: bool) -> None:
        """Write that the device failed its task of this round, and whether it takes no further part."""
        with self._writing() as write:
            write(
                "UPDATE tasks SET state = 'failed', reason = ?, data = x'' "
                "WHERE round = ? AND device = ? AND state = 'open'",
                (reason, number, device),
            )
            if unfit:
                write("UPDATE devices SET unfit = ? WHERE device = ?", (reason, device))

    def updates(self, number: int) -> Iterator[JournalUpdate]:
        """The accepted updates of a round, in ascending order of (device, task), one at a time."""
        return updates_of(self._connection, self._path, number)

    def accepted_digest(self, device: str, task: str) -> str | None:
        """The SHA-256 of the update that was accepted for this task of this device, folded or not."""
        found = self._one("SELECT sha256 FROM updates WHERE device = ? AND task = ?", (device, task))
        return None if found is None else str(found[0])

    def last_counted(self, device: str) -> tuple[str, str] | None:
        """The device's task of this run whose update was the last to be accepted, and that update's SHA-256."""
        # Rows are numbered in the order in which they were written.
        query = (
            "SELECT task, sha256 FROM updates WHERE device = ? AND round >= (SELECT run_from FROM job) "
            "ORDER BY rowid DESC LIMIT 1"
        )
        found = self._one(query, (device,))
        return None if found is None else (str(found[0]), str(found[1]))

    def is_outsider(self, device: str, members: int) -> bool:
        """Whether so many devices have had an update accepted, in any round, and this is none of them."""
        query = "SELECT count(DISTINCT device), coalesce(max(device = ?), 0) FROM updates"
        counted, among_them = self._one(query, (device,))
        return counted >= members and not among_them

    def fold_round(self, number: int, made: Version, figures: RoundFigures, max_staleness: int = 0) -> None:
        """Write the version that a round made, with what it means for updates, tasks and older versions.

        Its updates' bytes are dropped. Tasks that are now more than `max_staleness` versions behind are failed: an
        update for them could not count any more. Versions lose their weights as coordinator.keep says.
        """
        row = (figures.devices, figures.cohort, figures.bytes_up, figures.bytes_down, figures.seconds, number)
        with self._writing() as write:
            _insert_version(write, made)
            _open_round(write, number)
            write(
                "UPDATE rounds SET state = 'folded', devices = ?, cohort = ?, bytes_up = ?, bytes_down = ?, "
                "seconds = ? WHERE round = ? AND state = 'open'",
                row,
            )
            write("UPDATE updates SET data = NULL, folded_in = ? WHERE round = ?", (made.version, number))
            write(
                "UPDATE tasks SET state = 'failed', reason = ?, data = x'' WHERE state = 'open' AND round < ?",
                (EXPIRED, made.version - max_staleness),
            )
            drop_weights(write, made.version, self.keep)
            drop_views(write, made.version)

    def judge_round(self, number: int, accuracy: float, loss: float) -> None:
        """Write what the evaluation of a round's version said."""
        with self._writing() as write:
            write(
                "UPDATE rounds SET state = 'evaluated', accuracy = ?, loss = ? WHERE round = ?",
                (accuracy, loss, number),
            )

    def figures(self, number: int) -> RoundFigures:
        """What was written when the round was folded."""
        columns = "devices, cohort, bytes_up, bytes_down, seconds"
        return RoundFigures(*self._one(f"SELECT {columns} FROM rounds WHERE round = ?", (number,)))  # noqa: S608  columns is a constant

    def last_accuracy(self) -> tuple[int, float] | None:
        """The last evaluated round and its accuracy."""
        found = self._one("SELECT round, accuracy FROM rounds WHERE state = 'evaluated' ORDER BY round DESC LIMIT 1")
        return None if found is None else (int(found[0]), float(found[1]))

    # What a restart needs.

    def latest(self) -> Version:
        """The newest version."""
        return self.version(int(self._one("SELECT max(version) FROM versions")[0]))

    def digests(self, newest: int) -> tuple[tuple[str, int], ...]:
        """SHA-256 and size of what was sent of the newest versions, newest first."""
        whole = self._all("SELECT sha256, bytes FROM versions ORDER BY version DESC LIMIT ?", (newest,))
        return tuple(dict([*digests(self._all, newest), *whole]).items())

    def open_tasks(self) -> tuple[JournalTask, ...]:
        """The tasks that are still open, in ascending order of device ids."""
        rows = self._all("SELECT device, task, data FROM tasks WHERE state = 'open' ORDER BY device")
        return tuple(JournalTask(*row) for row in rows)

    def version(self, number: int) -> Version:
        """A version whose weights are kept, as those of open tasks are."""
        query = "SELECT sha256, weights, state FROM versions WHERE version = ?"
        sha256, weights, state = self._one(query, (number,))
        return Version(number, sha256, weights, state, read_view(self._all, number, weights))

    def open_task(self, device: str, task: str) -> JournalTask | None:
        """The device's task of this name, unless it is done or failed."""
        row = self._one(
            "SELECT device, task, data FROM tasks WHERE device = ? AND task = ? AND state = 'open'", (device, task)
        )
        return None if row is None else JournalTask(*row)

    def expired(self, device: str, task: str) -> bool:
        """Whether the device's task of this name was failed because its version is too far behind."""
        row = self._one("SELECT 1 FROM tasks WHERE device = ? AND task = ? AND reason = ?", (device, task, EXPIRED))
        return row is not None

    def present_round(self) -> int:
        """The round that is open, or else the next one; from 1."""
        return int(self._one("SELECT coalesce(max(round + (state = 'evaluated')), 1) FROM rounds")[0])

    def journalled(self) -> Journalled:
        """Where the job stands, for coordinator.rounds."""
        return read_journalled(self._all)

    def standing(self) -> Standing:
        """Where the job stands, for coordinator.buffered."""
        return read_standing(self._all)


def open_store(directory: Path) -> Store:
    """Open the journal of a state directory, making both where there are none.

    Raises:
        JournalInUse: Another coordinator holds the directory.
        JournalError: It cannot be opened, or is of another version of this program.
    """
    path, lease = directory / JOURNAL_NAME, new_lease()
    lock = open_lock(directory)
    try:
        wait_for_silence(directory, lease)
        connection = connect(path)
        with explained(path):
            take_lease(connection, lease)
        store = Store(connection, lock, path, lease)
    except BaseException:
        lock.close()
        raise
    store.beat()
    return store


def open_reader(directory: Path) -> Store:
    """The journal of a state directory to be read only, whoever holds it.

    Raises:
        JournalError: There is none, or it is of another version of this program.
    """
    path = directory / JOURNAL_NAME
    return Store(connect_to_read(path), None, path)


def _open_round(write: Any, number: int) -> None:
    write("INSERT OR IGNORE INTO rounds (round, version, attempt, state) VALUES (?, ?, 0, 'open')", (number, number))


def _insert_version(write: Any, made: Version) -> None:
    row = (made.version, made.sha256, len(made.weights), made.weights, made.state)
    write("INSERT INTO versions VALUES (?, ?, ?, ?, ?)", row)
    if made.view is not None:
        insert_view(write, made.version, made.sha256, made.view)


def _check_same(old: Mapping[str, str], new: Mapping[str, str], directory: Path) -> None:
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    if changed:
        lines = [f"  {key}: was {old.get(key)}, is {new.get(key)}" for key in changed]
        raise JobChanged(
            f"the job file has changed since {directory} was begun:\n"
            + "\n".join(lines)
            + "\nput the old values back, or give the changed job another --state directory"
        )
