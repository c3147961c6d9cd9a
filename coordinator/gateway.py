"""One running job without sockets: wire session, round machine, journal and folds joined.

The shell (coordinator.server) hands in what the link brought and the time, and publishes what comes back. Two orders
make a crash at any point harmless: the journal is written before anything that follows from it is published, and
folding is left to `work`, which the shell calls once the acknowledgement of the last update is out.

Parts keep a state of their own: coordinator.publishing what is on the broker, acceptance what came of updates, closing
which rounds are folded and judged.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from coordinator import reports
from coordinator import round_records as records
from coordinator.acceptance import Acceptance, Declined
from coordinator.closing import Closing, Parts
from coordinator.evaluate import EvaluationError
from coordinator.event_kinds import JOB_FAILED
from coordinator.fleet import Presence
from coordinator.program import rules_of
from coordinator.publishing import Publisher
from coordinator.results import Diverged, export
from coordinator.schedules import SCHEDULES
from coordinator.store import EXPIRED
from coordinator.tasks import Ask, TaskWriter, attempt_turn, serial_turn
from coordinator.updates import max_update_bytes
from edge_runtime.wire.events import (
    Command,
    DeviceStatus,
    Event,
    GatewaySuperseded,
    Outcome,
    TaskFailed,
    Telemetry,
    UpdateReceived,
    UpdateRefused,
    Warned,
)
from edge_runtime.wire.gateway import GatewaySession
from edge_runtime.wire.tasks import Task, parse_task

EXIT_DONE, EXIT_FAILED = 0, 3

# Failures that say nothing about the device: it is asked again in the next attempt or round.
PASSING_RULES = frozenset({"BlobMissing", "BlobCorrupt", "CacheDamaged", "TaskStopped", "ChecksumMismatch"})


class RunningJob:
    """Joins the wire session with the machine's state; everything durable is in the store.

    `published` has the newest version, `closing` the rounds that are folded and judged; `exit_code` is None while the
    job runs.
    """

    def __init__(self, parts: Parts, site: str, epoch: int, boot: str, now_s: float) -> None:
        self._tell = parts.emit
        self._parts = replace(parts, emit=self.emit)
        program, store = parts.program, parts.store
        cap = max_update_bytes(program.trained)
        self.session = GatewaySession(site, epoch, boot, already_done=store.accepted_digest, max_update_bytes=cap)
        self.published = Publisher(self.session, program, store.latest())
        self._acceptance = Acceptance(program, store, self.session)
        self.closing = Closing(self._parts, self.published, self._acceptance.gathering, now_s)
        self._tasks = TaskWriter(program, store)
        self._starting: dict[str, tuple[Task, bytes]] = {}  # journalled, and sent by the commands that follow
        self._evicted = store.evicted()
        self._links = 0
        self._met = False  # a device since the last tick
        self._superseded = False
        self.exit_code: int | None = None
        self._schedule = SCHEDULES[program.job.schedule.name]
        self._state, wanted = self._schedule.resume(rules_of(program.job), store, now_s)
        self._take_up()
        self._do(wanted, now_s)

    def _take_up(self) -> None:
        """Puts the journal's open tasks to work; the session publishes when it connects."""
        if self._state.phase is records.Phase.COLLECTING:
            self.published.offer(self.published.version)
        for known in self._parts.store.open_tasks():
            task = parse_task(known.data)
            if task.version != self.published.version.version:
                self.published.offer(self._parts.store.version(task.version))
            self.published.send(task, known.data)

    @property
    def round(self) -> int:
        """The round that is gathered for, collected or judged."""
        return int(self._state.round)

    def sample(self) -> dict[str, int]:
        """How things stand, for the event of this name; the shell adds what it knows of link and disk."""
        presences = Counter(device.presence for device in self._state.fleet.values())
        return {
            "round": self._state.round,
            **{f"devices_{each.value}": presences[each] for each in Presence},
            "devices_unfit": sum(device.unfit is not None for device in self._state.fleet.values()),
            "open_uploads": self.session.open_uploads,
            "waiting_uploads": self.session.waiting_uploads,
            "open_bytes": self.session.open_bytes,
        }

    # What the shell calls. Every method returns what is to be published.

    def emit(self, event: Mapping[str, Any]) -> None:
        """Tell an event; inside a batch at its end, so that nothing is told of what was not written after all."""
        self._tell(event)

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Make one transaction of what happens inside; what it tells is told at its end, what it returns sent after."""
        told: list[Mapping[str, Any]] = []
        emit, self._tell = self._tell, told.append
        try:
            with self._parts.store.batch():
                yield
        finally:
            self._tell = emit
        for event in told:
            emit({**event, "commit_s": self._parts.store.last_commit_s} if "commit_s" in event else event)

    def connected(self, now_s: float) -> list[Command]:
        """The link is up: everything the devices need is published again, and what they need no more is cleared."""
        self._links += 1
        self._met |= self._links == 1  # where nobody is on line, that is told as well
        commands = [
            *self._commands(self.session.connected(now_s), now_s),
            *self.published.clear_leftovers(self._parts.store),
            *self._clear_old_tasks(),
        ]
        return commands if self._links == 1 else commands + self._step(records.FleetUnknown(), now_s)

    def disconnected(self, now_s: float) -> list[Command]:
        """The link is down."""
        return self._commands(self.session.disconnected(now_s), now_s)

    def received(self, topic: str, payload: bytes, now_s: float, *, retain: bool) -> list[Command]:
        """A message came; `retain` when the broker had kept it."""
        return self._commands(self.session.received(now_s, topic, payload, retain=retain), now_s)

    def tick(self, now_s: float) -> list[Command]:
        """Time has passed."""
        commands = self._commands(self.session.tick(now_s), now_s) + self._step(records.Tick(), now_s)
        if self._met:
            self._met = False
            self._tell_waiting()
        return commands

    def pause(self, now_s: float, *, paused: bool) -> list[Command]:
        """An operator wants no further work to be handed out, or wants it again; the journal has it already."""
        return self._step(records.Paused(paused), now_s)

    @property
    def at_rest(self) -> bool:
        """Whether nothing is under way elsewhere, so that this may be thrown away and made anew from the journal."""
        return self.closing.beside is None

    @property
    def has_work(self) -> bool:
        """Whether a round waits to be folded, or has been folded or judged."""
        return self.closing.has_work and self.exit_code is None

    def work(self, now_s: float) -> list[Command]:
        """The next step of the round that is being closed: folded, its version written and judged, ended."""
        try:
            commands, news = self.closing.work(now_s)
        except (Diverged, EvaluationError) as error:
            return self._do_fail(records.FailJob(str(error)), now_s)
        return commands if news is None else commands + self._step(news, now_s)

    def stopping(self) -> list[Command]:
        """The coordinator leaves: an unfinished job's tasks stay with the devices, an ended one's are withdrawn.

        A superseded coordinator leaves without a word, for the topics are another's now.
        """
        if self._superseded:
            return []
        withdrawn = self.published.withdraw(self._state.fleet) if self.exit_code is not None else []
        return withdrawn + self.session.stopping()

    def _commands(self, outcomes: list[Outcome], now_s: float) -> list[Command]:
        """What a session gave: commands pass, events are taken."""
        commands: list[Command] = []
        for outcome in outcomes:
            if isinstance(outcome, Command):
                commands.append(outcome)
            elif (report := _TOLD.get(type(outcome))) is not None:
                self._parts.emit(report(outcome))
            else:
                commands += _TAKE[type(outcome)](self, outcome, now_s)
        return commands

    def _clear_old_tasks(self) -> list[Command]:
        """Takes the tasks of everybody who is asked nothing now off the broker, for clear_versions' reasons."""
        return self.published.clear(sorted(self._state.fleet.keys() - set(self._schedule.pending(self._state))))

    # What the wire session tells.

    def _take_status(self, event: DeviceStatus, now_s: float) -> list[Command]:
        evicted = event.device in self._evicted
        if event.state == "online" and not event.live and not evicted:
            return self._note(records.DeviceRemembered(event.device, event.examples), now_s)
        if event.live or not evicted:
            self._parts.emit(reports.device(event, evicted=evicted))
            self._parts.store.see_device(event.device, Presence(event.state), event.examples)
        if evicted:
            return []  # somebody whom an operator took out is written down, and asked nothing
        news: Mapping[str, records.Event] = {
            "online": records.DeviceOnline(event.device, event.examples),
            "lost": records.DeviceLost(event.device),
            "stopped": records.DeviceStopped(event.device),
        }
        self._met = True
        return self._note(news[event.state], now_s)

    def _tell_waiting(self) -> None:
        if self._state.phase is records.Phase.GATHERING:
            there, needed = len(self._schedule.candidates(self._state)), self._schedule.needed(self._state)
            self._parts.emit({"event": "waiting", "round": self._state.round, "devices": there, "needed": needed})

    def _take_update(self, event: UpdateReceived, now_s: float) -> list[Command]:
        counts_in = partial(self._schedule.counts_in, self._state)
        known = self._state.fleet.get(event.device)
        taken = self._acceptance.take(event, counts_in, 0 if known is None else known.examples, now_s)
        if isinstance(taken, Declined):
            return self._decline(event, taken, now_s)
        self._parts.emit(reports.accepted(taken.update, self._parts.store.last_commit_s))
        accepted = self.session.accept(event.device, event.uid)
        return accepted + self._note(records.UpdateJournalled(event.device, taken.update.round, taken.seconds), now_s)

    def _decline(self, event: UpdateReceived, why: Declined, now_s: float) -> list[Command]:
        self._parts.emit(reports.refused(UpdateRefused(event.device, why.rule, why.message, None)))
        refused = self.session.refuse(event.device, event.uid, why.rule, why.message)
        if why.failed is not None:
            reason = f"its update was refused: {why.rule}: {why.message}"
            return refused + self._fail(why.failed, reason, now_s, unfit=True)
        if why.expired is not None:
            self._parts.store.fail_task(why.expired.version, event.device, EXPIRED, unfit=False)
            cleared = self.published.clear([event.device])
            return refused + cleared + self._step(records.TaskExpired(event.device), now_s)
        return refused

    def _take_failure(self, event: TaskFailed, now_s: float) -> list[Command]:
        task = self._acceptance.open_task(event.device, event.task)
        if task is None or self._is_closed(task):
            return []
        self._parts.emit(reports.task_failed(event, self._state.round))
        return self._fail(task, f"{event.rule}: {event.message}", now_s, unfit=event.rule not in PASSING_RULES)

    def _is_closed(self, task: Task) -> bool:
        """Whether nothing that comes for this task can make a difference, however it ends."""
        counts_in = self._schedule.counts_in(self._state, task.version)
        return isinstance(counts_in, records.Refusal) and counts_in.rule == "StaleTask"

    def _fail(self, task: Task, reason: str, now_s: float, *, unfit: bool) -> list[Command]:
        self._parts.store.fail_task(task.version, task.device, reason, unfit=unfit)
        cleared = self.published.clear([task.device])
        return cleared + self._step(records.TaskFailed(task.device, task.version, reason, unfit), now_s)

    def _take_superseded(self, event: GatewaySuperseded, _now_s: float) -> list[Command]:
        self._parts.emit(reports.superseded(event))
        self._superseded = True
        self.exit_code = EXIT_FAILED
        return []

    # What the round machine asks for.

    def _step(self, event: records.Event, now_s: float) -> list[Command]:
        """One event through the machine; what the event itself changed is journalled before."""
        self._state, wanted = self._schedule.step(self._state, event, now_s)
        return self._do(wanted, now_s)

    def _note(self, event: records.Event, now_s: float) -> list[Command]:
        """One of many events; a tick follows them."""
        self._state, wanted = self._schedule.note(self._state, event, now_s)
        return self._do(wanted, now_s)

    def _do(self, wanted: Iterable[records.Command], now_s: float) -> list[Command]:
        commands: list[Command] = []
        for command in wanted:
            commands += _DO[type(command)](self, command, now_s)
        return commands

    def _do_start(self, command: records.StartRound, now_s: float) -> list[Command]:
        # Not the whole cohort: who is still at it answers the task of an earlier attempt, by its name.
        turn = attempt_turn(command.round, command.attempt)
        shares = command.shares or (1.0,) * len(command.asked)
        asked = (
            Ask(device, self._state.fleet[device].examples, turn, share)
            for device, share in zip(command.asked, shares, strict=True)
        )
        self._starting = self._tasks.write(self.published.version, command.attempt, asked, command.wanted)
        if command.attempt == 1:
            self.closing.round_begins(now_s)
        told = {"round": command.round, "attempt": command.attempt, "cohort": len(command.cohort)}
        self._parts.emit({"event": "round_started", **told})
        return self.published.offer(self.published.version)

    def _do_send(self, command: records.SendTask, now_s: float) -> list[Command]:
        self._acceptance.asked(command.device, now_s)
        return self.published.send(*self._starting.pop(command.device))

    def _do_ask(self, command: records.AskDevices, now_s: float) -> list[Command]:
        fleet = self._state.fleet
        asked = (Ask(device, fleet[device].examples, serial_turn(before)) for device, before in command.turns)
        tasks = self._tasks.write(self.published.version, 1, asked)
        self._parts.emit({"event": "asked", "round": command.round, "devices": len(tasks)})
        commands = self.published.offer(self.published.version)
        for device, task in tasks.items():
            self._acceptance.asked(device, now_s)
            commands += self.published.send(*task)
        return commands

    def _do_withdraw(self, command: records.WithdrawTask, _now_s: float) -> list[Command]:
        return self.published.clear([command.device])

    def _do_close(self, command: records.CloseRound, _now_s: float) -> list[Command]:
        self.closing.add(command)
        return []

    def _do_finish(self, command: records.FinishJob, _now_s: float) -> list[Command]:
        done = export(self._parts.store)
        self._parts.store.finish(command.reason)
        self._parts.emit(done)
        self.exit_code = EXIT_DONE
        return []

    def _do_fail(self, command: records.FailJob, _now_s: float) -> list[Command]:
        self._parts.store.forgive()
        self._parts.store.fail(command.reason)
        self._parts.emit({"event": "error", "message": f"the job cannot go on: {command.reason}", "rule": JOB_FAILED})
        self.exit_code = EXIT_FAILED
        return []

    def _do_warn(self, command: records.Warn, _now_s: float) -> list[Command]:
        self._parts.emit({"event": "warning", "message": command.message})
        return []


# What is told, and changes nothing.
_TOLD: Mapping[type[Event], Callable[[Any], reports.Report]] = {
    UpdateRefused: reports.refused,
    Telemetry: reports.telemetry,
    Warned: reports.warned,
}

_TAKE: Mapping[type[Event], Callable[[RunningJob, Any, float], list[Command]]] = {
    DeviceStatus: RunningJob._take_status,  # noqa: SLF001  the table belongs to the class
    UpdateReceived: RunningJob._take_update,  # noqa: SLF001
    TaskFailed: RunningJob._take_failure,  # noqa: SLF001
    GatewaySuperseded: RunningJob._take_superseded,  # noqa: SLF001
}

_DO: Mapping[type[records.Command], Callable[[RunningJob, Any, float], list[Command]]] = {
    records.StartRound: RunningJob._do_start,  # noqa: SLF001
    records.SendTask: RunningJob._do_send,  # noqa: SLF001
    records.AskDevices: RunningJob._do_ask,  # noqa: SLF001
    records.WithdrawTask: RunningJob._do_withdraw,  # noqa: SLF001
    records.CloseRound: RunningJob._do_close,  # noqa: SLF001
    records.FinishJob: RunningJob._do_finish,  # noqa: SLF001
    records.FailJob: RunningJob._do_fail,  # noqa: SLF001
    records.Warn: RunningJob._do_warn,  # noqa: SLF001
}
