"""Tasks: what a device is asked to do with a version, made for each and written to the journal before it is sent."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from coordinator.jobfile import Job
from coordinator.methods import PhaseSpec
from coordinator.program import Program, StagePlans
from coordinator.store import JournalTask, Store, Version
from coordinator.training_keys import Training
from edge_runtime.codecs import DENSE
from edge_runtime.rng import derive_seed
from edge_runtime.wire.tasks import Cache, Carry, Control, Delta, Phase, Task, format_task


@dataclass(frozen=True)
class Turn:
    """What tells a device's tasks apart.

    Attributes:
        suffix: Of the task's name, after job, version and device: a device repeats its answer, were it a failure, to a
            task that it has answered.
        draw: Its order of examples is drawn from (job seed, draw, device).
    """

    suffix: str
    draw: int


def attempt_turn(number: int, attempt: int) -> Turn:
    """In a synchronous round: every attempt trains on the same batches."""
    return Turn("" if attempt == 1 else f".{attempt}", number)


def serial_turn(asked: int) -> Turn:
    """In an asynchronous job, after so many tasks: a device may have several from one version."""
    return Turn(f".{asked + 1}", asked + 1)


def make_task(  # noqa: PLR0913, PLR0917  what a task is made of
    program: Program,
    version: Version,
    device: str,
    turn: Turn,
    carry: Carry | None = None,
    steps: int | None = None,
) -> Task:
    """A task of one device that starts from `version`.

    Args:
        program: The job's.
        version: To start from.
        device: Who is asked.
        turn: What tells it from the device's other tasks.
        carry: Where the codec carries something over.
        steps: The most that it does in every phase; None for all epochs.
    """
    job, method, number = program.job, program.method, version.version
    stage = program.stage(number).for_device(device)
    return Task(
        task=_task_name(job, number, device, turn),
        job=job.name,
        round=number,
        version=number,
        device=device,
        phases=tuple(_phase(job.training, stage, phase, steps) for phase in method.phases),
        weights=version.sent.sha256,
        blobs={version.sent.sha256: len(version.sent.data)} | {plan.sha256: len(plan.data) for plan in stage.files},
        classes=program.classes,
        seed=_task_seed(job, device, turn),
        upload=replace(program.upload, exact=_exact(program, stage)),
        deadline_s=job.round.deadline_s,
        carry=carry,
        control=Control(job.training.momentum) if method.control else None,
        personal=stage.personal,
        deltas=tuple(Delta(step.base, step.sha256, len(step.data), step.codec) for step in version.sent.steps),
    )


def _exact(program: Program, stage: StagePlans) -> tuple[int, ...]:
    """Where the running statistics stand among the tensors of an update, which a codec is not for."""
    if program.upload.codec == DENSE.stages:
        return ()
    return tuple(place for place, name in enumerate(sorted(stage.trained)) if name in program.statistics)


def same_task(task: Task, program: Program, device: str, turn: Turn, carry: Carry | None) -> Task:
    """The task of another device that runs the same plans for as long; the two share all that they have in common."""
    name, seed = _task_name(program.job, task.version, device, turn), _task_seed(program.job, device, turn)
    return replace(task, task=name, device=device, seed=seed, carry=carry)


def _task_name(job: Job, number: int, device: str, turn: Turn) -> str:
    return f"{job.name}.{number}.{device}{turn.suffix}"


def _task_seed(job: Job, device: str, turn: Turn) -> int:
    return derive_seed("task", job.seed, turn.draw, device)


def steps_of(job: Job, examples: int, share: float) -> int | None:
    """The cap for a device of so many examples that is to do a share of the whole work; None for all of it."""
    return None if share >= 1.0 else max(1, math.ceil(share * _whole_steps(job, examples)))


def share_asked(job: Job, examples: int, task: Task) -> float:
    """The share of the whole work that a task asks of a device of so many examples."""
    steps = task.phases[0].steps
    return 1.0 if steps is None else min(1.0, steps / _whole_steps(job, examples))


def _whole_steps(job: Job, examples: int) -> int:
    return job.training.epochs * math.ceil(examples / job.training.batch)


def _phase(training: Training, stage: StagePlans, phase: PhaseSpec, steps: int | None) -> Phase:
    plans = stage.phases[phase.plan]
    numbers = vars(training) | {"lr": stage.lr}
    kept = plans.prefix is not None and training.cache != "off"
    return Phase(
        plan=plans.training.sha256,
        epochs=training.epochs,
        scalars={scalar: float(numbers[key]) for scalar, key in phase.scalars.items()},
        prefix=None if plans.prefix is None else plans.prefix.sha256,
        cache=Cache(training.cache, training.cache_mb << 20) if kept else None,
        steps=steps,
    )


@dataclass(frozen=True)
class Ask:
    """Who is asked: a device, the examples it announced, and what share of the whole work it is to do."""

    device: str
    examples: int
    turn: Turn
    share: float = 1.0


class TaskWriter:
    """Makes the tasks of a fleet and writes them; devices of equal work share all that their tasks have in common."""

    def __init__(self, program: Program, store: Store) -> None:
        self._program = program
        self._store = store
        self._made: dict[tuple[int, int, int | None], Task] = {}  # version, plans and steps -> a task of them

    def write(
        self, version: Version, attempt: int, asked: Iterable[Ask], wanted: int | None = None
    ) -> dict[str, tuple[Task, bytes]]:
        """Write that the version's round starts (again) with these tasks.

        Args:
            version: That the tasks start from.
            attempt: How often its round was started with this.
            asked: Each device once.
            wanted: With how many updates the round closes early, if it does.

        Returns:
            The tasks with their bytes, by device.
        """
        tasks = {each.device: self._task(version, each) for each in asked}
        written = {device: (task, format_task(task)) for device, task in tasks.items()}
        journalled = tuple(JournalTask(device, task.task, data) for device, (task, data) in written.items())
        self._store.start_round(version.version, attempt, journalled, wanted)
        return written

    def _task(self, version: Version, ask: Ask) -> Task:
        program, number = self._program, version.version
        counted = (self._store.last_counted(ask.device) or ()) if program.carries else ()
        carry = Carry(self._store.run(), *counted) if program.carries else None
        steps = steps_of(program.job, ask.examples, ask.share)
        work = (number, id(program.stage(number).for_device(ask.device)), steps)
        if work not in self._made:
            self._made = {key: task for key, task in self._made.items() if key[0] == number}
            self._made[work] = make_task(program, version, ask.device, ask.turn, carry, steps)
        return same_task(self._made[work], program, ask.device, ask.turn, carry)
