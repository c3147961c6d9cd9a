"""Run a task: its phases in order over the local data, then what is to be sent back."""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.codecs import find_codec
from edge_runtime.data import Dataset, NoExamples, batch_indices, check_row_shape, fill_batch
from edge_runtime.engine import Engine
from edge_runtime.errors import EdgeError, LocalError
from edge_runtime.plan import ANCHOR, ROLE_BATCH, ROLE_FROZEN, ROLE_SCALAR, ROLE_TRAINED, SEED, Plan
from edge_runtime.rng import derive_seed
from edge_runtime.wire.tasks import Phase, Task, Upload, format_task, parse_task

__all__ = [
    "BadBatchShape",
    "LabelOutOfRange",
    "NonFiniteUpdate",
    "Phase",
    "PlanMissing",
    "ScalarMismatch",
    "Task",
    "TaskStopped",
    "Update",
    "Upload",
    "WeightMismatch",
    "format_task",
    "parse_task",
    "run_task",
]

_X, _Y, _LOSS = "x", "y", "loss"


class PlanMissing(EdgeError):
    """A phase names a plan that was not handed over."""


class WeightMismatch(EdgeError):
    """The weights lack a tensor of the plan, or have it with another shape."""


class ScalarMismatch(EdgeError):
    """The task's scalars are not the plan's."""


class BadBatchShape(EdgeError):
    """The plan's batch is not x (B, ...) float32 with y (B,) int32 and a loss."""


class LabelOutOfRange(LocalError):
    """A local label is not one of the task's classes."""


class NonFiniteUpdate(EdgeError):
    """Training gave NaN or infinity."""


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
    should_stop: Callable[[], bool] = lambda: False,
) -> Update:
    """Run the phases in order and encode trained minus received.

    Equal arguments give equal bytes.

    Args:
        task: What to do.
        plans: {SHA-256: plan}, at least those the phases name.
        weights: {name: float32} to start from; not modified.
        dataset: The local examples.
        threads: Of the engine.
        memory_limit_bytes: The engine refuses a plan that needs more.
        should_stop: Asked before every step.

    Returns:
        The update.

    Raises:
        NoExamples, LabelOutOfRange, ShapeMismatch: The local data do not fit the task.
        PlanMissing, WeightMismatch, ScalarMismatch, BadBatchShape, UnknownCodec: The task's parts do not fit together.
        NonFiniteUpdate: Training diverged; names the step or the tensor.
        TaskStopped: should_stop said so.
    """
    codec = find_codec(task.upload.codec)
    _check_labels(dataset, task.classes)
    trained: dict[str, NDArray[np.float32]] = {}
    losses: list[float] = []
    epoch = 0
    for phase in task.phases:
        if phase.plan not in plans:
            raise PlanMissing(f"plan {phase.plan} is not at hand; it must be sent before the task")
        plan = plans[phase.plan]
        given = {**{ANCHOR + name: array for name, array in weights.items()}, **weights, **trained}
        check_phase(phase, plan, dataset, given)
        engine = Engine(plan, threads=threads, memory_limit_bytes=memory_limit_bytes)
        _write_inputs(engine, phase, plan, given)
        if SEED in plan.named(ROLE_SCALAR):
            engine.write(SEED, np.array(derive_seed("random", task.seed, epoch) % (1 << 24), np.float32))
        losses += _train(engine, task.seed, range(epoch, epoch + phase.epochs), dataset, should_stop)
        trained |= {name: engine.read(name) for name in plan.named(ROLE_TRAINED)}
        epoch += phase.epochs
        del engine  # the arena goes before the next one, or the delta, is allocated
    delta = {name: _subtract(name, trained.pop(name), weights[name]) for name in sorted(trained)}
    metadata = _metadata(task, len(dataset), losses)
    data, _ = codec.encode(delta, metadata, None)
    return Update(data, hashlib.sha256(data).hexdigest(), len(dataset), float(np.mean(losses)), len(losses))


def check_phase(phase: Phase, plan: Plan, dataset: Dataset, weights: Mapping[str, NDArray[Any]]) -> None:
    """Refuse a phase whose plan, weights, scalars and data do not fit together, before any memory is spent on it."""
    batch = plan.named(ROLE_BATCH)
    dtypes = {name: tensor.dtype for name, tensor in batch.items()}
    if dtypes != {_X: "float32", _Y: "int32"} or batch[_X].shape[:1] != batch[_Y].shape:
        shown = {name: f"{tensor.dtype} {tensor.shape}" for name, tensor in batch.items()}
        raise BadBatchShape(f"the plan's batch is {shown}; it must be x float32 (B, ...) and y int32 (B,)")
    check_row_shape(dataset, batch[_X].shape)
    scalars = set(plan.named(ROLE_SCALAR)) - {SEED}
    if scalars != set(phase.scalars):
        raise ScalarMismatch(f"the task sets {sorted(phase.scalars)}, the plan takes {sorted(scalars)}")
    for name, tensor in {**plan.named(ROLE_TRAINED), **plan.named(ROLE_FROZEN)}.items():
        if name not in weights:
            raise WeightMismatch(f"the plan has a tensor {name!r}, the weights have not")
        if weights[name].shape != tensor.shape or weights[name].dtype != np.float32:
            have = f"{weights[name].dtype} {weights[name].shape}"
            raise WeightMismatch(f"{name!r} came as {have}; the plan has float32 {tensor.shape}")


def _check_labels(dataset: Dataset, classes: int) -> None:
    if len(dataset) == 0:
        raise NoExamples("the local data set is empty; put at least one example there")
    wrong = np.flatnonzero((dataset.y < 0) | (dataset.y >= classes))
    if wrong.size:
        raise LabelOutOfRange(
            f"row {wrong[0]} of the local data has label {dataset.y[wrong[0]]}, but the job has classes "
            f"0 .. {classes - 1} ({wrong.size} such rows); relabel or remove them"
        )


def _write_inputs(engine: Engine, phase: Phase, plan: Plan, weights: Mapping[str, NDArray[Any]]) -> None:
    for name in (*plan.named(ROLE_TRAINED), *plan.named(ROLE_FROZEN)):
        engine.write(name, weights[name])
    for name, value in phase.scalars.items():
        engine.write(name, np.array(value, np.float32))


def _train(engine: Engine, seed: int, epochs: range, dataset: Dataset, should_stop: Callable[[], bool]) -> list[float]:
    x, y, loss = engine.view(_X), engine.view(_Y), engine.view(_LOSS)
    losses: list[float] = []
    for epoch in epochs:
        for rows in batch_indices(len(dataset), len(y), seed, epoch):
            if should_stop():
                raise TaskStopped(f"stopped after {len(losses)} steps")
            fill_batch(dataset, rows, x, y)
            engine.step()
            losses.append(float(loss.reshape(())))
            if not math.isfinite(losses[-1]):
                raise NonFiniteUpdate(
                    f"the loss is {losses[-1]} after {len(losses)} steps; lower the learning rate or check the data"
                )
    return losses


def _subtract(name: str, trained: NDArray[np.float32], received: NDArray[Any]) -> NDArray[np.float32]:
    np.subtract(trained, received, out=trained)
    # The sum of squares in float64 is finite exactly when every float32 is: their squares stay below 1e77.
    if not math.isfinite(float(np.square(trained, dtype=np.float64).sum())):
        raise NonFiniteUpdate(f"tensor {name!r} holds NaN or infinity after training; lower the learning rate")
    return trained


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
