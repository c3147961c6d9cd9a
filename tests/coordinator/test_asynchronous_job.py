"""Whole asynchronous jobs in memory: real sessions, training and journal; what counts, counts once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from coordinator.store import open_store
from support.memory import MemorySite, finished, start_all
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


def turns_until_all_are_asked(site: MemorySite) -> None:
    site.run(lambda: sum(topic.endswith("/task") for topic in site.broker.retained) == len(EXAMPLES))
