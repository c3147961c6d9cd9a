"""One coordinator writes to a journal, on one machine and on several, whatever the clocks of day do."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator import lease as leases
from coordinator.journal import JournalInUse
from coordinator.lease import BEAT_NAME, WATCH_S, Lease, beat, wait_for_silence
from coordinator.store import Store, Version, open_store

DEFINITION = {"job.name": '"digits"'}
FIRST = Version(1, "0" * 64, b"weights", b"state")
HERE, THERE = Lease("1" * 16, "here 0000"), Lease("2" * 16, "there 1111")


class Clock:
    """Time that passes only in sleeps, each of which may do something."""

    def __init__(self) -> None:
        self.now_s = 1e6
        self.events: list[tuple[float, object]] = []

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        while self.events and self.events[0][0] <= self.now_s - 1e6:
            action = self.events.pop(0)[1]
            assert callable(action)
            action()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path)
    opened.begin(DEFINITION, FIRST)
    yield opened
    opened.close()


def test_a_directory_without_a_beat_is_free_at_once(tmp_path: Path) -> None:
    clock = Clock()
    wait_for_silence(tmp_path, HERE, clock, clock.sleep)
    assert clock.now_s == 1e6


def test_the_beat_of_a_dead_process_of_this_machine_costs_no_time(tmp_path: Path) -> None:
    beat(tmp_path, Lease("3" * 16, HERE.machine))
    clock = Clock()
    wait_for_silence(tmp_path, HERE, clock, clock.sleep)
    assert clock.now_s == 1e6


def test_a_living_coordinator_on_another_machine_is_given_way_to(tmp_path: Path) -> None:
    beat(tmp_path, THERE)
    clock = Clock()
    clock.events = [(5.0, lambda: beat(tmp_path, THERE))]
    with pytest.raises(JournalInUse, match="on the machine there works on"):
        wait_for_silence(tmp_path, HERE, clock, clock.sleep)


def test_what_a_machine_that_is_gone_left_is_taken_over_after_the_watch(tmp_path: Path) -> None:
    beat(tmp_path, THERE)
    clock = Clock()
    wait_for_silence(tmp_path, HERE, clock, clock.sleep)
    assert WATCH_S <= clock.now_s - 1e6 < WATCH_S + 1


def test_one_that_leaves_while_it_is_watched_is_followed_at_once(tmp_path: Path) -> None:
    beat(tmp_path, THERE)
    clock = Clock()
    clock.events = [(2.0, (tmp_path / BEAT_NAME).unlink)]
    wait_for_silence(tmp_path, HERE, clock, clock.sleep)
    assert clock.now_s - 1e6 < 3


def test_no_two_beats_are_equal_and_none_leaves_a_rest_of_another(tmp_path: Path) -> None:
    (tmp_path / BEAT_NAME).write_text("x" * 300)
    seen = set()
    for _ in range(50):
        beat(tmp_path, HERE)
        seen.add((tmp_path / BEAT_NAME).read_text())
    assert len(seen) == 50
    assert {text.splitlines()[0] for text in seen} == {HERE.machine}
    assert {len(text) for text in seen} == {len(next(iter(seen)))}


def test_a_holder_that_slept_while_another_machine_took_over_writes_nothing_any_more(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store._lock.close() if store._lock else None  # the other machine has locks of its own
    monkeypatch.setattr(leases, "machine_of_this_boot", lambda: "there 1111")
    monkeypatch.setattr(leases, "WATCH_S", 0.3)
    other = open_store(tmp_path)
    other.keep_epoch(7)
    with pytest.raises(JournalInUse, match="taken over by a coordinator on there"):
        store.keep_epoch(8)
    assert other.epoch() == store.epoch() == 7
    store.close()
    assert (tmp_path / BEAT_NAME).read_text().startswith("there 1111")
    other.close()


def test_a_second_machine_gives_way_to_a_store_that_beats(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store._lock.close() if store._lock else None
    monkeypatch.setattr(leases, "machine_of_this_boot", lambda: "there 1111")
    ended = threading.Event()

    def keep_beating() -> None:
        while not ended.wait(0.3):
            store.beat()

    beating = threading.Thread(target=keep_beating)
    beating.start()
    try:
        with pytest.raises(JournalInUse, match="works on"):
            open_store(tmp_path)
    finally:
        ended.set()
        beating.join()
    store.keep_epoch(9)
    assert store.epoch() == 9


def test_a_store_that_is_closed_leaves_no_beat_and_the_next_machine_does_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_store(tmp_path)
    first.begin(DEFINITION, FIRST)
    first.close()
    monkeypatch.setattr(leases, "machine_of_this_boot", lambda: "there 1111")
    monkeypatch.setattr(leases, "WATCH_S", 1e9)
    open_store(tmp_path).close()
