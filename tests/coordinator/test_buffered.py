"""The machine of buffered schedules: its table, and what holds for any interleaving of events and restarts."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator import buffered
from coordinator.buffered import State
from coordinator.endings import PATIENCE
from coordinator.round_records import (
    AskDevices,
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
    Paused,
    Phase,
    Refusal,
    Rules,
    ScheduleRules,
    Standing,
    TaskExpired,
    TaskFailed,
    Tick,
    UpdateJournalled,
    VersionMade,
    Warn,
    WithdrawTask,
)

FEDASYNC = ScheduleRules(name="fedasync", alpha=0.6, buffer=1, max_staleness=4)
FEDBUFF = ScheduleRules(name="fedbuff", buffer=2, max_staleness=4)
RULES = Rules(
    seed=3,
    rounds=8,
    target_accuracy=None,
    devices=3,
    min_updates=1,
    deadline_s=60.0,
    grace_s=10.0,
    fraction=1.0,
    schedule=FEDASYNC,
)


def new(rules: Rules) -> State:
    return buffered.resumed(rules, Standing(1, None, {}, {}, {}), 0.0)[0]


def run(state: State, *events: tuple[float, Event]) -> tuple[State, list[Command]]:
    commands: list[Command] = []
    for now_s, event in events:
        state, more = buffered.step(state, event, now_s)
        commands += more
    return state, commands


def three_online(rules: Rules = RULES) -> tuple[State, list[Command]]:
    return run(new(rules), *((0.0, DeviceOnline(name, 10)) for name in "abc"))


def buffer_of(size: int, **changes: int | None) -> Rules:
    return replace(RULES, schedule=replace(FEDBUFF, buffer=size, **changes))


def test_the_start_waits_for_all_devices_and_asks_them_from_version_1() -> None:
    state, commands = run(new(RULES), (0.0, DeviceOnline("a", 10)), (5.0, DeviceOnline("b", 10)))
    assert commands == []
    _, commands = run(state, (6.0, DeviceOnline("c", 10)))
    assert commands == [AskDevices(1, (("a", 0), ("b", 0), ("c", 0)))]


def test_every_update_closes_a_round_of_fedasync_and_its_device_is_asked_from_the_version_it_made() -> None:
    state, _ = three_online()
    state, commands = run(state, (1.0, UpdateJournalled("b", 1, 1.0)))
    assert commands == [CloseRound(1)]
    state, commands = run(state, (1.1, VersionMade(2)))
    assert commands == [AskDevices(2, (("b", 1),))]
    assert buffered.counts_in(state, 1) == 2


def test_a_device_that_delivers_while_a_round_is_folded_waits_for_its_own() -> None:
    state, _ = three_online()
    state, _ = run(state, (1.0, UpdateJournalled("b", 1)), (1.1, UpdateJournalled("a", 2)))
    state, commands = run(state, (1.2, VersionMade(2)))
    assert commands == [AskDevices(2, (("b", 1),))]
    _, commands = run(state, (1.3, VersionMade(3)))
    assert commands == [AskDevices(3, (("a", 1),))]


def test_in_an_open_buffer_a_device_is_asked_again_at_once_from_the_same_version() -> None:
    state, _ = three_online(buffer_of(3))
    state, commands = run(state, (1.0, UpdateJournalled("b", 1)))
    assert commands == [AskDevices(1, (("b", 1),))]
    _, commands = run(state, (2.0, UpdateJournalled("b", 1)), (3.0, UpdateJournalled("c", 1)))
    assert commands[-1] == CloseRound(1)


def test_an_update_too_far_behind_is_refused_by_name_and_its_device_asked_anew() -> None:
    state, _ = three_online(replace(RULES, schedule=replace(FEDASYNC, max_staleness=1)))
    state, _ = run(state, (1.0, UpdateJournalled("b", 1)), (1.1, VersionMade(2)), (2.0, UpdateJournalled("b", 2)))
    refusal = buffered.counts_in(state, 1)
    assert isinstance(refusal, Refusal)
    assert refusal.rule == "StaleUpdate"
    assert "2 behind; 1 are allowed" in refusal.message
    state, commands = run(state, (2.1, TaskExpired("a")))
    assert commands == [AskDevices(2, (("a", 1),))]
    assert state.fleet["a"].unfit is None


def test_a_task_that_falls_too_far_behind_is_withdrawn_and_its_device_asked_anew() -> None:
    state, _ = three_online(replace(RULES, schedule=replace(FEDASYNC, max_staleness=0)))
    state, _ = run(state, (1.0, DeviceLost("c")), (1.5, UpdateJournalled("b", 1)))
    state, commands = run(state, (1.6, VersionMade(2)))
    assert commands == [WithdrawTask("a"), WithdrawTask("c"), AskDevices(2, (("a", 1), ("b", 1)))]
    assert "c" not in state.pending


def test_at_most_the_concurrency_is_asked_and_the_lost_hold_no_place_after_the_grace() -> None:
    state, commands = three_online(buffer_of(2, concurrency=2))
    (asked,) = commands
    assert isinstance(asked, AskDevices)
    first, second = (name for name, _ in asked.turns)
    state, commands = run(state, (1.0, DeviceLost(first)), (10.9, Tick()))
    assert commands == []
    _, commands = run(state, (11.0, Tick()))
    (idle,) = {"a", "b", "c"} - {first, second}
    assert commands == [AskDevices(1, ((idle, 0),))]


def test_a_device_that_takes_longer_than_the_deadline_holds_no_place_and_may_still_answer() -> None:
    state, _ = three_online(buffer_of(2, concurrency=2))
    slow = min(state.pending)
    state, commands = run(state, (60.0, Tick()))
    assert [type(command) for command in commands] == [AskDevices]
    assert buffered.counts_in(state, state.pending[slow].version) == 1


def test_a_device_without_a_task_gets_one_as_soon_as_it_comes() -> None:
    state, _ = three_online()
    _, commands = run(state, (5.0, DeviceOnline("d", 4)))
    assert commands == [AskDevices(1, (("d", 0),))]


def test_failures_that_pass_are_asked_again_and_five_in_a_row_end_a_device_s_part() -> None:
    state, _ = three_online()
    for count in range(1, PATIENCE):
        state, commands = run(state, (float(count), TaskFailed("a", 1, "BlobMissing", unfit=False)))
        assert [type(command) for command in commands] == [Warn, AskDevices]
    state, commands = run(state, (9.0, TaskFailed("a", 1, "BlobMissing", unfit=False)))
    assert [type(command) for command in commands] == [Warn]
    assert state.fleet["a"].unfit == "BlobMissing"


def test_the_job_fails_when_too_few_are_left_that_can_do_a_task() -> None:
    state, _ = three_online(replace(RULES, min_updates=2))
    _, commands = run(state, *((1.0, TaskFailed(name, 1, "OverMemoryLimit", unfit=True)) for name in "ab"))
    assert isinstance(commands[-1], FailJob)
    assert "1 of 3 devices" in commands[-1].reason


def test_versions_are_judged_every_so_often_and_the_last_one_always() -> None:
    rules = replace(RULES, rounds=5, schedule=replace(FEDASYNC, evaluate_every=2))
    state, _ = three_online(rules)
    judged = []
    for number in range(1, 6):
        state, commands = run(state, (float(number), UpdateJournalled(min(state.pending), number)))
        judged += [command.judged for command in commands if isinstance(command, CloseRound)]
        state, _ = run(state, (number + 0.5, VersionMade(number + 1)))
    assert judged == [False, True, False, True, True]
    assert run(state, (9.0, Evaluated(5, 0.1)))[1] == [FinishJob("all 5 rounds are done")]


def test_when_the_last_round_is_closed_nobody_is_asked_and_nothing_counts() -> None:
    state, _ = three_online(replace(RULES, rounds=1))
    state, commands = run(state, (1.0, UpdateJournalled("a", 1)), (1.1, VersionMade(2)), (1.2, DeviceOnline("d", 9)))
    assert commands == [CloseRound(1)]
    refusal = buffered.counts_in(state, 1)
    assert isinstance(refusal, Refusal)
    assert refusal.rule == "StaleTask"


def test_a_target_ends_the_job_with_the_version_that_reaches_it() -> None:
    state, _ = three_online(replace(RULES, target_accuracy=0.9))
    state, _ = run(state, (1.0, UpdateJournalled("a", 1)), (1.1, VersionMade(2)))
    state, commands = run(state, (1.2, Evaluated(1, 0.95)))
    assert isinstance(commands[0], FinishJob)
    assert state.phase is Phase.DONE


def test_while_a_job_is_paused_nobody_is_asked_and_what_comes_counts() -> None:
    state, _ = three_online()
    state, commands = run(state, (0.5, Paused(paused=True)), (1.0, UpdateJournalled("a", 1)), (1.1, VersionMade(2)))
    assert commands == [CloseRound(1)]
    _, commands = run(state, (2.0, Paused(paused=False)))
    assert commands == [AskDevices(2, (("a", 1),))]


def test_after_a_restart_closed_rounds_are_folded_in_order_and_the_open_one_goes_on() -> None:
    standing = Standing(4, None, {4: 2, 5: 2, 6: 1}, {"a": 3}, {})
    state, commands = buffered.resumed(replace(RULES, schedule=FEDBUFF), standing, 0.0)
    assert commands == (CloseRound(3), CloseRound(4), CloseRound(5))
    assert (state.filling, state.filled, state.round) == (6, 1, 4)


DEVICES = ("a", "b", "c", "d")
EVENTS = st.one_of(
    st.builds(DeviceOnline, st.sampled_from(DEVICES), st.integers(0, 2)),
    st.builds(DeviceRemembered, st.sampled_from(DEVICES), st.integers(0, 2)),
    st.builds(DeviceLost, st.sampled_from(DEVICES)),
    st.builds(DeviceStopped, st.sampled_from(DEVICES)),
    st.just(FleetUnknown()),
    st.builds(Paused, st.booleans()),
    st.just(Tick()),
)
# What the shell does of itself: a device delivers (again), a fold or an evaluation ends, the process is killed.
DELIVERIES = [(verb, name) for verb in ("deliver", "deliver", "fail") for name in DEVICES]
ACTS = st.one_of(EVENTS, st.sampled_from([*DELIVERIES, ("work", ""), ("work", ""), ("kill", "")]))


class Shell:
    """What a shell and its journal do, in memory: every update once, folds in order, a kill at any time."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.newest = 1
        self.judged: dict[int, float] = {}
        self.open: dict[str, tuple[str, int]] = {}  # device: (task, version)
        self.accepted: dict[tuple[str, str], int] = {}  # (device, task): round
        self.folded: dict[tuple[str, str], int] = {}  # (device, task): version
        self.staleness: list[int] = []
        self.asked: Counter[str] = Counter()
        self.ended: list[Command] = []
        self.to_close: list[CloseRound] = []
        self.state = new(rules)

    def feed(self, event: Event, now_s: float) -> None:
        self.state, commands = buffered.step(self.state, event, now_s)
        self.do(commands)

    def do(self, commands: tuple[Command, ...]) -> None:
        for command in commands:
            match command:
                case AskDevices(version, turns):
                    assert version == self.newest
                    self.ask(version, turns)
                case WithdrawTask(device):
                    assert device not in self.open, "the journal has failed the task with the version"
                case CloseRound():
                    self.to_close.append(command)
                case FinishJob() | FailJob():
                    self.ended.append(command)
                case _:
                    assert isinstance(command, Warn)

    def ask(self, version: int, turns: tuple[tuple[str, int], ...]) -> None:
        limit = self.rules.schedule.concurrency
        assert limit is None or len(turns) <= limit
        for device, before in turns:
            assert device not in self.open
            assert before == self.asked[device], "no two tasks of a device have one name"
            self.asked[device] += 1
            self.open[device] = (f"{version}.{before}", version)

    def deliver(self, device: str, now_s: float) -> None:
        """The device offers its update; what is refused for its staleness ends its task."""
        if device not in self.open:
            return
        task, version = self.open[device]
        number = buffered.counts_in(self.state, version)
        if isinstance(number, Refusal):
            if number.rule == "StaleUpdate":
                del self.open[device]
                self.feed(TaskExpired(device), now_s)
            return
        assert (device, task) not in self.accepted
        del self.open[device]
        self.accepted[device, task] = number
        self.staleness.append(number - version)
        self.feed(UpdateJournalled(device, number, 1.0), now_s)

    def act(self, act: Event | tuple[str, str], now_s: float) -> None:
        """An event, or something that the shell does of itself."""
        match act:
            case ("deliver", device):
                self.deliver(device, now_s)
            case ("fail", device):
                if device in self.open:
                    self.feed(TaskFailed(device, self.open.pop(device)[1], "why", unfit=False), now_s)
            case ("work", _):
                self.work(now_s)
            case ("kill", _):
                self.kill(now_s)
            case _:
                assert not isinstance(act, tuple)
                self.feed(act, now_s)

    def heal(self, now_s: float) -> None:
        """From here on everybody is there and every task is done."""
        self.feed(Paused(paused=False), now_s)
        for _ in range(60):
            now_s += self.rules.deadline_s
            if not self.ended:
                for name in DEVICES:
                    self.feed(DeviceOnline(name, 1), now_s)
                self.feed(Tick(), now_s)
                for name in sorted(self.open):
                    self.deliver(name, now_s)
                self.work(now_s)

    def work(self, now_s: float) -> None:
        """The next round that is closed is folded, its version written, and judged if it is to be."""
        if not self.to_close or self.ended:
            return
        closing = self.to_close.pop(0)
        if closing.round == self.newest:
            of_round = [key for key, number in self.accepted.items() if number == closing.round]
            assert len(of_round) == self.rules.schedule.buffer
            assert not self.folded.keys() & set(of_round)
            self.newest += 1
            self.folded |= dict.fromkeys(of_round, self.newest)
            oldest = self.newest - self.rules.schedule.max_staleness
            self.open = {name: task for name, task in self.open.items() if task[1] >= oldest}
        assert closing.round == self.newest - 1, "rounds are folded in order"
        self.feed(VersionMade(self.newest), now_s)
        if closing.judged:
            self.judged[closing.round] = 0.1
            self.feed(Evaluated(closing.round, 0.1), now_s)

    def kill(self, now_s: float) -> None:
        """What is not in the journal is gone."""
        waiting = Counter(number for key, number in self.accepted.items() if key not in self.folded)
        pending = {name: version for name, (_, version) in self.open.items()}
        fleet = {name: replace(device, asked=self.asked[name]) for name, device in self.state.fleet.items()}
        accuracy = self.judged.get(self.newest - 1)
        standing = Standing(self.newest, accuracy, dict(waiting), pending, fleet, self.state.paused)
        self.to_close = []
        self.state, commands = buffered.resumed(self.rules, standing, now_s)
        self.do(commands)
        if accuracy is not None:
            self.feed(Evaluated(self.newest - 1, accuracy), now_s)


@settings(max_examples=300, deadline=None)
@given(
    story=st.lists(st.tuples(st.floats(0, 30), ACTS), max_size=80),
    buffer=st.integers(1, 3),
    concurrency=st.sampled_from([None, 1, 2]),
    max_staleness=st.sampled_from([0, 1, 3, 100]),
)
def test_whatever_happens_every_accepted_update_is_folded_once_and_the_job_ends_once_the_network_heals(
    story: list[tuple[float, Event | tuple[str, str]]], buffer: int, concurrency: int | None, max_staleness: int
) -> None:
    schedule = replace(FEDBUFF, buffer=buffer, concurrency=concurrency, max_staleness=max_staleness, evaluate_every=2)
    shell = Shell(replace(RULES, rounds=5, devices=2, schedule=schedule))
    now_s = 0.0
    for wait_s, act in story:
        now_s += wait_s
        if not shell.ended:
            shell.act(act, now_s)
    shell.heal(now_s)
    assert len(shell.ended) == 1
    if isinstance(shell.ended[0], FinishJob):
        assert shell.newest == 6
        assert Counter(shell.folded.values()) == dict.fromkeys(range(2, 7), buffer)
        assert shell.folded.keys() == shell.accepted.keys()
        assert all(shell.folded[key] == number + 1 for key, number in shell.accepted.items())
        assert max(shell.staleness) <= max_staleness


@pytest.mark.parametrize("phase", [Phase.DONE, Phase.FAILED])
def test_an_ended_job_asks_for_nothing_more(phase: Phase) -> None:
    state, _ = three_online()
    _, commands = run(replace(state, phase=phase), (1.0, Tick()), (99.0, DeviceOnline("z", 5)), (99.0, Evaluated(0, 1)))
    assert commands == []
