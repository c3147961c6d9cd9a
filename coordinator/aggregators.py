"""Many updates in, one out: streaming folds that hold one update at a time.

A fold's result may not depend on the order in which the network delivered the updates. Floating-point addition is not
associative, so the order is fixed instead: the caller folds in ascending order of device ids, at the close of the
round, out of the journal. Sums are kept in float64, where the order would hardly matter; with the fixed order it
matters not at all, and equal updates give equal bytes.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Tensors = Mapping[str, NDArray[np.float32]]
Mean = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Contribution:
    """One device's update as an aggregator sees it: who, how many examples, and the tensors by name."""

    device: str
    examples: int
    tensors: Tensors


Aggregate = Callable[[Iterable[Contribution]], Mean]


def weighted_mean(contributions: Iterable[Contribution]) -> Mean:
    """The mean of the updates, weighted by example counts, tensor by tensor.

    A tensor is averaged over the updates that hold it, so that devices which train different parts of a model
    combine rightly. Memory: one float64 accumulator a name, beside the update at hand.

    Args:
        contributions: In strictly ascending order of device ids (see the module's docstring), lazily.

    Returns:
        Float64 tensors `sum(examples * tensor) / sum(examples)`, by name.

    Raises:
        ValueError: No update at all, ids out of order, fewer than one example, or shapes that differ.
    """
    sums: dict[str, NDArray[np.float64]] = {}
    examples: dict[str, int] = {}
    previous = ""
    for contribution in contributions:
        if contribution.device <= previous:
            raise ValueError(f"updates must come in ascending device order: {contribution.device!r} after {previous!r}")
        if contribution.examples < 1:
            raise ValueError(f"the update of {contribution.device!r} counts {contribution.examples} examples")
        previous = contribution.device
        for name, tensor in contribution.tensors.items():
            _add(sums, name, tensor, contribution.examples)
            examples[name] = examples.get(name, 0) + contribution.examples
    if not sums:
        raise ValueError("there is no update to average")
    return {name: total / examples[name] for name, total in sorted(sums.items())}


def _add(sums: dict[str, NDArray[np.float64]], name: str, tensor: NDArray[np.float32], weight: int) -> None:
    """Adds weight * tensor in place; the product of a float32 and a count below 2^29 is exact in float64."""
    if name not in sums:
        sums[name] = np.zeros(tensor.shape, np.float64)
    if sums[name].shape != tensor.shape:
        raise ValueError(f"tensor {name!r} has shape {tensor.shape}, others sent {sums[name].shape}")
    sums[name] += np.multiply(tensor, float(weight), dtype=np.float64)
