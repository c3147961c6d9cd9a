"""One running job without sockets: wire session, round machine, journal and folds joined.

The shell (coordinator.server) hands in what the link brought and the time, and publishes what comes back. Two orders
make a crash at any point harmless: the journal is written before anything that follows from it is published, and
folding is left to `work`, which the shell calls once the acknowledgement of the last update is out. Folding and judging
may take longer than the broker's patience with a silent client, so they are done beside this and `work` takes them up.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coordinator import round_records as records
from coordinator.blob_use import BlobUse
from coordinator.evaluate import Evaluation, EvaluationError
from coordinator.event_kinds import JOB_FAILED
from coordinator.events import Emit
from coordinator.fleet import Presence
from coordinator.gathering import Gathered, Gathering
from coordinator.leftovers import clear_stage, clear_versions
from coordinator.program import (
    Program,
    Turn,
    attempt_turn,
    make_task,
    rules_of,
    same_task,
    serial_turn,
    share_asked,
    steps_of,
)
from coordinator.results import Diverged, export
from coordinator.schedules import SCHEDULES
from coordinator.store import EXPIRED, JournalTask, JournalUpdate, RoundFigures, Store, Version
from coordinator.updates import FleetFull, check_update, max_update_bytes
from edge_runtime.errors import RemoteError
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
from edge_runtime.wire.tasks import Carry, Task, format_task, parse_task

EXIT_DONE, EXIT_FAILED = 0, 3

# Failures that say nothing about the device: it is asked again in the next attempt or round.
PASSING_RULES = frozenset({"BlobMissing", "BlobCorrupt", "CacheDamaged", "TaskStopped", "ChecksumMismatch"})


@dataclass(frozen=True)
class Parts:
    """What a running job is made of.

    `fold` starts the fold of the round that began from a version, of which some may be gathered, `judge` the
    evaluation of one; neither waits.
    """

    program: Program
    fold: Callable[[Version, Gathered | None], Future[Version]]
    judge: Callable[[Version], Future[Evaluation]]
    store: Store
    directory: Path
    emit: Emit


def superseded(event: GatewaySuperseded) -> dict[str, object]:
    """The error event of a coordinator that gives way."""
    message = (
        f"another coordinator, with epoch {event.epoch}, was on this site before; this one stops. Nothing is lost: "
        "give every job a --site of its own, or start the same command again when the other has ended"
    )
    return {"event": "error", "message": message, "rule": "GatewaySuperseded"}


def refused(event: UpdateRefused) -> dict[str, object]:
    """The event of an update that was not taken."""
    retry = {} if event.retry_s is None else {"retry_s": event.retry_s}
    return {"event": "refused", "device": event.device, "rule": event.rule, "message": event.message, **retry}


class RunningJob:
    """Holds the wire session, the machine's state and the newest version; everything durable is in the store.

    `exit_code` is None while the job runs; `folding` and `judging` are under way elsewhere, at most one of them.
    """

    def __init__(self, parts: Parts, site: str, epoch: int, boot: str, now_s: float) -> None:
        self._tell = parts.emit
        self._parts = replace(parts, emit=self.emit)
        cap = max_update_bytes(parts.program.trained)
        self.session = GatewaySession(site, epoch, boot, already_done=parts.store.accepted_digest, max_update_bytes=cap)
        self._version = parts.store.latest()
        self._schedule = SCHEDULES[parts.program.job.schedule.name]
        self._blobs = BlobUse()
        self._gathering = Gathering(parts.program)
        self._sent_s: dict[str, float] = {}
        self._made_for: dict[tuple[int, int, int | None], Task] = {}  # version, plans and steps -> a task of them
        self._starting: dict[str, tuple[Task, bytes]] = {}  # journalled, and sent by the commands that follow
        self._evicted = parts.store.evicted()
        self._to_close: list[records.CloseRound] = []
        self._closing = records.CloseRound(0)
        self._closed_s = now_s
        self.folding: Future[Version] | None = None
        self.judging: Future[Evaluation] | None = None
        self._round_began_s = now_s
        self._beside_began_s = now_s
        self._beside_s = 0.0
        self._links = 0
        self._met = False  # a device since the last tick
        self._superseded = False
        self.exit_code: int | None = None
        self._state, wanted = self._schedule.resume(rules_of(parts.program.job), parts.store, now_s)
        self._take_up()
        self._do(wanted, now_s)

    def _take_up(self) -> None:
        """Puts the journal's open tasks to work; the session publishes when it connects."""
        if self._state.phase is records.Phase.COLLECTING:
            self._publish_blobs(self._version)
        for known in self._parts.store.open_tasks():
            task = parse_task(known.data)
            if task.version != self._version.version:
                self._publish_blobs(self._parts.store.version(task.version))
            self._send_task(task, known.data)

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
        commands = [
            *self._commands(self.session.connected(now_s), now_s),
            *clear_versions(self._parts.store, self.session.site, keep={*self._version.sent.blobs, *self._blobs.used}),
            *clear_stage(self._parts.program, self.session.site, self._version.version, keep=self._blobs.used),
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
        return self.beside is None

    @property
    def has_work(self) -> bool:
        """Whether a round waits to be folded, or has been folded or judged."""
        waits = self.beside.done() if self.beside is not None else bool(self._to_close)
        return waits and self.exit_code is None

    @property
    def beside(self) -> Future[Version] | Future[Evaluation] | None:
        """What is under way elsewhere; `work` takes it up when it is done."""
        return self.folding or self.judging

    def work(self, now_s: float) -> list[Command]:
        """The next step of the round that is being closed: folded, its version written and judged, ended."""
        if self.judging is not None:
            judging, self.judging = self.judging, None
            self._beside_s = now_s - self._beside_began_s
            return self._end_round(judging, now_s)
        if self.folding is not None:
            folding, self.folding = self.folding, None
            self._beside_s = now_s - self._beside_began_s
            try:
                made = folding.result()
            except Diverged as error:
                return self._do_fail(records.FailJob(str(error)), now_s)
            commands = self._take_version(made)
        else:
            commands = []
            self._closing, self._closed_s = self._to_close.pop(0), now_s
            self._beside_began_s = now_s
            if self._version.version == self._closing.round:
                self.folding = self._parts.fold(self._version, self._gathering.take(self._version.version))
                return commands
        if self._version.version == self._closing.round + 1:
            commands += self._step(records.VersionMade(self._version.version), now_s)
        if not self._closing.judged:
            return commands
        self._beside_began_s = now_s
        self.judging = self._parts.judge(self._version)
        return commands

    def stopping(self) -> list[Command]:
        """The coordinator leaves: an unfinished job's tasks stay with the devices, an ended one's are withdrawn.

        A superseded coordinator leaves without a word, for the topics are another's now.
        """
        if self._superseded:
            return []
        withdrawn = self._withdraw() if self.exit_code is not None else []
        return withdrawn + self.session.stopping()

    def _commands(self, outcomes: list[Outcome], now_s: float) -> list[Command]:
        """What a session gave: commands pass, events are taken."""
        commands: list[Command] = []
        for outcome in outcomes:
            if isinstance(outcome, Command):
                commands.append(outcome)
            else:
                commands += _TAKE[type(outcome)](self, outcome, now_s)
        return commands

    def _clear_old_tasks(self) -> list[Command]:
        """Takes the tasks of everybody who is asked nothing now off the broker, for clear_versions' reasons."""
        idle = sorted(self._state.fleet.keys() - set(self._schedule.pending(self._state)))
        return [command for device in idle for command in self._clear_task(device)]

    # What the wire session tells.

    def _take_status(self, event: DeviceStatus, now_s: float) -> list[Command]:
        if event.device in self._evicted:
            return self._take_evicted(event)
        if event.state == "online" and not event.live:
            return self._note(records.DeviceRemembered(event.device, event.examples), now_s)
        self._parts.emit({"event": "device", "device": event.device, "state": event.state, "examples": event.examples})
        self._parts.store.see_device(event.device, Presence(event.state), event.examples)
        news: Mapping[str, records.Event] = {
            "online": records.DeviceOnline(event.device, event.examples),
            "lost": records.DeviceLost(event.device),
            "stopped": records.DeviceStopped(event.device),
        }
        self._met = True
        return self._note(news[event.state], now_s)

    def _take_evicted(self, event: DeviceStatus) -> list[Command]:
        """Somebody whom an operator took out is written down, and asked nothing."""
        if event.live:
            news = {"device": event.device, "state": event.state, "examples": event.examples, "evicted": True}
            self._parts.emit({"event": "device", **news})
            self._parts.store.see_device(event.device, Presence(event.state), event.examples)
        return []

    def _tell_waiting(self) -> None:
        if self._state.phase is records.Phase.GATHERING:
            there, needed = len(self._schedule.candidates(self._state)), self._schedule.needed(self._state)
            self._parts.emit({"event": "waiting", "round": self._state.round, "devices": there, "needed": needed})

    def _take_update(self, event: UpdateReceived, now_s: float) -> list[Command]:
        task = self._open_task(event.device, event.task)
        if task is None:
            return self._refuse_unasked(event, now_s)
        number = self._schedule.counts_in(self._state, task.version)
        if isinstance(number, records.Refusal):
            return self._refuse_late(event, task, number, now_s)
        try:
            self._check_member(event.device)
            announced = self._state.fleet[event.device].examples
            layout = self._parts.program.stage(task.version).for_device(event.device).layout
            claims, coded = check_update(event.data, task, layout, announced)
        except RemoteError as error:
            return self._refuse(event, task, error.rule, str(error), now_s)
        key = (number, event.device, task.task, task.version)
        update = JournalUpdate(*key, event.uid, event.sha256, claims.examples, claims.loss, event.data)
        seconds = self._seconds_for_all(task, announced, now_s)
        if self._parts.store.add_update(update, seconds):
            self._gathering.add(update, claims, coded)
        self._parts.emit(
            {
                "event": "update",
                "device": event.device,
                "task": task.task,
                "round": number,
                "staleness": number - task.version,
                "examples": claims.examples,
                "loss": claims.loss,
                "bytes": len(event.data),
                "commit_s": self._parts.store.last_commit_s,
            }
        )
        accepted = self.session.accept(event.device, event.uid)
        return accepted + self._note(records.UpdateJournalled(event.device, number, seconds), now_s)

    def _check_member(self, device: str) -> None:
        members = self._parts.program.method.members
        if members is not None and self._parts.store.is_outsider(device, members):
            raise FleetFull(f"{members} other devices have taken part already, all that [method] devices allows")

    def _seconds_for_all(self, task: Task, examples: int, now_s: float) -> float | None:
        """What the device would have taken for the whole work; None for a task that an earlier process has sent."""
        sent_s = self._sent_s.pop(task.device, None)
        share = share_asked(self._parts.program.job, examples, task)
        return None if sent_s is None else (now_s - sent_s) / share

    def _open_task(self, device: str, name: str) -> Task | None:
        """The device's task of this name, unless it is done or failed."""
        found = self._parts.store.open_task(device, name)
        if found is None:
            return None
        sent = self.session.task(device)
        return sent if sent is not None and sent.task == name else parse_task(found.data)

    def _refuse_unasked(self, event: UpdateReceived, now_s: float) -> list[Command]:
        asynchronous = self._parts.program.job.schedule.asynchronous
        stale = asynchronous and self._parts.store.expired(event.device, event.task)
        rule = "StaleUpdate" if stale else "StaleTask"
        return self._say_no(event, rule, f"task {event.task} is not open for {event.device} any more", now_s)

    def _refuse_late(self, event: UpdateReceived, task: Task, why: records.Refusal, now_s: float) -> list[Command]:
        """It cannot count, and that is not the device's fault; where it never could, the task ends with it."""
        refused = self._say_no(event, why.rule, why.message, now_s)
        if why.rule != "StaleUpdate":
            return refused
        self._parts.store.fail_task(task.version, event.device, EXPIRED, unfit=False)
        cleared = self._clear_task(event.device)
        return refused + cleared + self._step(records.TaskExpired(event.device), now_s)

    def _refuse(self, event: UpdateReceived, task: Task, rule: str, message: str, now_s: float) -> list[Command]:
        refused = self._say_no(event, rule, message, now_s)
        return refused + self._fail(task, f"its update was refused: {rule}: {message}", now_s, unfit=True)

    def _say_no(self, event: UpdateReceived, rule: str, message: str, now_s: float) -> list[Command]:
        self._take_refused(UpdateRefused(event.device, rule, message, None), now_s)
        return self.session.refuse(event.device, event.uid, rule, message)

    def _take_failure(self, event: TaskFailed, now_s: float) -> list[Command]:
        task = self._open_task(event.device, event.task)
        if task is None or self._is_closed(task):
            return []
        told = {"device": event.device, "round": self._state.round, "rule": event.rule, "message": event.message}
        self._parts.emit({"event": "task_failed", **told})
        reason = f"{event.rule}: {event.message}"
        return self._fail(task, reason, now_s, unfit=event.rule not in PASSING_RULES)

    def _is_closed(self, task: Task) -> bool:
        """Whether nothing that comes for this task can make a difference, however it ends."""
        counts_in = self._schedule.counts_in(self._state, task.version)
        return isinstance(counts_in, records.Refusal) and counts_in.rule == "StaleTask"

    def _fail(self, task: Task, reason: str, now_s: float, *, unfit: bool) -> list[Command]:
        self._parts.store.fail_task(task.version, task.device, reason, unfit=unfit)
        cleared = self._clear_task(task.device)
        return cleared + self._step(records.TaskFailed(task.device, task.version, reason, unfit), now_s)

    def _take_refused(self, event: UpdateRefused, _now_s: float) -> list[Command]:
        self._parts.emit(refused(event))
        return []

    def _take_telemetry(self, event: Telemetry, _now_s: float) -> list[Command]:
        self._parts.emit({**event.fields, "event": "telemetry", "device": event.device})
        return []

    def _take_warning(self, event: Warned, _now_s: float) -> list[Command]:
        levels = event.source.split("/")
        names = {"device": levels[4]} if len(levels) > 4 and levels[3] == "d" else {}
        self._warn(f"{event.source}: {event.rule}: {event.message}", rule=event.rule, **names)
        return []

    def _take_superseded(self, event: GatewaySuperseded, _now_s: float) -> list[Command]:
        self._parts.emit(superseded(event))
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
        tasks = [self._task(device, turn, share) for device, share in zip(command.asked, shares, strict=True)]
        self._starting = self._journal_tasks(command.round, command.attempt, tasks, command.wanted)
        self._round_began_s = now_s if command.attempt == 1 else self._round_began_s
        self._parts.emit(
            {
                "event": "round_started",
                "round": command.round,
                "attempt": command.attempt,
                "cohort": len(command.cohort),
            }
        )
        return self._publish_blobs(self._version)

    def _do_send(self, command: records.SendTask, now_s: float) -> list[Command]:
        self._sent_s[command.device] = now_s
        return self._send_task(*self._starting.pop(command.device))

    def _do_ask(self, command: records.AskDevices, now_s: float) -> list[Command]:
        tasks = self._journal_tasks(
            command.round, 1, [self._task(device, serial_turn(asked)) for device, asked in command.turns]
        )
        self._parts.emit({"event": "asked", "round": command.round, "devices": len(tasks)})
        commands = self._publish_blobs(self._version)
        for device, task in tasks.items():
            self._sent_s[device] = now_s
            commands += self._send_task(*task)
        return commands

    def _do_withdraw(self, command: records.WithdrawTask, _now_s: float) -> list[Command]:
        self._sent_s.pop(command.device, None)
        return self._clear_task(command.device)

    def _journal_tasks(
        self, number: int, attempt: int, tasks: list[Task], wanted: int | None = None
    ) -> dict[str, tuple[Task, bytes]]:
        """Write the tasks; each with its bytes, by device."""
        written = [JournalTask(task.device, task.task, format_task(task)) for task in tasks]
        self._parts.store.start_round(number, attempt, tuple(written), wanted)
        return {task.device: (task, journalled.data) for task, journalled in zip(tasks, written, strict=True)}

    def _task(self, device: str, turn: Turn, share: float = 1.0) -> Task:
        """A device's next task, for a share of the whole work."""
        program, store = self._parts.program, self._parts.store
        carry = Carry(store.run(), store.last_counted(device)) if program.carries else None
        steps = steps_of(program.job, self._state.fleet[device].examples, share)
        work = (self._version.version, id(program.stage(self._version.version).for_device(device)), steps)
        if work not in self._made_for:
            self._made_for = {key: task for key, task in self._made_for.items() if key[0] == self._version.version}
            self._made_for[work] = make_task(program, self._version, device, turn, carry, steps)
        return same_task(self._made_for[work], program, device, turn, carry)

    def _send_task(self, task: Task, payload: bytes) -> list[Command]:
        """Publishes a task whose blobs are published, and takes those of the device's last one off."""
        sent = self.session.send_task(task.device, task, payload=payload)
        return sent + self._drop_blobs(
            self._blobs.take(task.device, {*task.blobs, *(step.blob for step in task.deltas)})
        )

    def _clear_task(self, device: str) -> list[Command]:
        cleared = self.session.clear_task(device)
        return cleared + self._drop_blobs(self._blobs.release(device))

    def _drop_blobs(self, unused: set[str]) -> list[Command]:
        """Takes blobs off the broker that no open task needs, but for what the next tasks will."""
        if not unused:
            return []
        kept = {*self._version.sent.blobs, *self._plans(self._version.version), *self._blobs.used}
        return [command for sha256 in sorted(unused - kept) for command in self.session.drop_blob(sha256)]

    def _do_close(self, command: records.CloseRound, _now_s: float) -> list[Command]:
        self._to_close.append(command)
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
        self._warn(command.message)
        return []

    # Rounds.

    def _end_round(self, judging: Future[Evaluation], now_s: float) -> list[Command]:
        """Writes and tells what the evaluation said, and lets the machine go on."""
        number = self._closing.round
        try:
            judged = judging.result()
        except EvaluationError as error:
            return self._do_fail(records.FailJob(str(error)), now_s)
        self._parts.store.judge_round(number, judged.accuracy, judged.loss)
        figures = self._parts.store.figures(number)
        self._parts.emit(
            {
                "event": "round_done",
                "round": number,
                "accuracy": judged.accuracy,
                "loss": judged.loss,
                "devices": figures.devices,
                "cohort": figures.cohort,
                "bytes_up": figures.bytes_up,
                "bytes_down": figures.bytes_down,
                "seconds": figures.seconds,
                "judge_s": self._beside_s,
            }
        )
        return self._step(records.Evaluated(number, judged.accuracy), now_s)

    def _take_version(self, made: Version) -> list[Command]:
        """Writes the version that a round made, then takes the round off the broker."""
        old, command = self._version, self._closing
        figures = self._figures(command.round)
        most = self._parts.program.job.schedule.max_staleness
        self._parts.store.fold_round(command.round, made, figures, most)
        self._version, self._round_began_s = made, self._closed_s
        told = {"round": command.round, "version": made.version, "fold_s": self._beside_s}
        self._parts.emit({"event": "version", **told, "commit_s": self._parts.store.last_commit_s})
        commands: list[Command] = []
        for device in command.cohort:
            commands += self._clear_task(device)
        return commands + self._drop_blobs({*old.sent.blobs, *self._plans(command.round)})

    def _figures(self, number: int) -> RoundFigures:
        program, store = self._parts.program, self._parts.store
        asked, stage = store.asked(number), program.stage(number)
        plans = [sum(len(plan.data) for plan in stage.for_device(device).files) for device in asked]
        first = number - 1 in {stage.last_round for stage in program.stages}
        # A stage's plans are new to everybody in its first round.
        newcomers = len(plans) if first else store.newcomers(number)
        held = store.held(number)
        down = sum(self._version.sent.bytes_from(held.get(device)) for device in asked)
        return RoundFigures(
            devices=len(store.staleness(number)),
            cohort=len(asked),
            bytes_up=store.bytes_up(number),
            bytes_down=down + newcomers * sum(plans) // max(1, len(plans)),
            seconds=self._closed_s - self._round_began_s,
        )

    def _publish_blobs(self, version: Version) -> list[Command]:
        """Publishes what is sent of a version, and the plans that run on it."""
        blobs = self._plans(version.version) | version.sent.blobs
        return [command for sha256, data in blobs.items() for command in self.session.publish_blob(sha256, data)]

    def _plans(self, number: int) -> dict[str, bytes]:
        """The plans of a round, by SHA-256."""
        return {plan.sha256: plan.data for plan in self._parts.program.stage(number).files}

    def _withdraw(self) -> list[Command]:
        plans = (plan.sha256 for plan in self._parts.program.plans.values())
        blobs = sorted({*plans, *self._version.sent.blobs, *self._blobs.used})
        return [
            *(command for device in sorted(self._state.fleet) for command in self.session.clear_task(device)),
            *(command for sha256 in blobs for command in self.session.drop_blob(sha256)),
        ]

    def _warn(self, message: str, **names: str) -> None:
        self._parts.emit({"event": "warning", "message": message, **names})


_TAKE: Mapping[type[Event], Callable[[RunningJob, Any, float], list[Command]]] = {
    DeviceStatus: RunningJob._take_status,  # noqa: SLF001  the table belongs to the class
    UpdateReceived: RunningJob._take_update,  # noqa: SLF001
    UpdateRefused: RunningJob._take_refused,  # noqa: SLF001
    TaskFailed: RunningJob._take_failure,  # noqa: SLF001
    Telemetry: RunningJob._take_telemetry,  # noqa: SLF001
    Warned: RunningJob._take_warning,  # noqa: SLF001
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
