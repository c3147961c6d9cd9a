"""Requests of operators to jobs without rounds that wait for everybody: pause, rollback, eviction, stop, and kills."""

from contextlib import closing
from pathlib import Path

import pytest

from coordinator.store import open_reader
from support.memory import start_all
from support.operated import Operated
from support.tiny_job import JOB, make_site

FEDASYNC = JOB.replace("rounds = 2", "rounds = 14") + '[schedule]\nname = "fedasync"\n'
FEDBUFF = JOB.replace("rounds = 2", "rounds = 9") + '[schedule]\nname = "fedbuff"\nbuffer = 2\n'
JOBS = pytest.mark.parametrize("job", [FEDASYNC, FEDBUFF], ids=["fedasync", "fedbuff"])


def operated(tmp_path: Path, job: str) -> Operated:
    made = make_site(tmp_path, job)
    return Operated(made.job_file, made.state, {name: each.dataset for name, each in made.devices.items()})


def versions(site: Operated) -> int:
    return len(site.seen("version"))


@JOBS
def test_a_paused_job_asks_nobody_and_goes_on_when_it_is_resumed(tmp_path: Path, job: str) -> None:
    site = operated(tmp_path, job)
    start_all(site)
    site.run(lambda: versions(site) >= 2)
    site.ask("pause")
    for _ in range(100):
        site.turn()
    before, trained = versions(site), sum(device.trained for device in site.devices.values())
    site.kill()
    site.start()
    for _ in range(100):
        site.turn()
    assert versions(site) == before
    assert sum(device.trained for device in site.devices.values()) == trained
    with closing(open_reader(site.state)) as store:
        assert store.rows("SELECT 1 FROM tasks WHERE state = 'open'") == []
    site.ask("resume")
    site.run()
    assert site.stop() == 0


@JOBS
@pytest.mark.parametrize("killed", [False, True])
def test_a_rollback_voids_what_waits_and_every_other_update_is_folded_once(
    tmp_path: Path, job: str, *, killed: bool
) -> None:
    site = operated(tmp_path, job)
    start_all(site)
    site.run(lambda: versions(site) >= 4)
    with closing(open_reader(site.state)) as store:
        newest = store.latest().version
    asked = site.ask("rollback", str(newest - 1))
    if killed:
        site.kill()
        site.start()
    site.run(lambda: site.seen("request") != [])
    assert site.answer(asked)[0] == "done"
    site.run()
    assert site.stop() == 0
    with closing(open_reader(site.state)) as store:
        (made,) = (row[0] + 1 for row in store.rows("SELECT round FROM rounds WHERE note IS NOT NULL"))
        # Nothing but what waited when it was rolled back is void, and nothing is folded twice or left.
        rows = store.rows("SELECT device, task, round, folded_in FROM updates")
        assert all(folded in {0, number + 1} for _, _, number, folded in rows)
        assert all(number == made - 1 for _, _, number, folded in rows if folded == 0)
        assert {number for _, _, number, folded in rows if folded > made} == set(range(made, store.latest().version))


@JOBS
def test_an_evicted_device_is_asked_no_more(tmp_path: Path, job: str) -> None:
    site = operated(tmp_path, job)
    start_all(site)
    site.run(lambda: versions(site) >= 2)
    site.ask("evict", "dev-b")
    site.run(lambda: site.seen("request") != [])
    trained = site.devices["dev-b"].trained
    site.run()
    assert site.stop() == 0
    assert site.devices["dev-b"].trained <= trained + 1  # a task that was on its way
    with closing(open_reader(site.state)) as store:
        assert store.rows("SELECT 1 FROM tasks WHERE device = 'dev-b' AND state = 'open'") == []


@JOBS
def test_a_stopped_job_leaves_its_newest_version_and_a_clean_broker(tmp_path: Path, job: str) -> None:
    site = operated(tmp_path, job)
    start_all(site)
    site.run(lambda: versions(site) >= 3)
    site.ask("stop")
    site.run()
    assert site.stop() == 0
    with closing(open_reader(site.state)) as store:
        assert (site.state / "final.safetensors").read_bytes() == store.latest().weights
    assert [topic for topic in site.broker.retained if "/b/" in topic or topic.endswith("/task")] == []
