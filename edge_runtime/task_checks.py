"""Whether a task's plans, weights, scalars and the local data fit together, before any memory is spent on it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.data import Dataset, NoExamples, check_row_dtype, check_row_shape
from edge_runtime.errors import EdgeError, LocalError
from edge_runtime.plan import (
    ROLE_BATCH,
    ROLE_FROZEN,
    ROLE_OUTPUT,
    ROLE_SCALAR,
    ROLE_STATE,
    ROLE_TRAINED,
    SEED,
    Plan,
    Tensor,
)
from edge_runtime.wire.tasks import Phase

EXAMPLES, LABELS = "x", "y"  # columns of a batch


class WeightMismatch(EdgeError):
    """The weights lack a tensor of the plan, or have it with another shape."""


class ScalarMismatch(EdgeError):
    """The task's scalars are not the plan's."""


class BadBatchShape(EdgeError):
    """The plan's batch is not x (B, ...), or what its prefix makes of it, with y (B,) int32."""


class BadPrefix(EdgeError):
    """The prefix is no inference plan of x (P, ...), or its outputs are not what the plan takes."""


class LabelOutOfRange(LocalError):
    """A local label is not one of the task's classes."""


def check_phase(
    phase: Phase, plan: Plan, dataset: Dataset, weights: Mapping[str, NDArray[Any]], prefix: Plan | None = None
) -> None:
    """Refuse a phase whose plans, weights, scalars and data do not fit together, before any memory is spent on it."""
    made = {} if prefix is None else _checked_prefix(prefix, dataset)
    batch = plan.named(ROLE_BATCH)
    y, columns = batch.get(LABELS), {name: tensor for name, tensor in batch.items() if name != LABELS}
    fitting = y is not None and y.dtype == "int32" and len(y.shape) == 1 and bool(columns)
    if not fitting or y is None or any(t.shape[:1] != y.shape for t in columns.values()):
        shown = {name: f"{tensor.dtype} {tensor.shape}" for name, tensor in batch.items()}
        raise BadBatchShape(f"the plan's batch is {shown}; it must be x (B, ...) or features, and y int32 (B,)")
    if EXAMPLES in columns:
        _check_examples(dataset, columns.pop(EXAMPLES))
    taken = {name: (tensor.dtype, tensor.shape[1:]) for name, tensor in columns.items()}
    if taken != made:
        raise BadPrefix(f"the plan takes features {taken}, its prefix makes {made}")
    scalars = set(plan.named(ROLE_SCALAR)) - {SEED}
    if scalars != set(phase.scalars):
        raise ScalarMismatch(f"the task sets {sorted(phase.scalars)}, the plan takes {sorted(scalars)}")
    for each in (plan, *(() if prefix is None else (prefix,))):
        _check_weights(each, weights)


def _checked_prefix(prefix: Plan, dataset: Dataset) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of what a prefix makes of one example, by column."""
    batch, outputs = prefix.named(ROLE_BATCH), prefix.named(ROLE_OUTPUT)
    others = [name for role in (ROLE_TRAINED, ROLE_STATE, ROLE_SCALAR) for name in prefix.named(role)]
    if set(batch) != {EXAMPLES} or others or not outputs:
        raise BadPrefix(f"a prefix makes features of x alone; this one takes {sorted(batch)} and {others[:3]}")
    x = batch[EXAMPLES]
    for name, tensor in outputs.items():
        if tensor.dtype != "float32" or tensor.shape[:1] != x.shape[:1]:
            raise BadPrefix(f"{name!r} is {tensor.dtype} {tensor.shape}; features of x {x.shape} are float32 rows")
    _check_examples(dataset, x)
    return {name: (tensor.dtype, tensor.shape[1:]) for name, tensor in outputs.items()}


def _check_examples(dataset: Dataset, x: Tensor) -> None:
    if not x.shape or x.dtype not in {"float32", "int32"}:
        raise BadBatchShape(f"the plan's x is {x.dtype} {x.shape}; it must be float32 or int32 (B, ...)")
    check_row_shape(dataset, x.shape)
    check_row_dtype(dataset, x.dtype)


def _check_weights(plan: Plan, weights: Mapping[str, NDArray[Any]]) -> None:
    for name, tensor in {**plan.named(ROLE_TRAINED), **plan.named(ROLE_FROZEN)}.items():
        if name not in weights:
            raise WeightMismatch(f"the plan has a tensor {name!r}, the weights have not")
        if weights[name].shape != tensor.shape or weights[name].dtype != np.float32:
            have = f"{weights[name].dtype} {weights[name].shape}"
            raise WeightMismatch(f"{name!r} came as {have}; the plan has float32 {tensor.shape}")


def check_labels(dataset: Dataset, classes: int) -> None:
    """Refuse local data without examples, or with labels that are none of the task's classes."""
    if len(dataset) == 0:
        raise NoExamples("the local data set is empty; put at least one example there")
    wrong = np.flatnonzero((dataset.y < 0) | (dataset.y >= classes))
    if wrong.size:
        raise LabelOutOfRange(
            f"row {wrong[0]} of the local data has label {dataset.y[wrong[0]]}, but the job has classes "
            f"0 .. {classes - 1} ({wrong.size} such rows); relabel or remove them"
        )
