"""The journal: what is committed stays, duplicates change nothing, and what cannot be used is refused with a reason."""

import re
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator import keep as keeping
from coordinator.fleet import Presence
from coordinator.journal import JOURNAL_NAME, JobChanged, JournalError, JournalInUse, write_file
from coordinator.keep import Keep
from coordinator.round_records import Outcome, Phase
from coordinator.store import (
    JournalTask,
    JournalUpdate,
    RoundFigures,
    Store,
    Version,
    open_store,
    updates_beside,
)

DEFINITION = {"job.name": '"digits"', "job.seed": "1"}
FIGURES = RoundFigures(devices=2, cohort=2, bytes_up=10, bytes_down=20, seconds=1.5)


def version(number: int) -> Version:
    return Version(number, f"{number:064x}", b"weights %d" % number, b"state")


def task(device: str, attempt: int = 1) -> JournalTask:
    return JournalTask(device, f"digits.1.{device}.{attempt}", b"task")


def update(device: str, number: int = 1) -> JournalUpdate:
    name = f"digits.{number}.{device}.1"
    return JournalUpdate(number, device, name, number, "0" * 16, device * 64, 7, 0.5, b"data of " + device.encode())


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "state")
    opened.begin(DEFINITION, version(1))
    for name in "abc":
        opened.see_device(name, Presence.ONLINE, 9)
    yield opened
    opened.close()


def reopened(store: Store, tmp_path: Path) -> Store:
    store.close()
    return open_store(tmp_path / "state")


def test_a_new_journal_gathers_for_round_1_from_version_1(store: Store) -> None:
    found = store.journalled()
    assert (found.phase, found.round, found.attempt) == (Phase.GATHERING, 1, 0)
    assert store.latest() == version(1)


def test_an_open_round_is_found_again_with_every_outcome(store: Store, tmp_path: Path) -> None:
    store.start_round(1, 1, (task("a"), task("b"), task("c")))
    assert store.add_update(update("b"))
    store.fail_task(1, "c", "OverMemoryLimit", unfit=True)
    again = reopened(store, tmp_path)
    found = again.journalled()
    assert (found.phase, found.round, found.attempt) == (Phase.COLLECTING, 1, 1)
    assert found.cohort == {"a": Outcome.PENDING, "b": Outcome.DELIVERED, "c": Outcome.FAILED}
    assert found.fleet["c"].unfit == "OverMemoryLimit"
    assert again.open_tasks() == (task("a"),)
    again.close()


def test_an_update_counts_once(store: Store) -> None:
    store.start_round(1, 1, (task("a"), task("b")))
    assert store.add_update(update("a"))
    assert not store.add_update(replace(update("a"), data=b"another"))
    assert [each.data for each in store.updates(1)] == [b"data of a"]


def test_an_update_without_a_task_is_not_written(store: Store) -> None:
    store.start_round(1, 1, (task("a"), task("b")))
    assert not store.add_update(update("c"))
    assert list(store.updates(1)) == []


def test_updates_come_in_the_order_of_device_ids(store: Store) -> None:
    store.start_round(1, 1, (task("a"), task("b"), task("c")))
    for device in "cab":
        store.add_update(update(device))
    assert [each.device for each in store.updates(1)] == ["a", "b", "c"]


def test_another_thread_reads_the_updates_beside_the_store(store: Store, tmp_path: Path) -> None:
    store.start_round(1, 1, (task("a"), task("b"), task("c")))
    for device in "ba":
        store.add_update(update(device))
    with ThreadPoolExecutor(1) as worker:
        found = worker.submit(lambda: list(updates_beside(tmp_path / "state", 1))).result()
    assert found == list(store.updates(1)) == [update("a"), update("b")]


def test_a_second_attempt_keeps_what_was_delivered_and_who_is_still_at_it(store: Store) -> None:
    store.start_round(1, 1, (task("a"), task("b"), task("c")))
    store.add_update(update("a"))
    store.fail_task(1, "c", "BlobMissing", unfit=False)
    store.start_round(1, 2, (task("c", 2),))
    found = store.journalled()
    assert found.attempt == 2
    assert found.cohort == {"a": Outcome.DELIVERED, "b": Outcome.PENDING, "c": Outcome.PENDING}
    assert store.open_tasks() == (task("b"), task("c", 2))


def test_folding_writes_the_version_and_drops_the_updates_but_not_their_digests(store: Store) -> None:
    store.start_round(1, 1, (task("a"), task("b")))
    store.add_update(update("a"))
    store.fold_round(1, version(2), FIGURES)
    assert store.journalled().phase is Phase.JUDGING
    assert store.latest() == version(2)
    assert [each.data for each in store.updates(1)] == [None]
    assert store.accepted_digest("a", task("a").task) == "a" * 64
    assert store.accepted_digest("b", task("b").task) is None
    assert store.figures(1) == FIGURES


def test_a_judged_round_is_found_again_with_its_accuracy(store: Store) -> None:
    store.start_round(1, 1, (task("a"),))
    store.fold_round(1, version(2), FIGURES)
    assert store.journalled().accuracy is None
    store.judge_round(1, 0.9, 0.25)
    found = store.journalled()
    assert (found.phase, found.round, found.accuracy) == (Phase.JUDGING, 1, 0.9)
    assert store.last_accuracy() == (1, 0.9)


def test_only_the_last_versions_keep_their_weights(store: Store) -> None:
    for number in range(1, 6):
        store.start_round(number, 1, ())
        store.fold_round(number, version(number + 1), FIGURES)
        store.judge_round(number, 0.5, 1.0)
    rows = store._all("SELECT version FROM versions WHERE weights IS NOT NULL ORDER BY version")
    assert [row[0] for row in rows] == [4, 5, 6]
    assert len(rows) == Keep().versions
    assert len(store.digests(100)) == 6
    assert store.digests(2) == store.digests(100)[:2]


def run_rounds(store: Store, last: int, data: bytes = b"") -> None:
    for number in range(1, last + 1):
        asked = task("a").task + f".{number}"
        store.start_round(number, 1, (JournalTask("a", asked, b"task"),))
        store.add_update(replace(update("a", number), task=asked, data=data))
        store.fold_round(number, version(number + 1), FIGURES)
        store.judge_round(number, 0.5, 1.0)


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (Keep(versions=1), [13]),
        (Keep(versions=2, every=5), [5, 10, 12, 13]),
        (Keep(versions=4, every=4), [4, 8, 10, 11, 12, 13]),
        (Keep(versions=100), list(range(1, 14))),
        (Keep(versions=1, every=1), list(range(1, 14))),
    ],
)
def test_the_policy_says_which_versions_keep_their_weights(store: Store, keep: Keep, kept: list[int]) -> None:
    store.keep = keep
    run_rounds(store, 12)
    assert [row[0] for row in store.rows("SELECT version FROM versions WHERE weights IS NOT NULL")] == kept
    assert store.rows("SELECT count(*) FROM versions") == [(13,)]


def test_the_file_stays_as_large_as_one_round_and_shrinks_when_the_job_is_done(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "FREE_BYTES", 8 << 20)

    def size() -> int:
        return (tmp_path / "state" / JOURNAL_NAME).stat().st_size

    run_rounds(store, 8, bytes(4 << 20))
    store._one("PRAGMA wal_checkpoint(TRUNCATE)")
    assert (4 << 20) < size() < (9 << 20)
    assert store.give_back() == 0
    store.finish("as the test wants it")
    assert store.give_back() > 3 << 20
    store._one("PRAGMA wal_checkpoint(TRUNCATE)")
    assert size() < 2 << 20


def test_pages_far_beyond_a_round_are_given_back_piece_by_piece(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "FREE_BYTES", 1 << 20)
    monkeypatch.setattr(keeping, "PIECE_BYTES", 1 << 20)
    run_rounds(store, 1, bytes(8 << 20))
    given = []
    while not given or given[-1] > 0:
        given.append(store.give_back())
    assert given[0] == 1 << 20
    assert 3 << 20 < sum(given) < 8 << 20


def test_the_epoch_outlives_the_process(store: Store, tmp_path: Path) -> None:
    assert store.epoch() == 0
    store.keep_epoch(7)
    again = reopened(store, tmp_path)
    assert again.epoch() == 7
    again.close()


def test_the_same_job_is_taken_up_and_a_changed_one_refused_with_every_difference(store: Store) -> None:
    assert not store.begin(DEFINITION, version(1))
    with pytest.raises(JobChanged) as caught:
        store.begin({"job.name": '"digits"', "job.seed": "2", "plan": '"ff"'}, version(1))
    message = str(caught.value)
    assert "job.seed: was 1, is 2" in message
    assert 'plan: was None, is "ff"' in message
    assert "job.name" not in message


def test_a_failed_job_forgives_when_it_is_started_again(store: Store) -> None:
    store.start_round(1, 1, (task("a"), task("b")))
    store.fail_task(1, "a", "why", unfit=True)
    store.forgive()
    found = store.journalled()
    assert found.fleet["a"].unfit is None
    assert found.cohort == {"b": Outcome.PENDING}


def test_a_second_coordinator_on_the_directory_is_refused(store: Store, tmp_path: Path) -> None:
    assert store.done() is None
    with pytest.raises(JournalInUse, match="another coordinator"):
        open_store(tmp_path / "state")


# Schema 2, as it was; schema 1 is the same without `run`.
OLD_SCHEMA = """
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
INSERT INTO job VALUES (1, '{"job.name": "\\"digits\\"", "job.seed": "1"}', 4, NULL, '0123456789abcdef');
INSERT INTO versions VALUES (1, 'one', 9, NULL, NULL), (2, 'two', 9, 'weights 2', 'state');
INSERT INTO devices VALUES ('a', 'online', 9, NULL), ('b', 'online', 9, NULL);
INSERT INTO rounds VALUES (1, 1, 1, 'evaluated', 2, 2, 10, 20, 1.5, 0.5, 1.0), (2, 2, 1, 'open',
  NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO tasks VALUES (1, 'a', 'digits.1.a', x'', 'done', NULL), (2, 'a', 'digits.2.a', x'74', 'done', NULL),
  (2, 'b', 'digits.2.b', x'74', 'open', NULL);
INSERT INTO updates VALUES (1, 'a', '00', 'aa', 4, 7, 0.5, NULL), (2, 'a', '11', 'bb', 4, 7, 0.5, x'64617461');
"""


@pytest.mark.parametrize("schema_version", [1, 2])
def test_an_older_journal_is_taken_up_where_it_was(tmp_path: Path, schema_version: int) -> None:
    with sqlite3.connect(tmp_path / JOURNAL_NAME) as connection:
        connection.executescript(OLD_SCHEMA + f"PRAGMA user_version = {schema_version};")
        if schema_version == 1:
            connection.execute("ALTER TABLE job DROP COLUMN run")
    connection.close()
    upgraded = open_store(tmp_path)
    assert not upgraded.begin(DEFINITION, version(1))
    run = upgraded.run()
    assert re.fullmatch(r"[0-9a-f]{16}", run)
    assert upgraded.epoch() == 4
    found = upgraded.journalled()
    assert (found.phase, found.round, found.cohort) == (
        Phase.COLLECTING,
        2,
        {"a": Outcome.DELIVERED, "b": Outcome.PENDING},
    )
    assert [each.data for each in upgraded.updates(2)] == [b"data"]
    assert upgraded.last_counted("a") == ("digits.2.a", "bb")
    assert upgraded._one("PRAGMA auto_vacuum")[0] == 2
    upgraded.close()
    again = open_store(tmp_path)
    assert again.run() == run
    again.close()


def test_an_upgraded_journal_has_the_tables_of_a_new_one(tmp_path: Path) -> None:
    def shape(directory: Path) -> dict[str, list[tuple[object, ...]]]:
        opened = open_store(directory)
        names = [row[0] for row in opened._all("SELECT name FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name")]
        columns = {name: opened._all(f"PRAGMA table_info({name})") for name in names}
        opened.close()
        return columns

    (tmp_path / "old").mkdir()
    with sqlite3.connect(tmp_path / "old" / JOURNAL_NAME) as connection:
        connection.executescript(OLD_SCHEMA + "PRAGMA user_version = 2;")
    connection.close()
    assert shape(tmp_path / "old") == shape(tmp_path / "new")


def test_the_last_update_that_counted_is_the_last_that_was_accepted(store: Store) -> None:
    assert store.last_counted("a") is None
    store.start_round(1, 1, (task("a"), task("b")))
    assert store.last_counted("a") is None
    store.add_update(update("a"))
    store.fail_task(1, "b", "it broke", unfit=False)
    assert store.last_counted("a") == ("digits.1.a.1", update("a").sha256)
    assert store.last_counted("b") is None
    store.start_round(1, 1, (replace(task("a"), task="digits.1.a.0"),))
    store.add_update(replace(update("a"), task="digits.1.a.0"))
    assert store.last_counted("a") == ("digits.1.a.0", update("a").sha256)


def test_a_journal_of_another_schema_version_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / JOURNAL_NAME) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(JournalError, match="schema version 99"):
        open_store(tmp_path)


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / JOURNAL_NAME).write_bytes(b"not a database, but longer than a header would be" * 30)
    with pytest.raises(JournalError, match="cannot be used"):
        open_store(tmp_path)


def test_a_state_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("x")
    with pytest.raises(JournalError, match="cannot be used"):
        open_store(tmp_path / "state")


def test_a_full_disk_says_so_and_loses_nothing_that_was_committed(store: Store, tmp_path: Path) -> None:
    store.start_round(1, 1, (task("a"), task("b")))
    store.add_update(update("a"))
    pages = store._one("PRAGMA page_count")[0]
    store._one(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(JournalError, match=r"full.*make room"):
        store.add_update(replace(update("b"), data=bytes(1 << 20)))
    again = reopened(store, tmp_path)
    assert again.journalled().cohort == {"a": Outcome.DELIVERED, "b": Outcome.PENDING}
    again.close()


def test_a_file_is_written_wholly_or_not_at_all(tmp_path: Path) -> None:
    write_file(tmp_path / "final", b"one")
    write_file(tmp_path / "final", b"two")
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    assert (tmp_path / "final").read_bytes() == b"two"


def test_a_batch_is_one_transaction_that_others_see_at_its_end(store: Store, tmp_path: Path) -> None:
    store.start_round(1, 1, (task("a"), task("b")))
    beside = sqlite3.connect(tmp_path / "state" / JOURNAL_NAME)
    with store.batch():
        assert store.add_update(update("a"))
        assert store.add_update(update("b"))
        assert store.accepted_digest("b", task("b").task) == update("b").sha256
        assert beside.execute("SELECT count(*) FROM updates").fetchone() == (0,)
    assert beside.execute("SELECT count(*) FROM updates").fetchone() == (2,)
    beside.close()


def test_a_batch_that_fails_leaves_nothing_and_the_journal_goes_on(store: Store) -> None:
    store.start_round(1, 1, (task("a"), task("b")))

    def together(last: Callable[[], object]) -> None:
        with store.batch():
            assert store.add_update(update("a"))
            last()

    with pytest.raises(ZeroDivisionError):
        together(lambda: 1 // 0)
    assert list(store.updates(1)) == []
    with pytest.raises(JournalError):
        together(lambda: store.fold_round(1, version(1), FIGURES))  # there is a version 1 already
    assert list(store.updates(1)) == []
    together(lambda: store.add_update(update("b")))
    assert [each.device for each in store.updates(1)] == ["a", "b"]


def test_what_every_fold_asks_of_the_journal_reads_no_more_the_longer_the_job_is(store: Store) -> None:
    """An asynchronous job makes a version of every update: a table read whole for each would take its square."""
    queries = {
        "UPDATE versions SET weights = NULL WHERE version <= ? AND weights IS NOT NULL": (5,),
        "UPDATE downloads SET data = NULL WHERE version <= ? AND data IS NOT NULL": (5,),
        "UPDATE downloads SET delta = NULL WHERE delta IS NOT NULL AND version <= ?": (5,),
        "UPDATE tasks SET state = 'failed' WHERE state = 'open' AND round < ?": (5,),
        "SELECT task FROM updates WHERE device = ? ORDER BY rowid DESC LIMIT 1": ("a",),
        "SELECT round FROM tasks WHERE device = ? AND round < ? AND state = 'done' ORDER BY round DESC LIMIT 1": (
            "a",
            5,
        ),
        "SELECT device FROM tasks WHERE round = ? ORDER BY device": (5,),
        "SELECT device, task FROM updates WHERE round = ? ORDER BY device, task": (5,),
    }
    for query, values in queries.items():
        plan = [str(row[3]) for row in store._all(f"EXPLAIN QUERY PLAN {query}", values)]
        assert not [step for step in plan if step.startswith("SCAN") or "TEMP B-TREE" in step], (query, plan)
