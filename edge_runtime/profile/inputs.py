"""What a profiled step is fed: the plan's own shapes filled at random, or one batch of a local data set."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime import _core
from edge_runtime.data import Dataset, fill_batch
from edge_runtime.errors import LocalError
from edge_runtime.plan import ROLE_BATCH, ROLE_FROZEN, ROLE_TRAINED, Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_runtime._core import OpInfo, PlanInfo
    from edge_runtime.engine import Engine

_SEED = 0


class BatchNotData(LocalError):
    """The plan's batch is not x and y, which is what a data set holds."""


def fill_inputs(engine: Engine, dataset: Dataset | None) -> None:
    """Write tensors and a batch, in place.

    Weights are random of the scale a trained network has, vectors lie in 0.5 to 1.5 (some are variances), and scalars
    stay 0: with a learning rate of 0 any number of steps computes on the same numbers. Whole-number columns keep to
    what the plan looks up with them.

    Args:
        engine: Of the plan that is profiled.
        dataset: Its first rows are the batch; None for random numbers.

    Raises:
        BatchNotData: There is a data set, and the plan's batch is not x and y.
        ShapeMismatch: The examples do not fit.
    """
    rng = np.random.default_rng(_SEED)
    plan = engine.plan
    for tensor in (*plan.named(ROLE_TRAINED).values(), *plan.named(ROLE_FROZEN).values()):
        _fill_weight(engine.view(tensor.name), rng)
    batch = plan.named(ROLE_BATCH)
    if dataset is not None:
        _fill_from(dataset, engine, sorted(batch))
        return
    info = _core.describe(plan.data)
    for tensor in batch.values():
        _fill_column(engine.view(tensor.name), choices(info, tensor), rng)


def choices(info: PlanInfo, tensor: Tensor) -> int:
    """How many whole numbers an int32 column may hold: classes of a loss, rows of a table; 2 where nothing says."""
    found = [n for op in info["ops"] for n in _limits(info, op, tensor)]
    return min(found, default=2)


def _limits(info: PlanInfo, op: OpInfo, tensor: Tensor) -> list[int]:
    """What one operation makes of `tensor` as labels or index."""
    if op["op"] not in {"softmax_xent", "softmax_xent_grad", "sampled_softmax", "gather", "scatter_add"}:
        return []
    index, indexed = op["inputs"][1], op["outputs" if op["op"] == "scatter_add" else "inputs"][0]
    if op["op"] == "sampled_softmax":
        indexed = op["inputs"][2]
    if index is None or indexed is None or info["tensors"][index]["offset"] != tensor.offset:
        return []
    axis = 1 if op["op"].startswith("softmax") else 0 if op["op"] == "sampled_softmax" else op["attrs"][0]
    return [info["tensors"][indexed]["shape"][axis]]


def _fill_weight(view: NDArray[Any], rng: np.random.Generator) -> None:
    if view.ndim < 2:
        view[...] = rng.uniform(0.5, 1.5, view.shape)
    else:
        view[...] = rng.standard_normal(view.shape) / math.sqrt(math.prod(view.shape[1:]))


def _fill_column(view: NDArray[Any], among: int, rng: np.random.Generator) -> None:
    if view.dtype.kind == "f":
        view[...] = rng.standard_normal(view.shape)
    else:
        view[...] = rng.integers(0, among, view.shape)


def _fill_from(dataset: Dataset, engine: Engine, columns: list[str]) -> None:
    if columns != ["x", "y"]:
        raise BatchNotData(
            f"the plan's batch is {', '.join(columns) or 'empty'}, a data set holds x and y; profile it without --data"
        )
    x, y = engine.view("x"), engine.view("y")
    fill_batch(dataset, np.arange(min(len(dataset), len(y))), x, y)
