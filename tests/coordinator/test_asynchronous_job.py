"""Whole asynchronous jobs in memory: real sessions, training and journal; what counts, counts once."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING

import pytest

from coordinator.results import Diverged
from coordinator.store import Version, open_store
from edge_runtime.slots import Slots
from edge_runtime.tensors import encode_tensors
from support.dying_store import DyingStore, Killed
from support.memory import MemorySite, finished, start_all
from support.operated import Operated
from support.tiny_job import EXAMPLES, JOB, make_site

if TYPE_CHECKING:
    from pathlib import Path

FEDASYNC = JOB.replace("rounds = 2", "rounds = 9") + '[schedule]\nname = "fedasync"\n'
FEDBUFF = JOB.replace("rounds = 2", "rounds = 4") + '[schedule]\nname = "fedbuff"\nbuffer = 2\n'


def ledger(directory: Path) -> list[tuple[str, str, int, int]]:
    """Device, task, round and folded_in of every accepted update."""
    store = open_store(directory / "state")
    rows = store._all("SELECT device, task, round, folded_in FROM updates ORDER BY round, device, task")
    store.close()
    return rows


def check_ledger(directory: Path, site: MemorySite, *, rounds: int, buffer: int) -> None:
    """Every update that a device was told of as accepted stands in the journal once, and was folded once."""
    rows = ledger(directory)
    assert len({row[:2] for row in rows}) == len(rows) == rounds * buffer
    assert sorted(row[2] for row in rows) == sorted(list(range(1, rounds + 1)) * buffer)
    assert all(folded_in == number + 1 for _, _, number, folded_in in rows)
    told = [(event["device"], event["task"]) for event in site.seen("update")]
    assert set(told) <= {row[:2] for row in rows}


@pytest.mark.parametrize(("job", "rounds", "buffer"), [(FEDASYNC, 9, 1), (FEDBUFF, 4, 2)])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_an_asynchronous_job_runs_to_its_end_and_folds_every_update_once(
    tmp_path: Path, job: str, rounds: int, buffer: int, order: int
) -> None:
    site = make_site(tmp_path, job, order=order)
    start_all(site)
    finished(site)
    check_ledger(tmp_path, site, rounds=rounds, buffer=buffer)
    assert [event["version"] for event in site.seen("version")] == list(range(2, rounds + 2))
    assert site.seen("round_done")[-1]["accuracy"] > 0.5
    assert not [topic for topic in site.broker.retained if "/b/" in topic or topic.endswith("/task")]


def test_what_a_device_fetches_once_for_two_tasks_is_counted_once(tmp_path: Path) -> None:
    site = make_site(tmp_path, FEDBUFF.replace("buffer = 2", "buffer = 6").replace("rounds = 4", "rounds = 2"))
    start_all(site)
    finished(site)
    first, second = site.seen("round_done")
    tasks = [task.version for device in site.devices.values() for task in device.tasks]
    assert first["cohort"] == tasks.count(1) > 3
    plans = sum(len(file.data) for file in site.program.stages[0].files)
    weights = len(encode_tensors(site.program.weights))
    assert first["bytes_down"] == 3 * (weights + plans)
    assert second["bytes_down"] <= 3 * weights


def test_one_device_with_alpha_1_gives_the_bits_of_synchronous_rounds(tmp_path: Path) -> None:
    alone = JOB.replace("devices = 3", "devices = 1").replace("min_updates = 2", "min_updates = 1")
    ends = []
    for name, job in (("sync", alone), ("fedasync", alone + '[schedule]\nname = "fedasync"\nalpha = 1\n')):
        site = make_site(tmp_path / name, job.replace("rounds = 2", "rounds = 3"))
        site.devices = {"dev-a": site.devices["dev-a"]}
        start_all(site)
        ends.append(finished(site))
    assert ends[0] == ends[1]


def test_a_buffer_of_all_devices_from_one_version_gives_the_bits_of_a_synchronous_round(tmp_path: Path) -> None:
    one = JOB.replace("rounds = 2", "rounds = 1")
    ends = []
    for name, job in (("sync", one), ("fedbuff", one + '[schedule]\nname = "fedbuff"\nbuffer = 3\n')):
        site = make_site(tmp_path / name, job)
        for device in site.devices.values():
            device.start(site.now_s)
        site.start()
        turns_until_all_are_asked(site)
        ends.append(finished(site))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("job", [FEDASYNC, FEDBUFF])
@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_any_write_of_the_journal_loses_no_update_and_counts_none_twice(
    tmp_path: Path, job: str, *, after: bool
) -> None:
    rounds, buffer = (4, 1) if job is FEDASYNC else (3, 2)
    short = job.replace("rounds = 9", "rounds = 4").replace("rounds = 4", f"rounds = {rounds}")
    at, ended = 0, False
    while not ended:
        at += 1
        site = make_site(tmp_path / f"{at}", short, order=at)
        for device in site.devices.values():
            device.start(site.now_s)
        try:
            site.start(lambda store, at=at: DyingStore(store, at, after=after))  # type: ignore[misc]
            site.run()
            ended = True  # there are fewer writes than this
        except Killed:
            site.kill()
            for _ in range(3):
                site.turn()
            again = site.start()
        if not ended and again:
            site.run()
        if site.job is not None:
            assert site.stop() == 0
        check_ledger(tmp_path / f"{at}", site, rounds=rounds, buffer=buffer)
    assert at > 20


def test_a_fold_that_was_killed_is_done_again_with_the_same_bits(tmp_path: Path) -> None:
    site = make_site(tmp_path, FEDBUFF)
    fold, made = site._fold, Future[Version]()
    site._fold = lambda _old, _gathered: made  # type: ignore[method-assign]
    start_all(site)
    site.run(lambda: site.job is not None and site.job.closing.beside is not None)
    assert site.job is not None
    expected = fold(site.job.published.version, None).result()
    for _ in range(5):
        site.turn()  # others deliver in the meantime, into the next round
    site.kill()
    made.cancel()
    site._fold = fold  # type: ignore[method-assign]
    site.start()
    finished(site)
    store = open_store(tmp_path / "state")
    (sha256,) = store._one("SELECT sha256 FROM versions WHERE version = 2")
    store.close()
    assert sha256 == expected.sha256


def test_an_update_that_is_too_stale_is_refused_and_its_mass_stays_with_the_device(tmp_path: Path) -> None:
    """Every task names the last update of its device that was accepted, through refusals and restarts."""
    codec = FEDASYNC.replace("[method]", '[upload]\ncodec = ["topk 0.2 ef"]\n[method]') + "max_staleness = 0\n"
    site = make_site(tmp_path, codec.replace("rounds = 9", "rounds = 12"))
    for name, device in site.devices.items():
        device.slots = Slots(tmp_path / f"{name}.slots")
    start_all(site)
    site.run(lambda: len(site.seen("version")) == 5)
    site.kill()
    site.start()
    finished(site)
    refused = [event for event in site.seen("refused") if event["rule"] == "StaleUpdate"]
    assert refused
    assert {event["device"] for event in site.seen("update")} == set(EXAMPLES)
    for name, device in site.devices.items():
        accepted = [event["task"] for event in site.seen("update") if event["device"] == name]
        for task in device.tasks:
            assert task.carry is not None
            before = [each for each in accepted if serial(each) < serial(task.task)]
            assert task.carry.counted == (before[-1] if before else None)


def serial(task: str) -> int:
    """How many tasks its device had been sent with this one."""
    return int(task.rpartition(".")[2])


def test_a_version_stays_published_while_a_device_is_still_at_it(tmp_path: Path) -> None:
    site = make_site(tmp_path, FEDASYNC)
    slow, held = site.devices["dev-b"], []
    run, slow.run = slow.run, lambda command, _now_s: held.append(command) or []  # type: ignore[method-assign, func-returns-value]
    start_all(site)
    site.run(lambda: len(site.seen("version")) == 5)
    (command,) = held
    assert f"edge/v1/test/b/{command.task.weights}/0" in site.broker.retained
    site.restart_broker()
    assert f"edge/v1/test/b/{command.task.weights}/0" in site.broker.retained
    site.kill()
    site.start()
    assert f"edge/v1/test/b/{command.task.weights}/0" in site.broker.retained
    store = site.job._parts.store if site.job is not None else None
    assert store is not None
    kept = {row[0] for row in store.rows("SELECT version FROM versions WHERE weights IS NOT NULL")}
    assert kept >= {command.task.version, store.latest().version}
    slow.run = run  # type: ignore[method-assign]
    slow.handle(run(command, site.now_s), site.now_s)
    finished(site)
    (late,) = [event for event in site.seen("update") if event["task"] == command.task.task]
    assert late["staleness"] >= 5
    assert not [topic for topic in site.broker.retained if "/b/" in topic]


def operated(tmp_path: Path, job: str) -> Operated:
    made = make_site(tmp_path, job)
    return Operated(made.job_file, made.state, {name: each.dataset for name, each in made.devices.items()})


def test_a_job_that_diverges_ends_with_the_reason(tmp_path: Path) -> None:
    site = make_site(tmp_path, FEDASYNC)
    broken: Future[Version] = Future()
    broken.set_exception(Diverged("the update tiny.1.dev-a.1 cannot be folded into version 1"))
    site._fold = lambda *_: broken  # type: ignore[method-assign]
    start_all(site)
    site.run()
    assert site.stop() == 3
    assert "tiny.1.dev-a.1 cannot be folded" in site.seen("error")[0]["message"]


def test_while_an_asynchronous_job_is_paused_open_tasks_count_and_nobody_is_asked(tmp_path: Path) -> None:
    site = operated(tmp_path, FEDASYNC)
    start_all(site)
    site.run(lambda: len(site.seen("update")) >= 2)
    site.ask("pause")
    for _ in range(100):
        site.turn()
    updates, asked = len(site.seen("update")), len(site.seen("asked"))
    for _ in range(50):
        site.turn()
    assert (len(site.seen("update")), len(site.seen("asked"))) == (updates, asked)
    site.ask("resume")
    finished(site)
    check_ledger(tmp_path, site, rounds=9, buffer=1)


def test_a_rollback_of_an_asynchronous_job_makes_what_waits_void_and_starts_from_the_old_weights(
    tmp_path: Path,
) -> None:
    site = operated(tmp_path, FEDBUFF.replace("rounds = 4", "rounds = 8"))
    start_all(site)
    site.run(lambda: len(site.seen("version")) == 2 and len(site.seen("update")) > 4)
    site.ask("rollback", "2")
    finished(site)
    store = open_store(tmp_path / "state")
    versions = dict(store.rows("SELECT version, sha256 FROM versions"))
    rows = store.rows("SELECT round, folded_in FROM updates")
    store.close()
    (undone,) = [row[0] for row in site_rounds(tmp_path) if row[1] is not None]
    assert versions[undone + 1] == versions[2]
    assert {number for number, folded_in in rows if folded_in == 0} <= {undone}
    assert all(folded_in in {0, number + 1} for number, folded_in in rows)
    for number in set(range(1, 9)) - {undone}:
        assert [folded_in for of_round, folded_in in rows if of_round == number] == [number + 1] * 2


def site_rounds(tmp_path: Path) -> list[tuple[int, str | None]]:
    store = open_store(tmp_path / "state")
    found = store.rows("SELECT round, note FROM rounds ORDER BY round")
    store.close()
    return found


def test_an_evicted_device_is_asked_no_more_and_a_readmitted_one_again(tmp_path: Path) -> None:
    site = operated(tmp_path, FEDASYNC.replace("rounds = 9", "rounds = 14"))
    start_all(site)
    site.run(lambda: len(site.seen("update")) >= 3)
    site.ask("evict", "dev-b")
    before = site.devices["dev-b"].trained
    site.run(lambda: len(site.seen("version")) >= 9)
    assert site.devices["dev-b"].trained <= before + 1
    site.ask("readmit", "dev-b")
    site.devices["dev-b"].kill()
    site.devices["dev-b"].start(site.now_s)
    finished(site)
    check_ledger(tmp_path, site, rounds=14, buffer=1)
    assert "dev-b" in {event["device"] for event in site.seen("update")[9:]}


def test_updates_of_an_earlier_stage_are_folded_into_versions_of_the_next_one(tmp_path: Path) -> None:
    stages = 'momentum = 0.9\nstages = [{rounds = 4, trainable = ["*bias*"]}, {rounds = 8}]'
    job = FEDASYNC.replace("rounds = 9", "rounds = 12").replace("momentum = 0.9", stages)
    site = make_site(tmp_path, job)
    start_all(site)
    finished(site)
    check_ledger(tmp_path, site, rounds=12, buffer=1)
    across = [e for e in site.seen("update") if e["round"] > 4 and e["round"] - e["staleness"] <= 4]
    assert across
    assert not [topic for topic in site.broker.retained if "/b/" in topic]


def turns_until_all_are_asked(site: MemorySite) -> None:
    site.run(lambda: sum(topic.endswith("/task") for topic in site.broker.retained) == len(EXAMPLES))
