"""Synchronous rounds that do not wait for all: over-selection, weights by the past, and less work for slow devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from coordinator.jobfile import load_job
from coordinator.program import build_program
from coordinator.store import open_store
from edge_runtime.wire import UpdateSettled
from support.memory import MemoryDevice, MemorySite, finished, start_all
from support.tiny_job import JOB, make_site

if TYPE_CHECKING:
    from pathlib import Path

    from coordinator.fleet import Fleet


def slow_down(device: MemoryDevice, seconds: float) -> None:
    """Every task takes the device so long for its whole work, and in proportion for a part of it."""
    run, turn = device.run, device.turn
    held: list[tuple[float, Any]] = []

    def hold(command: Any, now_s: float) -> list[Any]:
        steps = command.task.phases[0].steps
        whole = 2 * -(-len(device.dataset) // 8)
        held[:] = [(now_s + seconds * (steps or whole) / whole, command)]
        return []

    def turn_and_finish(now_s: float) -> None:
        turn(now_s)
        if held and now_s >= held[0][0] and device.session is not None:
            device.handle(run(held.pop()[1], now_s), now_s)

    device.run, device.turn = hold, turn_and_finish  # type: ignore[method-assign]


def selecting(tmp_path: Path, keys: str, rounds: int = 5, min_updates: int = 2) -> MemorySite:
    job = JOB.replace("rounds = 2", f"rounds = {rounds}").replace("min_updates = 2", f"min_updates = {min_updates}")
    site = make_site(tmp_path, job.replace("grace_s = 5", f"grace_s = 5\n{keys}"))
    for name, seconds in zip(sorted(site.devices), (2.0, 2.0, 8.0), strict=True):
        slow_down(site.devices[name], seconds)
    return site


def test_an_over_selected_round_does_not_wait_for_the_slowest(tmp_path: Path) -> None:
    site = selecting(tmp_path, "fraction = 0.6\nover_select = 0.5")
    start_all(site)
    finished(site)
    assert [event["devices"] for event in site.seen("round_done")] == [2] * 5
    assert [event["cohort"] for event in site.seen("round_done")] == [3] * 5
    assert site.now_s < 5 * 4.0  # the slowest takes 8 s
    assert {event["device"] for event in site.seen("update")} == {"dev-a", "dev-b"}


def test_an_update_that_comes_after_its_over_selected_round_is_refused_by_name(tmp_path: Path) -> None:
    """dev-c is done while its round is judged: its update counts nowhere, and it is told so."""
    site = selecting(tmp_path, "fraction = 0.6\nover_select = 0.5")
    start_all(site)
    site.run(lambda: site.job is not None and site.job.has_work)
    slow = site.devices["dev-c"]
    slow.turn(site.now_s + 100.0)
    for _ in range(5):
        slow.turn(site.now_s)
        inbox = site.broker.clients["gateway"].inbox
        while inbox:
            topic, payload, retain = inbox.popleft()
            assert site.job is not None
            site.send(site.job.received(topic, payload, site.now_s, retain=retain))
    (settled,) = [each for each in slow.settled if isinstance(each, UpdateSettled)]
    assert (settled.outcome, settled.rule) == ("refused", "StaleTask")
    finished(site)


def test_a_slow_device_does_fewer_steps_and_the_round_is_as_short_as_for_the_others(tmp_path: Path) -> None:
    site = selecting(tmp_path, "scale_work = true", rounds=4, min_updates=3)
    start_all(site)
    finished(site)
    seconds = [event["seconds"] for event in site.seen("round_done")]
    assert seconds[0] > 7.5
    assert max(seconds[1:]) < 4.0
    steps = {name: [task.phases[0].steps for task in device.tasks] for name, device in site.devices.items()}
    assert steps["dev-a"] == steps["dev-b"] == [None] * 4
    assert steps["dev-c"][0] is None
    assert all(each is not None and 1 <= each <= 4 for each in steps["dev-c"][1:])  # 8 for all of it
    store = open_store(tmp_path / "state")
    times = {name: device.times_s for name, device in store.standing().fleet.items()}
    store.close()
    assert min(times["dev-c"]) > 6.0, "times are of the whole work, whatever was asked"


def test_a_job_in_tiers_measures_first_and_then_gives_every_round_to_one_tier(tmp_path: Path) -> None:
    """Restarts in between change nothing: what tiers are made of is in the journal."""
    site = selecting(tmp_path, "", rounds=8, min_updates=1)
    job = (tmp_path / "home" / "job.toml").read_text() + '[schedule]\nname = "tiers"\ntiers = 2\n'
    (tmp_path / "home" / "job.toml").write_text(job)
    site.program = build_program(load_job(tmp_path / "home" / "job.toml"))
    start_all(site)
    site.run(lambda: len(site.seen("round_done")) == 3)
    site.kill()
    site.start()
    finished(site)
    store = open_store(tmp_path / "state")
    members = "SELECT round, device FROM tasks ORDER BY round, device"
    asked: dict[int, list[str]] = {}
    for number, device in store.rows(members):
        asked.setdefault(number, []).append(device)
    store.close()
    assert asked.pop(1) == ["dev-a", "dev-b", "dev-c"]
    # The slower one of two equally fast devices is in the tier of dev-c, whichever it was.
    assert {("dev-c" in devices, len(devices)) for devices in asked.values()} == {(False, 1), (True, 2)}


def test_the_journal_remembers_of_every_device_what_the_machine_does(tmp_path: Path) -> None:
    """So that a round that was not started before a crash chooses the same devices after it."""
    site = selecting(tmp_path, 'select = "weighted"\nfraction = 0.6', rounds=6, min_updates=1)
    start_all(site)
    for done in range(1, 6):
        site.run(lambda done=done: len(site.seen("round_done")) >= done)  # type: ignore[misc]
        assert site.job is not None
        remembered = history(site.job._state.fleet)
        site.kill()
        store = open_store(tmp_path / "state")
        assert history(store.standing().fleet) == remembered
        store.close()
        site.start()
    finished(site)
    assert {event["cohort"] for event in site.seen("round_done")} == {2}


def history(fleet: Fleet) -> dict[str, tuple[int, int, tuple[float, ...]]]:
    return {name: (device.asked, device.delivered, device.times_s) for name, device in fleet.items()}
