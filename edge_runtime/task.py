"""Run a task: its phases in order over the local data, then what is to be sent back."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.codecs import LARGEST, find_codec, with_exact
from edge_runtime.control import JOINED, changes, corrections, path_length
from edge_runtime.data import Dataset, batch_indices, fill_examples, fill_labels
from edge_runtime.engine import Engine, EngineMemoryError
from edge_runtime.errors import EdgeError
from edge_runtime.feature_file import drop_others
from edge_runtime.features import Features, Place, plan_budget
from edge_runtime.plan import (
    ANCHOR,
    AVERAGE,
    CONTROL,
    ROLE_BATCH,
    ROLE_FROZEN,
    ROLE_SCALAR,
    ROLE_TRAINED,
    SEED,
    Plan,
    with_averages,
)
from edge_runtime.rng import derive_seed
from edge_runtime.slots import Slots, encode_carried, kept_answer, own_controls, own_tensors, readdressed
from edge_runtime.task_checks import EXAMPLES, LABELS, WeightMismatch, check_labels, check_phase
from edge_runtime.tensors import decode_tensors
from edge_runtime.wire.tasks import Phase, Task

_LOSS = "loss"


class PlanMissing(EdgeError):
    """A phase names a plan that was not handed over."""


class NonFiniteUpdate(EdgeError):
    """Training gave NaN or infinity."""


class SlotsMissing(EdgeError):
    """The codec carries something over, and there is nowhere to keep it."""


class TaskStopped(EdgeError):
    """The caller asked to stop between two steps."""


@dataclass(frozen=True)
class Update:
    """What a task gave.

    Attributes:
        data: The bytes to upload.
        sha256: Their name.
        examples: Size of the local data set.
        loss: Mean over all steps.
        steps: Training steps done.
    """

    data: bytes
    sha256: str
    examples: int
    loss: float
    steps: int


def run_task(  # noqa: PLR0913 the one seam between a task and what it runs on
    task: Task,
    plans: Mapping[str, Plan],
    weights: Mapping[str, NDArray[Any]],
    dataset: Dataset,
    *,
    threads: int = 1,
    memory_limit_bytes: int | None = None,
    place: Place | None = None,
    slots: Slots | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    warn: Callable[[str], None] = lambda _: None,
) -> Update:
    """Run the phases in order and encode trained minus received; of a tensor whose moving average was trained, that.

    Equal arguments, slots among them, give equal bytes; a task whose update is in the slots is answered with it.

    Args:
        task: What to do.
        plans: {SHA-256: plan}, at least those the phases name.
        weights: {name: float32} to start from; not modified. A personal tensor starts from the device's own.
        dataset: The local examples.
        threads: Of the engine.
        memory_limit_bytes: Engines and features in memory that need more are refused.
        place: Where features may be kept on disk, and how many; without it they are kept in memory or not at all.
        slots: Where a codec that carries something over keeps it, and personal tensors are; such a task needs them.
        should_stop: Asked before every step.
        warn: Told what costs time but not the task.

    Returns:
        The update.

    Raises:
        NoExamples, LabelOutOfRange, ShapeMismatch: The local data do not fit the task.
        PlanMissing, WeightMismatch, ScalarMismatch, BadBatchShape, BadPrefix, BadCodec, SlotsMissing: The task's parts
            do not fit together.
        CacheDamaged: Kept features cannot be read any more.
        NonFiniteUpdate: Training diverged; names the step or the tensor.
        TaskStopped: should_stop said so.
    """
    codec = find_codec(task.upload.codec)
    check_labels(dataset, task.classes)
    keeps = bool(codec.carries or task.control or task.personal)
    if keeps and (slots is None or task.carry is None):
        carried = codec.carries or ("control variates" if task.control else "personal tensors")
        raise SlotsMissing(
            f"the task, with codec {list(codec.stages)}, carries {carried} over: it needs `carry`, and slots"
        )
    answered = _answered(task, slots, len(dataset), warn)
    if answered is not None:
        return answered
    weights = {**weights, **_own_tensors(task, slots)}
    trained: dict[str, NDArray[np.float32]] = {}
    losses: list[float] = []
    epoch = 0
    if place is not None and all(phase.prefix is None for phase in task.phases):
        drop_others(place.directory, key="")
    board = _Board(dataset, threads, memory_limit_bytes, place, warn, _stopper(should_stop, losses))
    own = _own_controls(task, slots, warn)
    for phase in task.phases:
        given = {**{ANCHOR + name: array for name, array in weights.items()}, **weights, **trained}
        epochs = range(epoch, epoch + phase.epochs)
        ran = _plans_of(phase, plans)
        if own is not None:
            given |= corrections(ran[0].named(ROLE_FROZEN), weights, own)
        trained |= _run_phase(
            phase, ran, with_averages(given, ran[0].named(ROLE_TRAINED)), board, task.seed, epochs, losses
        )
        epoch += phase.epochs
    trained = _averaged(trained)
    personal = _fitting({name: _taken(trained, name) for name in task.personal}, 1)
    delta = _fitting({name: _subtract(trained.pop(name), weights[name]) for name in sorted(trained)}, len(dataset))
    metadata = _metadata(task, len(dataset), losses)
    if task.control is not None and own is not None:
        controls = [name for name in plans[task.phases[0].plan].named(ROLE_FROZEN) if name.startswith(CONTROL)]
        walked = task.phases[0].scalars["lr"] * path_length(len(losses), task.control.momentum)
        delta |= _fitting(changes(controls, weights, own, delta, walked), len(dataset))
        joined = sorted(name for name in controls if name.removeprefix(CONTROL) not in own)
        metadata |= {JOINED: json.dumps(joined)} if joined else {}
    codec = with_exact(codec, delta, task.upload.exact)
    if slots is None or not keeps:
        data = codec.encode(delta, metadata, {})
    else:
        data, warning = encode_carried(slots, codec, task, delta, metadata, personal)
        if warning:
            warn(warning)
    return Update(data, hashlib.sha256(data).hexdigest(), len(dataset), float(np.mean(losses)), len(losses))


def _own_tensors(task: Task, slots: Slots | None) -> Mapping[str, NDArray[np.float32]]:
    """What this device has of the task's personal tensors; of the others what it was sent is the start."""
    if not task.personal or task.carry is None or slots is None:
        return {}
    return {name: array for name, array in own_tensors(slots, task.carry).items() if name in task.personal}


def _taken(trained: dict[str, NDArray[np.float32]], name: str) -> NDArray[np.float32]:
    if name not in trained:
        raise WeightMismatch(f"{name!r} is to be personal, but no phase trains it")
    return trained.pop(name)


def _own_controls(
    task: Task, slots: Slots | None, warn: Callable[[str], None]
) -> Mapping[str, NDArray[np.float32]] | None:
    """This device's control variates, if the task has any."""
    if task.control is None or task.carry is None or slots is None:
        return None
    own, warning = own_controls(slots, task.carry, find_codec(task.upload.codec))
    if warning:
        warn(warning)
    return own


def _answered(task: Task, slots: Slots | None, examples: int, warn: Callable[[str], None]) -> Update | None:
    """The update of this very task or its work, if the slots have it: it did not arrive, or its process ended before.

    One of another number of examples is none: the data have changed since, and what it said goes back into the slots.
    """
    if slots is None:
        return None
    data = kept_answer(slots, task)
    if data is None:
        data, warning = readdressed(slots, task, examples) or (None, "")
        if warning:
            warn(warning)
    said = {} if data is None else decode_tensors(data)[1]
    if data is None or said["examples"] != str(examples):
        return None
    return Update(data, hashlib.sha256(data).hexdigest(), examples, float(said["loss"]), int(said["steps"]))


@dataclass(frozen=True)
class _Board:
    """What all phases of a task run on; `may_go_on` raises when the caller wants to stop."""

    dataset: Dataset
    threads: int
    limit_bytes: int | None
    place: Place | None
    warn: Callable[[str], None]
    may_go_on: Callable[[], None]


def _stopper(should_stop: Callable[[], bool], losses: list[float]) -> Callable[[], None]:
    def may_go_on() -> None:
        if should_stop():
            raise TaskStopped(f"stopped after {len(losses)} steps")

    return may_go_on


def _averaged(trained: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """What is sent back: moving averages in the place of their tensors."""
    averages = {name.removeprefix(AVERAGE): array for name, array in trained.items() if name.startswith(AVERAGE)}
    return {name: averages.get(name, array) for name, array in trained.items() if not name.startswith(AVERAGE)}


def _plans_of(phase: Phase, plans: Mapping[str, Plan]) -> tuple[Plan, Plan | None]:
    for name in phase.plans:
        if name not in plans:
            raise PlanMissing(f"plan {name} is not at hand; it must be sent before the task")
    return plans[phase.plan], None if phase.prefix is None else plans[phase.prefix]


def _run_phase(  # noqa: PLR0913, PLR0917 a phase: its plans, weights and data
    phase: Phase,
    plans: tuple[Plan, Plan | None],
    weights: Mapping[str, NDArray[Any]],
    board: _Board,
    seed: int,
    epochs: range,
    losses: list[float],
) -> dict[str, NDArray[np.float32]]:
    """Train; returns the trained tensors and appends the loss of every step."""
    plan, prefix = plans
    check_phase(phase, plan, board.dataset, weights, prefix)
    features = None if prefix is None else _features(phase, plan, prefix, weights, board)
    try:
        engine = Engine(plan, threads=board.threads, memory_limit_bytes=board.limit_bytes)
        _write_inputs(engine, phase, plan, weights)
        if SEED in plan.named(ROLE_SCALAR):
            engine.write(SEED, np.array(derive_seed("random", seed, epochs.start) % (1 << 24), np.float32))
        batches = _batches(len(board.dataset), plan.named(ROLE_BATCH)[LABELS].shape[0], seed, epochs)
        _train(engine, features, board, islice(batches, phase.steps), losses)
        engine.release()  # so that the copies do not come on top of the peak
        return {name: engine.read(name) for name in plan.named(ROLE_TRAINED)}
    finally:
        if features is not None:
            features.close()


def _features(phase: Phase, plan: Plan, prefix: Plan, weights: Mapping[str, NDArray[Any]], board: _Board) -> Features:
    """The source of a phase's batch columns; what it may keep is computed now."""
    features = Features(prefix, weights, board.dataset, board.threads, board.may_go_on)
    budget = plan_budget(
        phase.cache,
        board.place,
        len(board.dataset),
        features.row_bytes,
        training_bytes=plan.memory_bytes(board.threads),
        prefix_bytes=prefix.memory_bytes(board.threads),
        limit_bytes=board.limit_bytes,
    )
    features.keep(budget, board.place, board.warn)
    needed = plan.memory_bytes(board.threads) + features.engine_bytes
    if budget.complete and board.limit_bytes is not None and needed > board.limit_bytes:
        features.close()
        raise EngineMemoryError(
            f"features could not be kept, and without that training needs {needed} bytes, the limit is "
            f"{board.limit_bytes}; make room on the disk"
        )
    return features


def _write_inputs(engine: Engine, phase: Phase, plan: Plan, weights: Mapping[str, NDArray[Any]]) -> None:
    for name in (*plan.named(ROLE_TRAINED), *plan.named(ROLE_FROZEN)):
        engine.write(name, weights[name])
    for name, value in phase.scalars.items():
        engine.write(name, np.array(value, np.float32))


def _batches(examples: int, batch: int, seed: int, epochs: range) -> Iterator[NDArray[np.int64]]:
    """The rows of every step, epoch after epoch."""
    for epoch in epochs:
        yield from batch_indices(examples, batch, seed, epoch)


def _train(
    engine: Engine, features: Features | None, board: _Board, batches: Iterable[NDArray[np.int64]], losses: list[float]
) -> None:
    y, loss = engine.view(LABELS), engine.view(_LOSS)
    columns = {name: engine.view(name) for name in engine.plan.named(ROLE_BATCH) if name != LABELS}
    x = columns.pop(EXAMPLES, None)
    for rows in batches:
        board.may_go_on()
        if x is not None:
            fill_examples(board.dataset, rows, x)
        if features is not None:
            features.fill(rows, columns)
        fill_labels(board.dataset, rows, y)
        engine.step()
        losses.append(float(loss.reshape(())))
        if not math.isfinite(losses[-1]):
            raise NonFiniteUpdate(
                f"the loss is {losses[-1]} after {len(losses)} steps; lower the learning rate or check the data"
            )


def _subtract(trained: NDArray[np.float32], received: NDArray[Any]) -> NDArray[np.float32]:
    np.subtract(trained, received, out=trained)
    return trained


def _fitting(tensors: dict[str, NDArray[np.float32]], examples: int) -> dict[str, NDArray[np.float32]]:
    """The tensors, if a fold can take them with so many examples as their weight.

    What it cannot would be refused; and once it were in a residual, so would all that follows.
    """
    for name, tensor in tensors.items():
        peak = max(float(tensor.max(initial=0)), -float(tensor.min(initial=0)))  # NaN where there is one
        if not math.isfinite(peak):
            raise NonFiniteUpdate(f"tensor {name!r} holds NaN or infinity after training; lower the learning rate")
        if peak * examples >= LARGEST:
            most = f"with {examples} examples less than {LARGEST / examples:.2g} can be summed"
            raise NonFiniteUpdate(f"tensor {name!r} has gone as far as {peak:.2g}, {most}; lower the learning rate")
    return tensors


def _metadata(task: Task, examples: int, losses: list[float]) -> dict[str, str]:
    return {
        "task": task.task,
        "job": task.job,
        "round": str(task.round),
        "version": str(task.version),
        "device": task.device,
        "examples": str(examples),
        "steps": str(len(losses)),
        "loss": repr(float(np.mean(losses))),
    }
