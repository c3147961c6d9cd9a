"""The schedules of [schedule] name: pure machines behind one record, so that one shell runs any of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from coordinator import buffered, rounds
from coordinator.round_records import CloseRound, Command, Evaluated, Event, Phase, Refusal, Rules
from coordinator.store import Store

# Of the machine's own kind; the shell reads its `phase`, `round` (the newest version) and `fleet`.
State = Any
Move = tuple[State, tuple[Command, ...]]


@dataclass(frozen=True)
class Schedule:
    """One state machine.

    Attributes:
        resume: (rules, journal, now_s) -> the state, and what a crash has left to do.
        step: (state, event, now_s) -> the next state, and what the shell has to do, in order.
        note: The same for events that come in numbers, births and updates; a Tick follows them, for which may be left
            what takes a look at every device.
        pending: The devices with an open task.
        counts_in: (state, version) -> the round in which an update counts that was trained from this version.
        candidates: Who counts towards the start.
        needed: How many candidates the start waits for.
    """

    resume: Callable[[Rules, Store, float], Move]
    step: Callable[[State, Event, float], Move]
    note: Callable[[State, Event, float], Move]
    pending: Callable[[State], tuple[str, ...]]
    counts_in: Callable[[State, int], int | Refusal]
    candidates: Callable[[State], tuple[str, ...]]
    needed: Callable[[State], int]


def _resume_rounds(rules: Rules, store: Store, now_s: float) -> Move:
    journalled = store.journalled()
    state = rounds.resumed(rules, journalled, now_s)
    if state.phase is not Phase.JUDGING:
        return state, ()
    if journalled.accuracy is None:
        return state, (CloseRound(state.round),)
    return rounds.step(state, Evaluated(state.round, journalled.accuracy), now_s)


def _resume_buffered(rules: Rules, store: Store, now_s: float) -> Move:
    standing = store.standing()
    state, commands = buffered.resumed(rules, standing, now_s)
    if standing.accuracy is None:
        return state, commands
    state, more = buffered.step(state, Evaluated(standing.newest - 1, standing.accuracy), now_s)
    return state, (*commands, *more)


ROUNDS = Schedule(
    _resume_rounds, rounds.step, rounds.note, rounds.pending, rounds.counts_in, rounds.candidates, rounds.needed
)
BUFFERED = Schedule(
    _resume_buffered,
    buffered.step,
    buffered.step,
    buffered.pending,
    buffered.counts_in,
    buffered.candidates,
    buffered.needed,
)
SCHEDULES: Mapping[str, Schedule] = {"sync": ROUNDS, "tiers": ROUNDS, "fedasync": BUFFERED, "fedbuff": BUFFERED}
