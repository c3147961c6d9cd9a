"""A disk that takes nothing: updates are refused for a while, nothing is lost, and the job goes on to the same bits."""

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from coordinator import stall
from coordinator.events import enduring
from coordinator.gateway import EXIT_FAILED
from coordinator.journal import JOURNAL_NAME, JournalError, JournalUnwritable, explained, write_file
from coordinator.lease import BEAT_NAME
from coordinator.seat import _look_around
from coordinator.store import Store, Write, open_store
from coordinator.watch import stand
from edge_runtime.wire import UpdateSettled
from edge_runtime.wire.messages import Begin
from support.memory import MemorySite, finished, start_all
from support.tiny_job import make_site

if TYPE_CHECKING:
    from coordinator.seat import Seat
    from edge_runtime.link import Link


class FillingStore(Store):
    """A journal whose disk is full from its n-th transaction on, until room is made."""

    left = -1
    full = False

    @contextmanager
    def _writing(self) -> Iterator[Write]:
        self.left -= 1
        self.full = self.full or self.left == 0
        if self.full:
            with super()._writing() as write:
                write("UPDATE job SET epoch = 99")
                raise JournalUnwritable("database or disk is full")
        with super()._writing() as write:
            yield write


class FullSite(MemorySite):
    """A site whose coordinator does about a full disk what the shell does."""

    stalled: Any = None
    stalls = 0
    turns_left = 0

    def _coordinator_turn(self) -> None:
        assert self.job is not None
        store = self.job._parts.store
        assert isinstance(store, FillingStore)
        if self.stalled is None:
            try:
                super()._coordinator_turn()
            except JournalUnwritable:
                self.stalls, self.turns_left = self.stalls + 1, 60
                self.stalled = stall.stalled_session(store, "test", self.job.session.epoch, self.job.session.boot)
                self.send(stall.answers(self.stalled.connected(self.now_s)))
            return
        inbox = self.broker.clients["gateway"].inbox
        while inbox:
            topic, payload, retain = inbox.popleft()
            self.send(stall.answers(self.stalled.received(self.now_s, topic, payload, retain=retain)))
        self.turns_left -= 1
        if self.turns_left <= 0:
            store.full = False
            self.stalled = None
            session = self.job.session
            self.job = type(self.job)(self.job._parts, "test", session.epoch, session.boot, self.now_s)
            self.send(self.job.connected(self.now_s))


def filling(store: Store, at: int) -> FillingStore:
    made = FillingStore(store._connection, store._lock, store._path)
    made.left = at
    return made


def full_site(tmp_path: Path) -> FullSite:
    made = make_site(tmp_path)
    return FullSite(made.job_file, made.state, {name: each.dataset for name, each in made.devices.items()})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    site = make_site(tmp_path_factory.mktemp("undisturbed"))
    start_all(site)
    return finished(site)


def test_a_disk_that_is_full_at_any_write_costs_time_and_not_a_bit(tmp_path: Path, undisturbed: str) -> None:
    refused = stalls = 0
    at = 4  # the job is begun and a coordinator on it
    while True:
        site = full_site(tmp_path / str(at))
        site.start(lambda store, at=at: filling(store, at))
        for device in site.devices.values():
            device.start(site.now_s)
        assert finished(site) == undisturbed, f"transaction {at}"
        settled = [each for device in site.devices.values() for each in device.settled]
        assert {each.outcome for each in settled if isinstance(each, UpdateSettled)} <= {"done"}
        refused += sum("GatewayFull" in str(each) for each in settled)
        stalls += site.stalls
        if site.stalls == 0:
            break
        at += 1
    assert stalls == at - 4 > 10
    assert refused > 0


def test_an_update_that_was_durable_before_the_disk_filled_is_still_answered_done(tmp_path: Path) -> None:
    site = full_site(tmp_path)
    site.start(lambda store: filling(store, -1))
    for device in site.devices.values():
        device.start(site.now_s)
    site.run(lambda: len(site.seen("update")) >= 3)
    assert site.job is not None
    session = stall.stalled_session(site.job._parts.store, "test", 1, "boot")
    session.connected(0.0)
    task = site.devices["dev-a"].tasks[0].task
    digest = site.job._parts.store.accepted_digest("dev-a", task)
    assert digest is not None
    outcomes = session._on_begin(0.0, "dev-a", digest[:16], Begin(task, digest, 100))
    assert "Done" in repr(outcomes)
    other = "0" * 64
    assert "GatewayFull" in repr(session._on_begin(0.0, "dev-a", other[:16], Begin("tiny.9.dev-a", other, 100)))
    site.kill()


def test_a_sample_says_that_the_next_version_has_no_room_or_the_disk_takes_no_beat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_site(tmp_path)
    site.start()
    assert site.job is not None
    link = cast("Link", SimpleNamespace(connected=True, connects=1, bytes_down=0, bytes_up=0))
    store, needed = site.job._parts.store, stall.needed_bytes(site.job.published.version)
    for free, usable in ((needed, 1), (needed - 1, 0)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        assert stand(site.job, link, store)["disk_usable"] == usable
    monkeypatch.undo()
    (store.directory / BEAT_NAME).unlink()
    (store.directory / BEAT_NAME).mkdir()  # not even root can write there
    store.beat()
    assert stand(site.job, link, store)["disk_usable"] == 0
    (store.directory / BEAT_NAME).rmdir()
    store.beat()
    assert stand(site.job, link, store)["disk_usable"] == 1
    site.kill()


def test_a_job_that_has_told_of_its_end_is_looked_at_no_more(tmp_path: Path) -> None:
    site, told = make_site(tmp_path), list[Mapping[str, Any]]()
    site.start()
    assert site.job is not None
    link = SimpleNamespace(connected=True, connects=1, bytes_down=0, bytes_up=0)
    parts = SimpleNamespace(emit=told.append, store=site.job._parts.store)
    seat = cast("Seat", SimpleNamespace(parts=parts, link=link, others_wait=lambda: None))
    _look_around(seat, site.job)
    assert [event["event"] for event in told] == ["sample"]
    site.job.exit_code = EXIT_FAILED
    _look_around(seat, site.job)
    assert len(told) == 1
    site.kill()


@pytest.mark.parametrize(
    "code", ["SQLITE_FULL", "SQLITE_READONLY", "SQLITE_IOERR", "SQLITE_IOERR_WRITE", "SQLITE_BUSY"]
)
def test_errors_of_a_disk_that_takes_nothing_are_told_from_others(tmp_path: Path, code: str) -> None:
    error = sqlite3.OperationalError(code)
    error.sqlite_errorcode = getattr(sqlite3, code)
    with pytest.raises(JournalUnwritable), explained(tmp_path):
        raise error


def test_a_damaged_journal_is_no_full_disk(tmp_path: Path) -> None:
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    with pytest.raises(JournalError) as caught, explained(tmp_path):
        raise error
    assert not isinstance(caught.value, JournalUnwritable)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
def test_a_file_that_does_not_fit_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    write_file(tmp_path / "final", b"old")

    def fail(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(JournalUnwritable, match="make room"):
        write_file(tmp_path / "final", b"new")
    assert (tmp_path / "final").read_bytes() == b"old"


def test_there_is_room_only_when_a_version_would_fit_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = make_site(tmp_path)
    site.start()
    site.kill()
    with closing(open_store(site.state)) as store:
        assert stall.has_room(store)
        size = len(store.latest().weights)
        real = os.statvfs(tmp_path)
        for free, expected in ((stall.ROOM_BYTES + size, False), (stall.ROOM_BYTES + 2 * size + real.f_frsize, True)):
            blocks = free // real.f_frsize
            values = tuple(blocks if index == 4 else each for index, each in enumerate(real))
            monkeypatch.setattr(os, "statvfs", lambda _, values=values: os.statvfs_result(values))
            assert stall.has_room(store) is expected


def test_a_write_limit_shows_in_the_probe(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    site.start()
    site.kill()
    with closing(open_store(site.state)) as store:
        store._connection.execute("PRAGMA query_only = ON")
        with pytest.raises(JournalUnwritable):
            stall.has_room(store)
    assert (site.state / JOURNAL_NAME).is_file()


LIMITED = """
import resource, sys
from dataclasses import replace
from pathlib import Path
from coordinator.journal import JournalUnwritable
from coordinator.store import JournalTask, JournalUpdate, Version, open_store
store = open_store(Path(sys.argv[1]))
store.begin({"job.name": '"x"'}, Version(1, "0" * 64, b"weights", b"state"))
tasks = tuple(JournalTask(f"dev-{i}", f"x.1.dev-{i}", b"task") for i in range(40))
store.start_round(1, 1, tasks)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
log = Path(sys.argv[1]) / "journal.sqlite-wal"
resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + (3 << 20), hard))
written = 0
def add(i):
    store.add_update(JournalUpdate(1, f"dev-{i}", f"x.1.dev-{i}", 1, "0" * 16, "0" * 64, 7, 0.5, bytes([i]) * 200_000))
try:
    for i in range(40):
        add(i)
        written += 1
except JournalUnwritable as error:
    print("full after", written, "of 40")
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
for i in range(written, 40):
    add(i)
print(sum(each.data == bytes([int(each.device[4:])]) * 200_000 for each in store.updates(1)), "whole")
print(store.rows("PRAGMA integrity_check")[0][0], store.rows("PRAGMA foreign_key_check"))
"""


def test_a_limit_on_the_size_of_files_is_a_full_disk_and_what_was_committed_is_whole(tmp_path: Path) -> None:
    words = [sys.executable, "-c", LIMITED, str(tmp_path / "state")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    full, whole, sound = done.stdout.splitlines()
    assert 0 < int(full.split()[2]) < 40
    assert (whole, sound) == ("40 whole", "ok []")


def test_a_log_whose_disk_is_full_costs_lines_and_says_how_many() -> None:
    told: list[Mapping[str, Any]] = []
    room = [True]

    def emit(event: Mapping[str, Any]) -> None:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        told.append(event)

    tolerant = enduring(emit)
    for number in range(6):
        room[0] = number not in {2, 3}
        tolerant({"event": "waiting", "round": number})
    assert [event.get("round") for event in told] == [0, 1, None, 4, 5]
    assert told[2]["message"] == "the log's disk did not take 2 events"


def test_a_log_that_nobody_reads_any_more_is_an_error() -> None:
    def emit(_event: Mapping[str, Any]) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        enduring(emit)({"event": "waiting"})
