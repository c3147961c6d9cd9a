"""Random kill -9 of devices, coordinator and broker: the job ends, at the same model, every update folded once."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from queue import Empty
from typing import TYPE_CHECKING

import pytest

from coordinator.broker import find_mosquitto
from support.fleet import digits_federation

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.fleet import Federation

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SEEDS = [int(seed) for seed in os.environ.get("EDGE_CHAOS_SEEDS", "1").split(",")]
KIND = "embedded" if find_mosquitto() is None else "mosquitto"
ROUNDS = 8
# Grace and deadline are longer than a kill, a start and a reconnection take together, so that every round waits for
# every device and its result is that of an undisturbed one.
JOB = {"rounds": ROUNDS, "epochs": 100, "min_updates": 4, "grace_s": 60.0, "deadline_s": 200.0}
# What devices carry from round to round must survive as well.
JOB["codec"] = ["topk 0.1 ef", "fp16", "rice"]
FAULTS = 8
PAUSE_S = (0.0, 2.5)
DOWN_S = (0.0, 1.0)
VICTIMS = ("device", "device", "device", "coordinator", "coordinator", "broker")
LIMIT_S = 180.0


def chaos_federation(root: Path) -> Federation:
    return digits_federation(root, kind=KIND, **JOB)


@pytest.fixture(scope="module")
def undisturbed_sha256(tmp_path_factory: pytest.TempPathFactory) -> str:
    running = chaos_federation(tmp_path_factory.mktemp("calm"))
    try:
        running.start()
        return str(running.until_done()["model_sha256"])
    finally:
        running.stop()


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    running = chaos_federation(tmp_path)
    yield running
    running.stop()


def listen(federation: Federation, until_s: float) -> bool:
    """Take events until the time has come; whether the job was done before."""
    assert federation.reader is not None
    while (left_s := until_s - time.monotonic()) > 0:
        try:
            event = federation.reader.queue.get(timeout=left_s)
        except Empty:
            return False
        assert event is not None, f"the coordinator ended by itself\n{federation.logs()}"
        federation.seen.append(event)
        if event["event"] == "job_done":
            return True
    return False


def strike(federation: Federation, chance: random.Random) -> str:
    """Kill -9 one process, leave it dead for a moment, and start it again; says which."""
    victim = chance.choice(VICTIMS)
    name = chance.choice(federation.names)
    down_s = chance.uniform(*DOWN_S)
    if victim == "broker":
        federation.broker.kill()
        listen(federation, time.monotonic() + down_s)
        federation.broker.restart()
    elif victim == "coordinator":
        federation.kill_coordinator()
        federation.start_coordinator()
    else:
        federation.kill_device(name)
        listen(federation, time.monotonic() + down_s)
        federation.start_device(name)
        return name
    return victim


def disturb(federation: Federation, seed: int) -> list[str]:
    """Strike at drawn moments until the faults are used up or the job is done; says what was struck."""
    chance = random.Random(seed)  # noqa: S311  a schedule, not a secret
    struck: list[str] = []
    while len(struck) < FAULTS and not listen(federation, time.monotonic() + chance.uniform(*PAUSE_S)):
        struck.append(strike(federation, chance))
    return struck


def folded(root: Path) -> list[tuple[int, str, str]]:
    """Round, device and digest of every update that was folded, from the journal's own tables."""
    journal = sqlite3.connect(root / "coordinator" / "journal.sqlite")
    try:
        return journal.execute("SELECT round, device, sha256 FROM updates ORDER BY round, device").fetchall()
    finally:
        journal.close()


@pytest.mark.parametrize("seed", SEEDS)
def test_killing_processes_at_random_changes_nothing_in_the_result(
    federation: Federation, undisturbed_sha256: str, seed: int
) -> None:
    begun_s = time.monotonic()
    federation.start()
    struck = disturb(federation, seed)
    done = next((event for event in federation.seen if event["event"] == "job_done"), None) or federation.until_done()
    took_s = time.monotonic() - begun_s
    rows = folded(federation.root)
    wanted = [(number, name) for number in range(1, ROUNDS + 1) for name in federation.names]
    print(f"seed {seed}: {len(struck)} faults {struck}, {took_s:.1f} s")
    assert [(number, device) for number, device, _ in rows] == wanted
    assert len({digest for _, _, digest in rows}) == len(rows), "one update was folded twice"
    assert done["model_sha256"] == undisturbed_sha256, struck
    assert took_s < LIMIT_S
