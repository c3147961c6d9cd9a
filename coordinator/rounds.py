"""The state machine of a job with synchronous rounds: events in, commands out, no I/O and no clock.

`step(state, event, now_s)` returns the next state and what the shell has to do, in order.

| phase | waits for | then |
| --- | --- | --- |
| GATHERING | enough devices online and nobody on its way back | starts the round: COLLECTING |
| COLLECTING | every awaited member's update, or the deadline | JUDGING; with too few updates GATHERING, and a warning |
| JUDGING | the new version's evaluation | next round: GATHERING; target met or last round: DONE |
| DONE, FAILED | nothing | |

Round 1 needs `devices` devices with examples, every later start `min_updates`. A member of the cohort is awaited while
it is online or was lost less than grace_s ago. What a member has delivered in one attempt of a round counts in the next
one, and who is still at it goes on: the weights and the tasks are the same. With over_select more are asked than are
wanted, and the round closes with as many updates as are wanted; who is late is refused and loses nothing. The job fails
when too few devices are left that have not failed a task. While it is paused no round is started, the one that runs
goes on to its version.

With `schedule.tiers` every round is of one tier of devices of like speed, drawn from the seed: Z. Chai et al.: TiFL: A
Tier-based Federated Learning System, HPDC 2020, with its uniform policy. Tiers are made anew for each round of the
medians of the devices' last task times; devices that have none yet have rounds of their own first.

Restart: the shell rebuilds the state from the journal with `resumed`; every device then counts as lost since now, so
that a round neither starts nor closes before the births had grace_s seconds to arrive.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from coordinator import fleet as fleets
from coordinator.endings import PATIENCE, why_done, why_hopeless
from coordinator.presence import PresenceEvent, take_presence
from coordinator.round_records import (
    CloseRound,
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
    Move,
    Outcome,
    Paused,
    Phase,
    Refusal,
    Rules,
    SendTask,
    StartRound,
    State,
    TaskFailed,
    Tick,
    UpdateJournalled,
    VersionMade,
    Warn,
)
from coordinator.table import put
from edge_runtime.rng import derive_seed


def started(rules: Rules, now_s: float) -> State:
    """A new job: gathering for round 1, no device known."""
    return State(rules, Phase.GATHERING, 1, 0, {}, {}, now_s)


def resumed(rules: Rules, journalled: Journalled, now_s: float) -> State:
    """A job out of the journal.

    The deadline of an open round starts anew, since durations are not carried over a restart.
    """
    return State(
        rules,
        journalled.phase,
        journalled.round,
        journalled.attempt,
        fleets.all_lost(journalled.fleet, now_s),
        journalled.cohort,
        now_s,
        journalled.paused,
        journalled.wanted,
    )


def note(state: State, event: Event, now_s: float) -> Move:
    """One of very many events: what it changes by itself; what follows for the round waits for the next step.

    A look at the whole round costs time for every member, so a thousand updates are noted and then looked at once.
    """
    return _TAKE[type(event)](state, event, now_s)


def step(state: State, event: Event, now_s: float) -> Move:
    """One event: the next state, and the commands it calls for, in order."""
    state, commands = note(state, event, now_s)
    while True:
        following, more = _ADVANCE[state.phase](state, now_s)
        commands += more
        if following is state:
            return state, commands
        state = following


def delivered(state: State) -> tuple[str, ...]:
    """The members whose updates are on the disk, in ascending order."""
    return _members(state, Outcome.DELIVERED)


def pending(state: State) -> tuple[str, ...]:
    """The members whose updates are still to come, in ascending order."""
    return _members(state, Outcome.PENDING)


def candidates(state: State) -> tuple[str, ...]:
    """Who counts towards the start of a round: the devices that are ready, and the members that have delivered."""
    return tuple(sorted({*fleets.ready(state.fleet), *delivered(state)}))


def counts_in(state: State, version: int) -> int | Refusal:
    """The round in which an update for a task from this version counts, were it to come now."""
    # An update that is taken after its round was closed would be acknowledged and never count.
    if version == state.round and state.phase in {Phase.GATHERING, Phase.COLLECTING}:
        return state.round
    return Refusal("StaleTask", f"round {version} was closed without this update")


def needed(state: State) -> int:
    """How many candidates the next start of this round waits for."""
    return state.rules.devices if state.round == 1 and state.attempt == 0 else state.rules.min_updates


def _members(state: State, outcome: Outcome) -> tuple[str, ...]:
    return tuple(sorted(name for name, each in state.cohort.items() if each is outcome))


# What an event changes, before the phase looks at it.


def _take_presence(state: State, event: PresenceEvent, now_s: float) -> Move:
    fleet, warnings = take_presence(state.fleet, event, now_s)
    return replace(state, fleet=fleet), warnings


def _take_update(state: State, event: UpdateJournalled, _now_s: float) -> Move:
    cohort = _settled(state, event.device, event.round, Outcome.DELIVERED)
    if cohort is state.cohort:
        return state, ()
    known = event.device in state.fleet
    fleet = fleets.answered(state.fleet, event.device, event.seconds) if known else state.fleet
    return replace(state, cohort=cohort, fleet=fleet), ()


def _take_failure(state: State, event: TaskFailed, _now_s: float) -> Move:
    cohort = _settled(state, event.device, event.round, Outcome.FAILED)
    if cohort is state.cohort:
        return state, ()
    if not event.unfit and state.attempt < PATIENCE:
        return replace(state, cohort=cohort), (
            Warn(f"device {event.device} failed its task of round {event.round}: {event.reason}"),
        )
    fleet = fleets.condemned(state.fleet, event.device, event.reason)
    warning = Warn(f"device {event.device} takes no further part in this job: {event.reason}")
    return replace(state, cohort=cohort, fleet=fleet), (warning,)


def _settled(state: State, device: str, round_number: int, outcome: Outcome) -> Mapping[str, Outcome]:
    """The cohort with a pending member's outcome; anything late, repeated or from elsewhere changes nothing."""
    open_now = state.phase in {Phase.GATHERING, Phase.COLLECTING} and round_number == state.round
    if not open_now or state.cohort.get(device) is not Outcome.PENDING:
        return state.cohort
    return put(state.cohort, device, outcome)


def _take_tick(state: State, _event: Tick | VersionMade, _now_s: float) -> Move:
    return state, ()


def _take_paused(state: State, event: Paused, _now_s: float) -> Move:
    return replace(state, paused=event.paused), ()


def _take_evaluated(state: State, event: Evaluated, now_s: float) -> Move:
    if state.phase is not Phase.JUDGING or event.round != state.round:
        return state, ()
    if (reason := why_done(state.rules, event)) is not None:
        return replace(state, phase=Phase.DONE), (FinishJob(reason),)
    following = replace(state, round=state.round + 1, attempt=0, cohort={}, wanted=None)
    return _phase(following, Phase.GATHERING, now_s), ()


def _phase(state: State, phase: Phase, now_s: float) -> State:
    return replace(state, phase=phase, since_s=now_s)


# What a phase does on its own, after every event. Returns the very same state when there is nothing to do.


def _gather(state: State, now_s: float) -> Move:
    if len(delivered(state)) >= state.rules.min_updates:
        return _close(state, now_s)
    hopeful = {*fleets.fit(state.fleet), *delivered(state)}
    if (hopeless := why_hopeless(state.fleet, hopeful, state.rules.min_updates)) is not None:
        return _phase(state, Phase.FAILED, now_s), (FailJob(hopeless),)
    in_grace = now_s - state.since_s < state.rules.grace_s
    if state.paused:
        return state, ()
    if in_grace and fleets.returning(state.fleet, now_s, state.rules.grace_s):
        return state, ()
    return _start(state, now_s) if len(candidates(state)) >= needed(state) else (state, ())


def _start(state: State, now_s: float) -> Move:
    """The first attempt asks the chosen share; a repeated one asks also everybody else who is there.

    Members that have delivered or are still at it stay as they are: their tasks are the same in every attempt.
    """
    kept = {name: each for name, each in state.cohort.items() if each is not Outcome.FAILED}
    asked = tuple(name for name in fleets.ready(state.fleet) if name not in kept)
    wanted = state.wanted
    if state.attempt == 0:
        wanted, asked = _choose(state, asked)
    attempt = state.attempt + 1
    fleet = fleets.was_asked(state.fleet, asked)
    cohort = kept | dict.fromkeys(asked, Outcome.PENDING)
    begun = replace(state, attempt=attempt, cohort=cohort, fleet=fleet, wanted=wanted)
    tasks = tuple(SendTask(name, state.round, attempt) for name in asked)
    shares = tuple(fleets.work_share(fleet, name) for name in asked) if state.rules.scale_work else ()
    starting = StartRound(state.round, attempt, tuple(sorted(begun.cohort)), asked, wanted, shares)
    return _phase(begun, Phase.COLLECTING, now_s), (starting, *tasks)


def _choose(state: State, names: tuple[str, ...]) -> tuple[int | None, tuple[str, ...]]:
    """With how many updates the round closes early, if it does, and who is asked: more than that by over_select."""
    rules = state.rules
    if rules.schedule.tiers is not None:
        tiers = fleets.tiers_of(state.fleet, names, rules.schedule.tiers, rules.min_updates)
        names = tiers[derive_seed("tier", rules.seed, state.round) % len(tiers)]
    wanted = fleets.share_of(len(names), rules.fraction, rules.min_updates)
    count = min(len(names), math.ceil((1.0 + rules.over_select) * wanted))
    weights = fleets.selection_weights(state.fleet, names) if rules.select == "weighted" else None
    asked = fleets.draw(names, count=count, seed=rules.seed, number=state.round, weights=weights)
    return (wanted if rules.over_select > 0 else None), asked


def _collect(state: State, now_s: float) -> Move:
    rules = state.rules
    late = now_s - state.since_s >= rules.deadline_s
    if state.wanted is not None and len(delivered(state)) >= state.wanted:
        return _close(state, now_s)
    open_tasks = (name for name, each in state.cohort.items() if each is Outcome.PENDING)
    if not late and any(_is_awaited(state, name, now_s) for name in open_tasks):
        return state, ()
    if len(delivered(state)) >= rules.min_updates:
        return _close(state, now_s)
    why = f"at the deadline of {rules.deadline_s:g} s" if late else "and nobody else to wait for"
    message = (
        f"round {state.round}: {len(delivered(state))} of {len(state.cohort)} updates {why}, "
        f"{rules.min_updates} needed; the round is tried again with those who are online and those still at it"
    )
    return _phase(state, Phase.GATHERING, now_s), (Warn(message),)


def _is_awaited(state: State, name: str, now_s: float) -> bool:
    device = state.fleet.get(name)
    return device is not None and fleets.awaited(device, now_s, state.rules.grace_s)


def _close(state: State, now_s: float) -> Move:
    closing = CloseRound(state.round, tuple(sorted(state.cohort)), delivered(state))
    return _phase(state, Phase.JUDGING, now_s), (closing,)


def _stay(state: State, _now_s: float) -> Move:
    return state, ()


_TAKE: Mapping[type[Event], Callable[[State, Any, float], Move]] = {
    DeviceOnline: _take_presence,
    DeviceRemembered: _take_presence,
    DeviceLost: _take_presence,
    DeviceStopped: _take_presence,
    FleetUnknown: _take_presence,
    UpdateJournalled: _take_update,
    TaskFailed: _take_failure,
    Tick: _take_tick,
    VersionMade: _take_tick,
    Paused: _take_paused,
    Evaluated: _take_evaluated,
}

_ADVANCE: Mapping[Phase, Callable[[State, float], Move]] = {
    Phase.GATHERING: _gather,
    Phase.COLLECTING: _collect,
    Phase.JUDGING: _stay,
    Phase.DONE: _stay,
    Phase.FAILED: _stay,
}
