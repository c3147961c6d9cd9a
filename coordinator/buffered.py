"""The state machine of a job whose versions are made of buffers of updates: FedAsync and FedBuff; no I/O and no clock.

C. Xie, S. Koyejo, I. Gupta: Asynchronous Federated Optimization, 2019, Algorithm 1 (a buffer of one); J. Nguyen et al.:
Federated Learning with Buffered Asynchronous Aggregation, AISTATS 2022, Algorithm 1. What an update weighs is in
coordinator.staleness.

| phase | waits for | then |
| --- | --- | --- |
| GATHERING | `devices` devices online and nobody on its way back, once | COLLECTING |
| COLLECTING | updates; `buffer` of them, of whatever devices and versions, close a round | the round is folded |
| COLLECTING | the last round's version, or the target, judged | DONE |
| DONE, FAILED | nothing | |

Round r makes version r + 1. An update counts in the round that is being filled when it comes, r; trained from version v
it is r - v versions stale. A device is asked again from the newest version as soon as the rounds that were closed when
it delivered are folded, so that what it said last is in what it gets next, at most `concurrency` devices at one time.
A device that is lost, or whose task is older than deadline_s, keeps its task and may still answer it, but holds up
nobody. A task more than `max_staleness` versions behind is withdrawn. The job fails when fewer than `min_updates`
devices are left that have not failed a task.

Restart: the journal knows the newest version, the updates waiting for each round and the tasks that are open.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from coordinator import fleet as fleets
from coordinator.endings import PATIENCE, why_done, why_hopeless
from coordinator.fleet import Fleet
from coordinator.presence import PresenceEvent, take_presence
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
    Standing,
    TaskExpired,
    TaskFailed,
    Tick,
    UpdateJournalled,
    VersionMade,
    Warn,
    WithdrawTask,
)
from coordinator.table import Table, put, without


@dataclass(frozen=True)
class Pending:
    """An open task: the version it starts from, and when it was sent or taken up."""

    version: int
    since_s: float


@dataclass(frozen=True)
class State:
    """Everything the machine knows.

    Attributes:
        rules: Of the job.
        phase: Where the job is.
        round: The newest version, and the round that starts from it.
        filling: The round in which an update counts that comes now; those before it are closed.
        filled: How many updates count in it so far.
        fleet: The devices.
        pending: Open tasks, by device.
        waits: The version that a device waits for before it is asked again.
        failures: How many tasks in a row a device has failed.
        since_s: When the phase began.
        idle: The devices that were heard of and have no open task; the values mean nothing.
        asked: How many tasks were ever sent.
        paused: Whether an operator wants nobody to be asked; what was asked for still counts.
    """

    rules: Rules
    phase: Phase
    round: int
    filling: int
    filled: int
    fleet: Fleet
    pending: Mapping[str, Pending]
    waits: Mapping[str, int]
    failures: Mapping[str, int]
    since_s: float
    idle: Mapping[str, None]
    asked: int
    paused: bool = False


Move = tuple[State, tuple[Command, ...]]


def resumed(rules: Rules, standing: Standing, now_s: float) -> Move:
    """A job out of the journal, and the rounds that were closed but not folded or judged, in order."""
    full = rules.schedule.buffer
    closed = [number for number, count in sorted(standing.waiting.items()) if count >= full]
    filling = max([standing.newest, *(number + 1 for number in closed)])
    idle = standing.fleet.keys() - standing.pending.keys()
    begun = standing.newest > 1 or bool(standing.pending) or bool(standing.waiting)
    state = State(
        rules=rules,
        phase=Phase.COLLECTING if begun else Phase.GATHERING,
        round=standing.newest,
        filling=filling,
        filled=standing.waiting.get(filling, 0),
        fleet=fleets.all_lost(standing.fleet, now_s),
        pending=Table({name: Pending(version, now_s) for name, version in standing.pending.items()}),
        # Nothing tells any more what an idle device waits for; at most it waits for what is closed.
        waits=Table(dict.fromkeys(idle, filling)),
        failures=Table({}),
        since_s=now_s,
        idle=Table(dict.fromkeys(idle)),
        asked=sum(device.asked for device in standing.fleet.values()),
        paused=standing.paused,
    )
    again = standing.newest - 1
    unjudged = [again] if again >= 1 and standing.accuracy is None and _is_judged(rules, again) else []
    return state, tuple(CloseRound(number, judged=_is_judged(rules, number)) for number in [*unjudged, *closed])


def step(state: State, event: Event, now_s: float) -> Move:
    """One event: the next state, and the commands it calls for, in order."""
    state, commands = _TAKE[type(event)](state, event, now_s)
    while True:
        following, more = _ADVANCE[state.phase](state, now_s)
        commands += more
        if following is state:
            return state, commands
        state = following


def pending(state: State) -> tuple[str, ...]:
    """The devices with an open task, in ascending order."""
    return tuple(sorted(state.pending))


def counts_in(state: State, version: int) -> int | Refusal:
    """The round in which an update for a task from this version counts, were it to come now."""
    behind, most = state.filling - version, state.rules.schedule.max_staleness
    if state.phase is not Phase.COLLECTING or state.filling > state.rules.rounds:
        return Refusal("StaleTask", "the job has all the updates it needs")
    if behind > most:
        return Refusal("StaleUpdate", f"it starts from version {version}, {behind} behind; {most} are allowed")
    return state.filling


def candidates(state: State) -> tuple[str, ...]:
    """The devices that are ready, in ascending order."""
    return fleets.ready(state.fleet)


def needed(state: State) -> int:
    """How many candidates the start waits for."""
    return state.rules.devices


def _is_judged(rules: Rules, number: int) -> bool:
    return number % rules.schedule.evaluate_every == 0 or number >= rules.rounds


# What an event changes.


def _take_presence(state: State, event: PresenceEvent, now_s: float) -> Move:
    fleet, warnings = take_presence(state.fleet, event, now_s)
    if isinstance(event, FleetUnknown) or event.device in state.pending or event.device not in fleet:
        return replace(state, fleet=fleet), warnings
    return replace(state, fleet=fleet, idle=put(state.idle, event.device, None)), warnings


def _take_update(state: State, event: UpdateJournalled, _now_s: float) -> Move:
    """The shell has asked `counts_in` before it wrote the update."""
    if event.device not in state.pending or event.round != state.filling:
        return state, ()
    filled = state.filled + 1
    last_closed = state.filling if filled >= state.rules.schedule.buffer else state.filling - 1
    return replace(
        _idle(state, event.device),
        filled=filled,
        fleet=fleets.answered(state.fleet, event.device, event.seconds),
        waits=put(state.waits, event.device, last_closed + 1),
        failures=put(state.failures, event.device, 0),
    ), ()


def _take_failure(state: State, event: TaskFailed, _now_s: float) -> Move:
    if event.device not in state.pending:
        return state, ()
    failures = state.failures.get(event.device, 0) + 1
    failed = replace(_idle(state, event.device), failures=put(state.failures, event.device, failures))
    if not event.unfit and failures < PATIENCE:
        return failed, (Warn(f"device {event.device} failed its task from version {event.round}: {event.reason}"),)
    warning = Warn(f"device {event.device} takes no further part in this job: {event.reason}")
    condemned = replace(failed, fleet=fleets.condemned(failed.fleet, event.device, event.reason))
    following, ending = _give_up(condemned)
    return following, (warning, *ending)


def _take_expired(state: State, event: TaskExpired, _now_s: float) -> Move:
    return _idle(state, event.device), ()


def _take_version(state: State, event: VersionMade, _now_s: float) -> Move:
    """Tasks that are now too far behind are withdrawn; the journal has failed them with the version."""
    oldest = event.version - state.rules.schedule.max_staleness
    late = tuple(sorted(name for name, task in state.pending.items() if task.version < oldest))
    for name in late:
        state = _idle(state, name)
    return replace(state, round=event.version), tuple(WithdrawTask(name) for name in late)


def _take_evaluated(state: State, event: Evaluated, _now_s: float) -> Move:
    if state.phase is not Phase.COLLECTING or event.round != state.round - 1:
        return state, ()
    if (reason := why_done(state.rules, event)) is not None:
        return replace(state, phase=Phase.DONE), (FinishJob(reason),)
    return state, ()


def _take_tick(state: State, _event: Tick, _now_s: float) -> Move:
    return state, ()


def _take_paused(state: State, event: Paused, _now_s: float) -> Move:
    return replace(state, paused=event.paused), ()


def _idle(state: State, device: str) -> State:
    return replace(state, pending=without(state.pending, device), idle=put(state.idle, device, None))


# What a phase does on its own, after every event. Returns the very same state when there is nothing to do.


def _gather(state: State, now_s: float) -> Move:
    in_grace = now_s - state.since_s < state.rules.grace_s
    if in_grace and fleets.returning(state.fleet, now_s, state.rules.grace_s):
        return state, ()
    if len(candidates(state)) < needed(state):
        return state, ()
    return replace(state, phase=Phase.COLLECTING, since_s=now_s), ()


def _collect(state: State, now_s: float) -> Move:
    state, closing = _close(state)
    state, asking = _ask(state, now_s)
    return state, closing + asking


def _stay(state: State, _now_s: float) -> Move:
    return state, ()


def _close(state: State) -> Move:
    """A full buffer is closed; the next update counts in the next round."""
    if state.filled < state.rules.schedule.buffer:
        return state, ()
    closing = CloseRound(state.filling, judged=_is_judged(state.rules, state.filling))
    return replace(state, filling=state.filling + 1, filled=0), (closing,)


def _give_up(state: State) -> Move:
    """The job fails when too few devices are left that could ever do a task."""
    hopeless = why_hopeless(state.fleet, fleets.fit(state.fleet), state.rules.min_updates)
    return (state, ()) if hopeless is None else (replace(state, phase=Phase.FAILED), (FailJob(hopeless),))


def _ask(state: State, now_s: float) -> Move:
    """Idle devices that are there are asked, up to the concurrency; by lot where not all can be."""
    if state.paused or state.filling > state.rules.rounds:
        return state, ()
    waiting = (name for name in state.idle if state.waits.get(name, 0) <= state.round)
    chosen = tuple(sorted(name for name in waiting if fleets.is_ready(state.fleet[name])))
    if chosen and state.rules.schedule.concurrency is not None:
        room = max(0, state.rules.schedule.concurrency - _busy(state, now_s))
        chosen = fleets.draw(chosen, count=room, seed=state.rules.seed, number=state.asked)
    if not chosen:
        return state, ()
    turns = tuple((name, state.fleet[name].asked) for name in chosen)
    pending, idle = state.pending, state.idle
    for name in chosen:
        pending, idle = put(pending, name, Pending(state.round, now_s)), without(idle, name)
    fleet, asked = fleets.was_asked(state.fleet, chosen), state.asked + len(chosen)
    after = replace(state, pending=pending, idle=idle, fleet=fleet, asked=asked)
    return after, (AskDevices(state.round, turns),)


def _busy(state: State, now_s: float) -> int:
    """How many devices hold a place: their tasks are open, and they are there or on their way back."""
    return sum(
        now_s - task.since_s < state.rules.deadline_s and fleets.awaited(state.fleet[name], now_s, state.rules.grace_s)
        for name, task in state.pending.items()
        if name in state.fleet
    )


_TAKE: Mapping[type[Event], Callable[[State, Any, float], Move]] = {
    DeviceOnline: _take_presence,
    DeviceRemembered: _take_presence,
    DeviceLost: _take_presence,
    DeviceStopped: _take_presence,
    FleetUnknown: _take_presence,
    UpdateJournalled: _take_update,
    TaskFailed: _take_failure,
    TaskExpired: _take_expired,
    Tick: _take_tick,
    Paused: _take_paused,
    Evaluated: _take_evaluated,
    VersionMade: _take_version,
}

_ADVANCE: Mapping[Phase, Callable[[State, float], Move]] = {
    Phase.GATHERING: _gather,
    Phase.COLLECTING: _collect,
    Phase.DONE: _stay,
    Phase.FAILED: _stay,
}
