"""The machines of coordinator.schedules on a virtual clock: devices of given speeds, no network, nothing waits.

The same machine, and with a `Learner` the same training and folds, as in a real job; only time is made up. A task takes
its device's seconds; folds, evaluations and messages take none.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from coordinator import buffered, rounds
from coordinator.evaluate import evaluate
from coordinator.program import judged_model, make_version, rules_of
from coordinator.results import fold
from coordinator.round_records import (
    AskDevices,
    CloseRound,
    Command,
    DeviceOnline,
    Evaluated,
    Event,
    FinishJob,
    Phase,
    Refusal,
    SendTask,
    Standing,
    StartRound,
    Tick,
    UpdateJournalled,
    VersionMade,
)
from coordinator.schedules import SCHEDULES
from coordinator.store import JournalUpdate
from coordinator.tasks import attempt_turn, make_task, serial_turn
from coordinator.updates import check_update
from edge_runtime.plan import read_plan
from edge_runtime.task import run_task
from edge_runtime.tensors import decode_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from coordinator.program import Program
    from coordinator.round_records import Rules
    from coordinator.store import Version
    from coordinator.tasks import Turn
    from edge_runtime.data import Dataset


@dataclass(frozen=True)
class Made:
    """A version: when it was made, of how many updates in all, and what its evaluation says."""

    time_s: float
    version: int
    updates: int
    accuracy: float


class Learner(Protocol):
    """What there is to learn."""

    def train(self, device: str, version: int, turn: Turn) -> Any:
        """What the device sends back."""

    def fold(self, number: int, updates: list[tuple[str, int, Any]]) -> float:
        """Make the version after `number` of (device, version, what was sent); returns its accuracy."""


class Nothing:
    """A learner that learns nothing: the times of versions do not depend on it."""

    def train(self, device: str, version: int, turn: Turn) -> None:
        """Nothing is sent."""

    def fold(self, number: int, updates: list[tuple[str, int, Any]]) -> float:  # noqa: ARG002  as in Learner
        """No accuracy."""
        return 0.0


class Real:
    """Real training, folds and evaluations of a job."""

    def __init__(self, program: Program, shards: Mapping[str, Dataset], held_out: Dataset) -> None:
        self._program = program
        self._shards = shards
        self._held_out = held_out
        self._versions: dict[int, Version] = {1: make_version(1, program.weights, {})}
        self._plans = {file.sha256: read_plan(file.data) for file in program.plans.values()}

    def train(self, device: str, version: int, turn: Turn) -> JournalUpdate:
        """The update, as the journal would have it but for the round in which it counts."""
        task = make_task(self._program, self._versions[version], device, turn)
        weights = decode_tensors(self._versions[version].sent.data)[0]
        update = run_task(task, self._plans, weights, self._shards[device])
        layout = self._program.stage(version).for_device(device).layout
        claims, _ = check_update(update.data, task, layout, len(self._shards[device]))
        return JournalUpdate(0, device, task.task, version, "", "", claims.examples, claims.loss, update.data)

    def fold(self, number: int, updates: list[tuple[str, int, Any]]) -> float:
        """As the coordinator does it."""
        rows = [JournalUpdate(**{**vars(each), "round": number}) for _, _, each in updates]
        made = fold(self._program, rows, self._versions[number], lambda old: self._versions[old].sent.data)
        self._versions[number + 1] = made
        return evaluate(judged_model(self._program, made), self._held_out).accuracy


@dataclass
class Clock:
    """One job on the virtual clock."""

    rules: Rules
    seconds: Mapping[str, float]
    learner: Learner
    now_s: float = 0.0
    made: list[Made] = field(default_factory=list)
    staleness: list[tuple[str, int]] = field(default_factory=list)
    _due: list[tuple[float, int, str, int, Any]] = field(default_factory=list)
    _counted: dict[int, list[tuple[str, int, Any]]] = field(default_factory=dict)
    _sent: int = 0
    _done: bool = False

    def run(self) -> list[Made]:
        """To the end of the job; returns its versions."""
        self._schedule = SCHEDULES[self.rules.schedule.name]
        empty = Standing(1, None, {}, {}, {})
        self._state: Any = (
            rounds.started(self.rules, 0.0)
            if not self.rules.schedule.asynchronous
            else buffered.resumed(self.rules, empty, 0.0)[0]
        )
        for name in self.seconds:
            self._feed(DeviceOnline(name, 1))
        while not self._done:
            self.now_s, _, device, version, sent = heapq.heappop(self._due)
            self._deliver(device, version, sent)
            self._feed(Tick())
        assert self._state.phase is Phase.DONE
        return self.made

    def _feed(self, event: Event) -> None:
        self._state, commands = self._schedule.step(self._state, event, self.now_s)
        for command in commands:
            self._do(command)

    def _do(self, command: Command) -> None:
        match command:
            case SendTask(device, number, attempt):
                self._ask(device, number, attempt_turn(number, attempt))
            case AskDevices(number, turns):
                for device, asked in turns:
                    self._ask(device, number, serial_turn(asked))
            case CloseRound(number):
                self._close(number)
            case FinishJob():
                self._done = True
            case _:
                assert isinstance(command, StartRound), command

    def _ask(self, device: str, version: int, turn: Turn) -> None:
        self._sent += 1  # who was asked first is heard first
        due = (
            self.now_s + self.seconds[device],
            self._sent,
            device,
            version,
            self.learner.train(device, version, turn),
        )
        heapq.heappush(self._due, due)

    def _deliver(self, device: str, version: int, sent: Any) -> None:
        number = self._schedule.counts_in(self._state, version)
        assert not isinstance(number, Refusal) or self._done, number
        if not isinstance(number, Refusal):
            self._counted.setdefault(number, []).append((device, version, sent))
            self.staleness.append((device, number - version))
            self._feed(UpdateJournalled(device, number, self.seconds[device]))

    def _close(self, number: int) -> None:
        accuracy = self.learner.fold(number, self._counted[number])
        updates = sum(map(len, self._counted.values()))
        self.made.append(Made(self.now_s, number + 1, updates, accuracy))
        self._feed(VersionMade(number + 1))
        self._feed(Evaluated(number, accuracy))


def on_virtual_clock(rules: Rules, seconds: Mapping[str, float]) -> list[Made]:
    """The times of a job's versions."""
    return Clock(rules, seconds, Nothing()).run()


def learnt(
    program: Program, seconds: Mapping[str, float], shards: Mapping[str, Dataset], held_out: Dataset
) -> list[Made]:
    """A job's versions with their accuracies, trained for real."""
    return Clock(rules_of(program.job), seconds, Real(program, shards, held_out)).run()


def time_to(made: list[Made], accuracy: float) -> float:
    """When a version first reached this accuracy."""
    return next(each.time_s for each in made if each.accuracy >= accuracy)
