"""Many updates in, one out: streaming folds that hold one update at a time.

A fold's result may not depend on the order in which the network delivered the updates. Floating-point addition is not
associative, so the order is fixed instead: the caller folds in ascending order of device ids, at the close of the
round, out of the journal. Sums are kept in float64, where the order would hardly matter; with the fixed order it
matters not at all, and equal updates give equal bytes.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Tensors = Mapping[str, NDArray[np.float32]]
Mean = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Contribution:
    """One update as an aggregator sees it.

    Attributes:
        device: Whose it is; with `task` its place in the order.
        examples: Its weight.
        tensors: By name.
        steps: Done by the device.
        task: Which it answers; a device may have several in one buffer.
        scale: What staleness leaves of it: it counts as so many times its tensors, with its whole weight.
    """

    device: str
    examples: int
    tensors: Tensors
    steps: int = 1
    task: str = ""
    scale: float = 1.0


# The second argument names the running statistics, which are averaged as they are.
Aggregate = Callable[[Iterable[Contribution], Collection[str]], Mean]


def weighted_mean(contributions: Iterable[Contribution], _plain: Collection[str] = ()) -> Mean:
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
    sums = _Sums()
    for contribution in _checked(contributions):
        for name, tensor in contribution.tensors.items():
            sums.add(name, tensor, contribution.examples * contribution.scale, contribution.examples)
    return sums.means()


def normalised_mean(momentum: float) -> Aggregate:
    """FedNova: every update over the length of its path, times the mean length of all paths.

    A device that does more steps pulls the model further towards its own optimum. With p_k = n_k / n and a_k the sum of
    the weights that local SGD gives its gradients, the fold is `(sum_k p_k a_k) * sum_k p_k delta_k / a_k`; without
    momentum a_k is the number of steps, with momentum r `a_k = (steps - r (1 - r^steps) / (1 - r)) / (1 - r)`. Devices
    of equally many steps give the weighted mean. Running statistics are averaged as they are.

    Source: J. Wang et al.: Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization,
    NeurIPS 2020, eqs. 6 to 9.
    """

    def fold(contributions: Iterable[Contribution], plain: Collection[str]) -> Mean:
        sums, lengths = _Sums(), _Sums()
        for contribution in _checked(contributions):
            length = path_length(contribution.steps, momentum)
            for name, tensor in contribution.tensors.items():
                divisor = 1.0 if name in plain else length
                sums.add(name, tensor, contribution.examples * contribution.scale / divisor, contribution.examples)
                lengths.add(name, np.ones((), np.float32), contribution.examples * divisor, contribution.examples)
        mean_lengths = lengths.means()
        return {name: mean * mean_lengths[name] for name, mean in sums.means().items()}

    return fold


def path_length(steps: int, momentum: float) -> float:
    """The sum of the weights that so many steps of SGD with momentum give to their gradients, at least 1."""
    if momentum == 0:
        return float(steps)
    return (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)


def _checked(contributions: Iterable[Contribution]) -> Iterable[Contribution]:
    previous, none = ("", ""), True
    for contribution in contributions:
        key = (contribution.device, contribution.task)
        if key <= previous:
            raise ValueError(f"updates must come in ascending order of device and task: {key!r} after {previous!r}")
        if contribution.examples < 1 or contribution.steps < 1:
            shown = f"{contribution.examples} examples and {contribution.steps} steps"
            raise ValueError(f"the update of {contribution.device!r} counts {shown}")
        previous, none = key, False
        yield contribution
    if none:
        raise ValueError("there is no update to average")


class _Sums:
    """Weighted sums by name, in float64, and how many examples stand behind each."""

    def __init__(self) -> None:
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._examples: dict[str, int] = {}

    def add(self, name: str, tensor: NDArray[np.float32], weight: float, examples: int) -> None:
        """Add weight * tensor; exact in float64 where the weight is a count below 2^29."""
        if name not in self._sums:
            self._sums[name], self._examples[name] = np.zeros(tensor.shape, np.float64), 0
        if self._sums[name].shape != tensor.shape:
            raise ValueError(f"tensor {name!r} has shape {tensor.shape}, others sent {self._sums[name].shape}")
        self._sums[name] += np.multiply(tensor, float(weight), dtype=np.float64)
        self._examples[name] += examples

    def means(self) -> dict[str, NDArray[np.float64]]:
        """Every sum over its examples."""
        return {name: total / self._examples[name] for name, total in sorted(self._sums.items())}
