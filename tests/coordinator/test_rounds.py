"""The round machine: its table, and what holds for any interleaving of events."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator import rounds
from coordinator.endings import PATIENCE
from coordinator.fleet import Device, Presence, draw, selection_weights, share_of, tiers_of, work_share
from coordinator.round_records import (
    CloseRound,
    Command,
    DeviceLost,
    DeviceOnline,
    DeviceRemembered,
    DeviceStopped,
    Evaluated,
    Event,
    FailJob,
    FinishJob,
    FleetUnknown,
    Journalled,
    Outcome,
    Phase,
    Refusal,
    Rules,
    ScheduleRules,
    SendTask,
    StartRound,
    State,
    TaskFailed,
    Tick,
    UpdateJournalled,
    Warn,
)

RULES = Rules(
    seed=3, rounds=2, target_accuracy=None, devices=3, min_updates=2, deadline_s=60.0, grace_s=10.0, fraction=1.0
)


def run(state: State, *events: tuple[float, Event]) -> tuple[State, list[Command]]:
    commands: list[Command] = []
    for now_s, event in events:
        state, more = rounds.step(state, event, now_s)
        commands += more
    return state, commands


def three_online(rules: Rules = RULES) -> tuple[State, list[Command]]:
    return run(rounds.started(rules, 0.0), *((0.0, DeviceOnline(name, 10)) for name in "abc"))


def kinds(commands: list[Command]) -> list[str]:
    return [type(command).__name__ for command in commands]


def test_round_1_waits_for_all_devices_and_then_asks_every_one() -> None:
    state, commands = run(rounds.started(RULES, 0.0), (0.0, DeviceOnline("a", 10)), (50.0, DeviceOnline("b", 10)))
    assert commands == []
    state, commands = run(state, (51.0, DeviceOnline("c", 10)))
    assert commands == [StartRound(1, 1, ("a", "b", "c"), ("a", "b", "c")), *(SendTask(name, 1, 1) for name in "abc")]


def test_a_device_without_examples_is_named_once_and_not_counted() -> None:
    events = [(0.0, DeviceOnline(name, n)) for name, n in (("a", 5), ("b", 0), ("c", 5), ("b", 0))]
    state, commands = run(rounds.started(RULES, 0.0), *events)
    assert kinds(commands) == ["Warn"]
    assert state.phase is Phase.GATHERING


def test_the_round_closes_when_everybody_has_delivered() -> None:
    state, _ = three_online()
    state, commands = run(state, *((1.0, UpdateJournalled(name, 1)) for name in "cab"))
    assert commands == [CloseRound(1, ("a", "b", "c"), ("a", "b", "c"))]
    assert state.phase is Phase.JUDGING


def test_a_lost_device_is_awaited_for_the_grace_and_no_longer() -> None:
    state, _ = three_online()
    state, commands = run(
        state,
        (1.0, UpdateJournalled("a", 1)),
        (2.0, DeviceLost("c")),
        (3.0, UpdateJournalled("b", 1)),
        (11.9, Tick()),
    )
    assert commands == []
    _, commands = run(state, (12.0, Tick()))
    assert commands == [CloseRound(1, ("a", "b", "c"), ("a", "b"))]


def test_a_device_that_comes_back_within_the_grace_goes_on_with_its_task() -> None:
    state, _ = three_online()
    events: list[tuple[float, Event]] = [
        (1.0, UpdateJournalled("a", 1)),
        (1.0, UpdateJournalled("b", 1)),
        (2.0, DeviceLost("c")),
        (8.0, DeviceOnline("c", 10)),
        (30.0, Tick()),
    ]
    state, commands = run(state, *events)
    assert commands == []
    _, commands = run(state, (31.0, UpdateJournalled("c", 1)))
    assert commands == [CloseRound(1, ("a", "b", "c"), ("a", "b", "c"))]


def test_a_device_that_only_the_broker_remembers_is_awaited_for_the_grace_and_not_asked() -> None:
    state = rounds.started(replace(RULES, devices=2), 0.0)
    state, commands = run(state, *((0.1, DeviceRemembered(name, 10)) for name in "abc"))
    state, commands = run(state, (0.2, DeviceOnline("a", 10)), (0.3, DeviceOnline("b", 10)), (9.9, Tick()))
    assert commands == []
    _, commands = run(state, (10.2, Tick()))
    assert commands[0] == StartRound(1, 1, ("a", "b"), ("a", "b"))


def test_once_every_remembered_device_has_spoken_the_round_starts_at_once() -> None:
    events = [(0.1, DeviceRemembered(name, 10)) for name in "abc"] + [(0.2, DeviceOnline(name, 10)) for name in "abc"]
    _, commands = run(rounds.started(RULES, 0.0), *events)
    assert kinds(commands) == ["StartRound", "SendTask", "SendTask", "SendTask"]


def test_a_birth_that_the_broker_has_kept_says_nothing_new_of_a_device_that_was_heard() -> None:
    state, _ = three_online()
    assert run(state, (1.0, DeviceRemembered("a", 10)))[0].fleet == state.fleet


def test_a_device_that_said_goodbye_is_not_awaited() -> None:
    state, _ = three_online()
    _, commands = run(
        state, (1.0, UpdateJournalled("a", 1)), (1.0, UpdateJournalled("b", 1)), (2.0, DeviceStopped("c"))
    )
    assert commands == [CloseRound(1, ("a", "b", "c"), ("a", "b"))]


def test_at_the_deadline_the_round_closes_with_enough_updates() -> None:
    state, _ = three_online()
    state, commands = run(state, (1.0, UpdateJournalled("a", 1)), (1.0, UpdateJournalled("b", 1)), (59.9, Tick()))
    assert commands == []
    _, commands = run(state, (60.0, Tick()))
    assert commands == [CloseRound(1, ("a", "b", "c"), ("a", "b"))]


def test_with_too_few_updates_at_the_deadline_the_round_is_tried_again_and_keeps_them() -> None:
    state, _ = three_online()
    state, commands = run(state, (1.0, UpdateJournalled("a", 1)), (60.0, Tick()))
    assert kinds(commands) == ["Warn", "StartRound"]
    assert commands[1] == StartRound(1, 2, ("a", "b", "c"), ())
    state, commands = run(state, (61.0, UpdateJournalled("b", 1)), (62.0, UpdateJournalled("c", 1)))
    assert commands == [CloseRound(1, ("a", "b", "c"), ("a", "b", "c"))]


def test_a_retry_waits_until_enough_devices_are_back() -> None:
    state, _ = three_online()
    state, commands = run(state, *((1.0, DeviceLost(name)) for name in "abc"), (11.0, Tick()))
    assert kinds(commands) == ["Warn"]
    state, commands = run(state, (100.0, DeviceOnline("b", 10)), (500.0, Tick()))
    assert commands == []
    state, commands = run(state, (501.0, DeviceOnline("d", 10)))
    assert commands == [StartRound(1, 2, ("a", "b", "c", "d"), ("d",)), SendTask("d", 1, 2)]
    _, commands = run(state, (502.0, UpdateJournalled("d", 1)), (503.0, UpdateJournalled("b", 1)))
    assert commands == [CloseRound(1, ("a", "b", "c", "d"), ("b", "d"))]


def test_a_failed_task_makes_the_device_unfit_and_the_others_go_on() -> None:
    state, _ = three_online()
    state, commands = run(
        state,
        (1.0, TaskFailed("c", 1, "LabelOutOfRange: row 3", unfit=True)),
        (2.0, UpdateJournalled("a", 1)),
        (2.0, UpdateJournalled("b", 1)),
        (3.0, Evaluated(1, 0.5)),
    )
    assert kinds(commands) == ["Warn", "CloseRound", "StartRound", "SendTask", "SendTask"]
    assert "LabelOutOfRange: row 3" in str(commands[0])
    assert commands[2] == StartRound(2, 1, ("a", "b"), ("a", "b"))


def test_a_passing_failure_is_asked_again_in_the_next_round() -> None:
    state, _ = three_online()
    _, commands = run(
        state,
        (1.0, TaskFailed("c", 1, "BlobMissing", unfit=False)),
        (2.0, UpdateJournalled("a", 1)),
        (2.0, UpdateJournalled("b", 1)),
        (3.0, Evaluated(1, 0.5)),
    )
    assert StartRound(2, 1, ("a", "b", "c"), ("a", "b", "c")) in commands


def test_the_job_fails_with_the_reasons_when_too_few_devices_are_fit() -> None:
    state, _ = three_online()
    failures = [(1.0, TaskFailed(name, 1, "OverMemoryLimit", unfit=True)) for name in "ab"]
    state, commands = run(state, *failures, (2.0, UpdateJournalled("c", 1)))
    assert kinds(commands) == ["Warn", "Warn", "Warn", "FailJob"]
    assert "a: OverMemoryLimit" in str(commands[-1])
    assert state.phase is Phase.FAILED


def test_a_failure_that_never_passes_ends_a_device_s_part() -> None:
    state, _ = three_online()
    seen: list[Command] = []
    for attempt in range(1, PATIENCE + 1):
        events = [(float(attempt), TaskFailed(name, 1, "BlobMissing", unfit=False)) for name in "abc"]
        state, commands = run(state, *events)
        seen += commands
    assert kinds(seen).count("StartRound") == PATIENCE - 1
    assert kinds(seen)[-1] == "FailJob"


def test_a_device_that_joins_later_takes_part_from_the_next_round() -> None:
    state, _ = three_online()
    state, commands = run(state, (1.0, DeviceOnline("d", 10)))
    assert commands == []
    _, commands = run(state, *((2.0, UpdateJournalled(name, 1)) for name in "abc"), (3.0, Evaluated(1, 0.1)))
    assert commands[1] == StartRound(2, 1, ("a", "b", "c", "d"), ("a", "b", "c", "d"))


def test_the_job_ends_at_the_last_round_or_at_the_target() -> None:
    state, _ = three_online(replace(RULES, target_accuracy=0.9))
    judged, _ = run(state, *((2.0, UpdateJournalled(name, 1)) for name in "abc"))
    done, commands = run(judged, (3.0, Evaluated(1, 0.9)))
    assert (done.phase, kinds(commands)) == (Phase.DONE, ["FinishJob"])
    state, _ = run(judged, (3.0, Evaluated(1, 0.89)), *((4.0, UpdateJournalled(name, 2)) for name in "abc"))
    done, commands = run(state, (5.0, Evaluated(2, 0.1)))
    assert (done.phase, kinds(commands)) == (Phase.DONE, ["FinishJob"])


def test_after_a_restart_devices_have_the_grace_to_come_back_before_anything_closes() -> None:
    fleet = {name: Device(name, Presence.ONLINE, 10) for name in "abc"}
    cohort = {"a": Outcome.DELIVERED, "b": Outcome.DELIVERED, "c": Outcome.PENDING}
    state = rounds.resumed(RULES, Journalled(Phase.COLLECTING, 2, 1, cohort, fleet), 1000.0)
    assert rounds.pending(state) == ("c",)
    state, commands = run(state, (1009.0, Tick()), (1009.5, DeviceOnline("c", 10)), (1030.0, Tick()))
    assert commands == []
    _, commands = run(state, (1031.0, UpdateJournalled("c", 2)))
    assert commands == [CloseRound(2, ("a", "b", "c"), ("a", "b", "c"))]


def test_after_a_restart_between_rounds_the_next_one_waits_for_those_who_were_there() -> None:
    fleet = {name: Device(name, Presence.ONLINE, 10) for name in "abc"}
    state = rounds.resumed(RULES, Journalled(Phase.GATHERING, 2, 0, {}, fleet), 0.0)
    state, commands = run(state, (0.1, DeviceOnline("a", 10)), (0.2, DeviceOnline("b", 10)))
    assert commands == []
    _, commands = run(state, (0.3, DeviceOnline("c", 10)))
    assert commands[0] == StartRound(2, 1, ("a", "b", "c"), ("a", "b", "c"))
    _, commands = run(state, (10.0, Tick()))
    assert commands[0] == StartRound(2, 1, ("a", "b"), ("a", "b"))


def test_a_cut_of_the_link_loses_only_those_who_do_not_come_back() -> None:
    state, _ = three_online()
    state, commands = run(
        state,
        (1.0, UpdateJournalled("a", 1)),
        (1.0, UpdateJournalled("b", 1)),
        (5.0, FleetUnknown()),
        (14.9, Tick()),
    )
    assert commands == []
    _, commands = run(state, (15.0, Tick()))
    assert commands == [CloseRound(1, ("a", "b", "c"), ("a", "b"))]


def test_the_share_of_a_fraction_is_the_same_for_the_same_seed_and_differs_over_rounds() -> None:
    names = [f"dev-{i}" for i in range(20)]

    def chosen(number: int, people: list[str]) -> tuple[str, ...]:
        return draw(people, count=share_of(len(people), 0.3, least=2), seed=7, number=number)

    assert chosen(1, names) == chosen(1, names[::-1])
    assert len(chosen(1, names)) == 6
    assert len({chosen(number, names) for number in range(1, 6)}) > 1
    assert [share_of(20, 0.01, least=4), share_of(3, 0.01, least=4), share_of(20, 0.26, least=1)] == [4, 3, 6]
    counts = [sum(name in chosen(number, names) for number in range(1, 301)) for name in names]
    assert min(counts) > 50  # 90 of 300 are expected; 50 lies five standard deviations below
    assert max(counts) < 130


def test_with_over_selection_the_round_closes_with_the_wanted_updates_and_the_late_one_counts_nowhere() -> None:
    rules = replace(RULES, devices=6, fraction=0.5, over_select=0.34)
    state, commands = run(rounds.started(rules, 0.0), *((0.0, DeviceOnline(name, 10)) for name in "abcdef"))
    starting = commands[0]
    assert isinstance(starting, StartRound)
    assert (len(starting.asked), starting.wanted) == (5, 3)  # ceil(1.34 * 3)
    first, second, third, late, _ = starting.asked
    state, commands = run(state, (1.0, UpdateJournalled(first, 1)), (1.0, UpdateJournalled(second, 1)))
    assert commands == []
    state, commands = run(state, (2.0, UpdateJournalled(third, 1)))
    assert commands == [CloseRound(1, starting.asked, tuple(sorted((first, second, third))))]
    refusal = rounds.counts_in(state, 1)
    assert isinstance(refusal, Refusal)
    assert refusal.rule == "StaleTask"
    assert run(state, (3.0, UpdateJournalled(late, 1)))[1] == []


def test_a_restart_keeps_how_many_updates_an_over_selected_round_wants() -> None:
    cohort = {"a": Outcome.DELIVERED, "b": Outcome.PENDING, "c": Outcome.PENDING}
    fleet = {name: Device(name, Presence.ONLINE, 10) for name in "abc"}
    state = rounds.resumed(RULES, Journalled(Phase.COLLECTING, 2, 1, cohort, fleet, wanted=2), 0.0)
    state, _ = run(state, *((0.1, DeviceOnline(name, 10)) for name in "abc"))
    _, commands = run(state, (1.0, UpdateJournalled("b", 2)))
    assert commands == [CloseRound(2, ("a", "b", "c"), ("a", "b"))]


def test_weights_are_availability_times_speed() -> None:
    fleet = {
        "new": Device("new", Presence.ONLINE, 5),
        "fast": Device("fast", Presence.ONLINE, 5, asked=9, delivered=9, times_s=(1.0, 1.0, 9.0)),
        "slow": Device("slow", Presence.ONLINE, 5, asked=9, delivered=9, times_s=(8.0, 8.0)),
        "usual": Device("usual", Presence.ONLINE, 5, asked=9, delivered=4, times_s=(2.0,)),
    }
    assert selection_weights(fleet, fleet) == {"new": 1.0, "fast": 1.0, "slow": 0.25, "usual": 0.5}


def test_a_device_of_a_quarter_of_the_weight_is_drawn_first_a_quarter_as_often() -> None:
    weights = {"a": 1.0, "b": 0.25}
    drawn = [draw("ab", count=1, seed=11, number=number, weights=weights) for number in range(4000)]
    assert drawn.count(("b",)) == pytest.approx(800, abs=100)  # a fifth; 100 are four standard deviations
    assert drawn == [draw("ba", count=1, seed=11, number=number, weights=weights) for number in range(4000)]
    equal = [draw("ab", count=1, seed=11, number=number, weights={"a": 3.0, "b": 3.0}) for number in range(200)]
    assert equal == [draw("ab", count=1, seed=11, number=number) for number in range(200)]


def test_slow_devices_are_asked_for_the_share_that_takes_them_as_long_as_others() -> None:
    times = {"a": (1.0,), "b": (2.0,), "c": (8.0,), "d": (100.0,), "e": ()}
    fleet = {name: Device(name, Presence.ONLINE, 5, times_s=each) for name, each in times.items()}
    assert {name: work_share(fleet, name) for name in fleet} == {"a": 1.0, "b": 1.0, "c": 0.625, "d": 0.1, "e": 1.0}
    rules = replace(RULES, devices=5, scale_work=True)
    state = rounds.resumed(rules, Journalled(Phase.GATHERING, 2, 0, {}, fleet), 0.0)
    _, commands = run(state, *((0.0, DeviceOnline(name, 5)) for name in "abcde"))
    starting = commands[0]
    assert isinstance(starting, StartRound)
    assert dict(zip(starting.asked, starting.shares, strict=True))["c"] == 0.625


def speeds(**times: float | None) -> dict[str, Device]:
    known = {name: () if seconds is None else (seconds,) for name, seconds in times.items()}
    return {name: Device(name, Presence.ONLINE, 5, times_s=each) for name, each in known.items()}


@pytest.mark.parametrize(
    ("times", "count", "least", "tiers"),
    [
        ({"a": 2.2, "b": 1.0, "c": 2.5, "d": 1.3}, 2, 1, (("b", "d"), ("a", "c"))),
        ({"a": 2.2, "b": 1.0, "c": 2.5, "d": 1.3}, 4, 2, (("b", "d"), ("a", "c"))),
        ({"a": 2.2, "b": 1.0, "c": 2.5, "d": 1.3}, 4, 3, (("a", "b", "c", "d"),)),
        ({"a": 3.0, "b": 1.0, "c": 2.0}, 2, 1, (("b",), ("a", "c"))),
        ({"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0}, 2, 1, (("a", "b"), ("c", "d"))),
        ({"a": 2.0, "b": None, "c": 1.0, "d": None}, 2, 1, (("b", "d"),)),
        ({"a": 2.0, "b": None, "c": 1.0, "d": 3.0}, 2, 2, (("a", "c"), ("b", "d"))),
        ({"a": None}, 2, 3, (("a",),)),
    ],
)
def test_tiers_are_devices_of_like_speed_and_the_unmeasured_come_first(
    times: dict[str, float | None], count: int, least: int, tiers: tuple[tuple[str, ...], ...]
) -> None:
    assert tiers_of(speeds(**times), sorted(times), count, least) == tiers


def test_a_round_asks_one_tier_and_every_tier_has_its_rounds() -> None:
    rules = replace(RULES, rounds=60, devices=4, schedule=ScheduleRules(name="tiers", tiers=2))
    fleet = speeds(a=2.2, b=1.0, c=2.5, d=1.3)
    asked = []
    for number in range(1, 61):
        state = rounds.resumed(rules, Journalled(Phase.GATHERING, number, 0, {}, fleet), 0.0)
        _, commands = run(state, *((0.0, DeviceOnline(name, 5)) for name in "abcd"))
        starting = commands[0]
        assert isinstance(starting, StartRound)
        asked.append(starting.asked)
    assert set(asked) == {("b", "d"), ("a", "c")}
    assert 20 < asked.count(("b", "d")) < 40  # 30 are expected; ten are 2.6 standard deviations


def test_what_a_device_delivers_and_how_fast_is_remembered() -> None:
    state, _ = three_online()
    state, _ = run(state, (1.0, UpdateJournalled("a", 1, 1.5)), (1.0, UpdateJournalled("b", 1)))
    known = {name: (each.asked, each.delivered, each.times_s) for name, each in state.fleet.items()}
    assert known == {"a": (1, 1, (1.5,)), "b": (1, 1, ()), "c": (1, 0, ())}


DEVICES = ("a", "b", "c", "d")
EVENTS = st.one_of(
    st.builds(DeviceOnline, st.sampled_from(DEVICES), st.integers(0, 2)),
    st.builds(DeviceRemembered, st.sampled_from(DEVICES), st.integers(0, 2)),
    st.builds(DeviceLost, st.sampled_from(DEVICES)),
    st.builds(DeviceStopped, st.sampled_from(DEVICES)),
    st.just(FleetUnknown()),
    st.builds(UpdateJournalled, st.sampled_from(DEVICES), st.integers(1, 3)),
    st.builds(TaskFailed, st.sampled_from(DEVICES), st.integers(1, 3), st.just("why"), st.booleans()),
    st.just(Tick()),
    st.builds(Evaluated, st.integers(1, 3), st.floats(0, 0.5)),
)


class Ledger:
    """What a shell would have seen: checks every command against what was journalled before it."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.state = rounds.started(rules, 0.0)
        self.journalled: dict[int, set[str]] = {}
        self.closed: list[CloseRound] = []
        self.ended: list[Command] = []

    def feed(self, event: Event, now_s: float) -> None:
        open_cohort = self.state.cohort if self.state.phase in {Phase.GATHERING, Phase.COLLECTING} else {}
        if isinstance(event, UpdateJournalled):
            # A shell journals only what answers an open task.
            if event.round != self.state.round or open_cohort.get(event.device) is not Outcome.PENDING:
                return
            self.journalled.setdefault(event.round, set()).add(event.device)
        self.state, commands = rounds.step(self.state, event, now_s)
        for command in commands:
            self.check(command)

    def check(self, command: Command) -> None:
        match command:
            case CloseRound(number, cohort, accepted):
                assert number == len(self.closed) + 1
                assert len(set(accepted)) == len(accepted) >= self.rules.min_updates
                assert set(accepted) == self.journalled[number]
                assert set(accepted) <= set(cohort)
                self.closed.append(command)
            case StartRound(number, attempt, cohort, _):
                assert number == len(self.closed) + 1
                assert attempt >= 1
                assert len(cohort) >= self.rules.min_updates
                assert set(self.journalled.get(number, set())) <= set(cohort)
            case SendTask(device, number, _):
                assert device not in self.journalled.get(number, set())
            case FinishJob() | FailJob():
                self.ended.append(command)
            case Warn():
                pass


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 40), EVENTS), max_size=60),
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from([0.3, 1.0]),
)
def test_whatever_happens_rounds_close_rightly_and_the_job_ends_once_the_network_heals(
    story: list[tuple[float, Event]], min_updates: int, devices: int, fraction: float
) -> None:
    rules = replace(RULES, devices=max(devices, min_updates), min_updates=min_updates, fraction=fraction)
    ledger = Ledger(rules)
    now_s = 0.0
    for wait_s, event in story:
        now_s += wait_s
        ledger.feed(event, now_s)
    # From here on everybody is there and every task is done.
    for _ in range(12):
        now_s += 1.0
        for name in DEVICES:
            ledger.feed(DeviceOnline(name, 1), now_s)
        for name in rounds.pending(ledger.state):
            ledger.feed(UpdateJournalled(name, ledger.state.round), now_s)
        ledger.feed(Evaluated(ledger.state.round, 0.1), now_s)
        now_s += rules.deadline_s
        ledger.feed(Tick(), now_s)
    unfit = [device for device in ledger.state.fleet.values() if device.unfit]
    starved = not ledger.ended and rules.devices > len(DEVICES) - len(unfit)
    assert len(ledger.ended) == (0 if starved else 1)
    if ledger.state.phase is Phase.DONE:
        assert len(ledger.closed) == rules.rounds


@pytest.mark.parametrize("phase", [Phase.DONE, Phase.FAILED])
def test_an_ended_job_asks_for_nothing_more(phase: Phase) -> None:
    state, _ = three_online()
    _, commands = run(
        replace(state, phase=phase),
        (1.0, UpdateJournalled("a", 1)),
        (99.0, Tick()),
        (99.0, Evaluated(1, 1.0)),
        (99.0, DeviceLost("b")),
    )
    assert commands == []
