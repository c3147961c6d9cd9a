"""Asynchronous jobs of real processes over a real broker: the time they take, and that nothing is lost or doubled."""

from __future__ import annotations

import sqlite3
from datetime import datetime
from itertools import pairwise
from statistics import harmonic_mean, median
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.broker import find_mosquitto
from coordinator.jobfile import load_job
from coordinator.program import rules_of
from support.fleet import SITE, Federation, digits_federation
from support.throttle import start_throttled
from support.virtual import on_virtual_clock

if TYPE_CHECKING:
    from pathlib import Path

    from coordinator.round_records import Rules

pytestmark = pytest.mark.e2e

KIND = "embedded" if find_mosquitto() is None else "mosquitto"
SPEEDS = (1.0, 1.3, 2.2, 2.5)
UNIT_S = 1.0  # long against messages, folds and evaluations, some tens of milliseconds together
ROUNDS = 14
WARM = 2  # rounds until the devices are spread over time
FEDBUFF = {"name": "fedbuff", "buffer": 2}


def throttled_job(root: Path, **job: object) -> tuple[list[dict[str, Any]], Rules]:
    """The events of a job on four devices of the reference speeds, and its rules."""
    running = digits_federation(root, kind=KIND, **job)
    try:
        running.start_coordinator()
        for name, speed in zip(running.names, SPEEDS, strict=True):
            running.devices[name] = start_throttled(name, root, running.broker.url, SITE, speed * UNIT_S)
        running.until_done()
    finally:
        running.stop()
    assert not [name for name in running.names if "throttle:" in (root / name / "client.log").read_text()]
    return running.seen, rules_of(load_job(root / "job.toml"))


def seconds_of(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


def begun_s(seen: list[dict[str, Any]]) -> float:
    return seconds_of(next(event for event in seen if event["event"] in {"asked", "round_started"}))


def cycles(seen: list[dict[str, Any]]) -> dict[str, float]:
    """What a device takes from one update to its next, in the middle."""
    times: dict[str, list[float]] = {}
    for event in seen:
        if event["event"] == "update":
            times.setdefault(event["device"], [begun_s(seen)]).append(seconds_of(event))
    return {name: median(b - a for a, b in pairwise(at)) for name, at in times.items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[dict[str, Any]], Rules]]:
    training = {"epochs": 3, "lr": 0.1, "momentum": 0.0}
    together = throttled_job(tmp_path_factory.mktemp("sync"), rounds=ROUNDS, min_updates=4, **training)
    alone = throttled_job(tmp_path_factory.mktemp("alone"), rounds=2 * ROUNDS, schedule=FEDBUFF, **training)
    return {"sync": together, "fedbuff": alone}


def update_times(seen: list[dict[str, Any]]) -> list[float]:
    """Seconds from the first task to every update."""
    updates = [seconds_of(event) - begun_s(seen) for event in seen if event["event"] == "update"]
    assert len(updates) == 4 * ROUNDS
    return updates


def test_equal_counts_of_updates_take_harmonic_mean_over_maximum_of_the_time(
    runs: dict[str, tuple[list[dict[str, Any]], Rules]],
) -> None:
    """0.61 of the time of synchronous rounds, within 5 %, counted from the end of the second round."""
    times = {name: update_times(seen) for name, (seen, _) in runs.items()}
    spans = {name: found[-1] - found[4 * WARM - 1] for name, found in times.items()}
    speeds = dict(zip(("dev-0", "dev-1", "dev-2", "dev-3"), SPEEDS, strict=True))
    virtual = {name: on_virtual_clock(rules, speeds)[-1].time_s for name, (_, rules) in runs.items()}
    measured, expected = spans["fedbuff"] / spans["sync"], harmonic_mean(SPEEDS) / max(SPEEDS)
    whole = times["fedbuff"][-1] / times["sync"][-1], virtual["fedbuff"] / virtual["sync"]
    print(f"measured {measured:.4f}, formula {expected:.4f}; whole {whole[0]:.4f}, on a virtual clock {whole[1]:.4f}")
    assert measured == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("schedule", ["sync", "fedbuff"])
def test_the_virtual_clock_agrees_with_real_processes(
    runs: dict[str, tuple[list[dict[str, Any]], Rules]], schedule: str
) -> None:
    """Given what a device takes for one task, with everything that messages and folds add to it."""
    seen, rules = runs[schedule]
    cycle = cycles(seen)
    if schedule == "sync":  # all wait for the slowest
        cycle = dict.fromkeys(cycle, median(cycle.values()))
    predicted = on_virtual_clock(rules, cycle)[-1].time_s
    measured = update_times(seen)[-1]
    print(f"{schedule}: measured {measured:.3f} s, virtual {predicted:.3f} s, {cycle}")
    assert measured == pytest.approx(predicted, rel=0.03)


def test_the_accuracy_of_synchronous_rounds_less_a_point_is_reached_in_three_quarters_of_their_time(
    runs: dict[str, tuple[list[dict[str, Any]], Rules]],
) -> None:
    accuracies = {
        name: [(seconds_of(e) - begun_s(seen), e["accuracy"]) for e in seen if e["event"] == "round_done"]
        for name, (seen, _) in runs.items()
    }
    goal = accuracies["sync"][-1][1] - 0.01
    first = {name: next((at for at, accuracy in found if accuracy >= goal), None) for name, found in accuracies.items()}
    print(f"goal {goal:.4f}: {first}, whole {accuracies['sync'][-1][0]:.2f} s, {accuracies['fedbuff'][-1]}")
    assert first["fedbuff"] is not None
    assert first["fedbuff"] <= 0.75 * accuracies["sync"][-1][0]


def ledger(root: Path) -> list[tuple[str, str, int, int, str]]:
    """Device, task, round, folded_in and digest of every update."""
    journal = sqlite3.connect(root / "coordinator" / "journal.sqlite")
    try:
        query = "SELECT device, task, round, folded_in, sha256 FROM updates ORDER BY round, device, task"
        return journal.execute(query).fetchall()
    finally:
        journal.close()


@pytest.mark.parametrize("schedule", [{"name": "fedasync"}, {"name": "fedbuff", "buffer": 3}])
def test_kills_of_coordinator_and_devices_lose_no_update_and_count_none_twice(
    tmp_path: Path, schedule: dict[str, Any]
) -> None:
    buffer, rounds = schedule.get("buffer", 1), 24 // schedule.get("buffer", 1)
    running = digits_federation(tmp_path, kind=KIND, rounds=rounds, epochs=1, schedule=schedule, codec=["topk 0.1 ef"])
    try:
        running.start()
        for count in range(1, 7):
            wait_for_updates(running, 3 * count)
            if count % 2:
                running.kill_coordinator()
                running.start_coordinator()
            name = running.names[count % len(running.names)]
            running.kill_device(name)
            running.start_device(name)
        done = running.until_done()
    finally:
        running.stop()
    rows = ledger(tmp_path)
    assert len({row[:2] for row in rows}) == len(rows) == rounds * buffer
    assert [row[2] for row in rows] == sorted(list(range(1, rounds + 1)) * buffer)
    assert all(folded_in == number + 1 for _, _, number, folded_in, _ in rows)
    told = {(event["device"], event["task"]) for event in running.seen if event["event"] == "update"}
    assert told <= {row[:2] for row in rows}
    assert done["accuracy"] > 0.3


def wait_for_updates(running: Federation, count: int) -> None:
    """Until the journal of this coordinator's events has so many."""
    seen = sum(event["event"] == "update" for event in running.seen)
    while seen < count:
        running.until(lambda event: event["event"] == "update", f"update {count}")
        seen += 1
