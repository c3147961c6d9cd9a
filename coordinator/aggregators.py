"""Many updates in, one out: folds that take updates as they come and hold none of them.

A fold's result may not depend on the order in which the network delivered the updates, and floating-point addition is
not associative. So terms are rounded to multiples of 2**-64 and added up as whole numbers
(edge_runtime/kernels/fold.py), and the weights as fractions: every order gives the same bits, and an update can be
folded the moment it arrives.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from edge_runtime.control import path_length
from edge_runtime.kernels import Accumulator, CodedUpdate, Layout
from edge_runtime.plan import CONTROL

Tensors = Mapping[str, NDArray[np.float32]]
Mean = Mapping[str, NDArray[np.float64]]

JOINED = "joined/"


class FoldedTwice(ValueError):
    """An update came into one fold a second time."""


@dataclass(frozen=True)
class Contribution:
    """One update as an aggregator sees it.

    Attributes:
        device: Whose it is; with `task` its name, which no other update of the fold has.
        examples: How many.
        tensors: float32 by name, or an update that was looked through already.
        steps: Done on the device.
        joined: The control variates that the device begins with this update (edge_runtime/control.py).
        task: Which it answers; a device may have several in one buffer.
        scale: What staleness leaves of it: it counts as so many times its tensors, with its whole weight.
    """

    device: str
    examples: int
    tensors: Tensors | CodedUpdate
    steps: int = 1
    joined: Collection[str] = ()
    task: str = ""
    scale: float = 1.0


@dataclass(frozen=True)
class Weight:
    """What an update's tensors are multiplied by, what they count in the mean's divisor, and the length of its path."""

    value: float
    count: int
    length: float = 1.0


Weigh = Callable[[Contribution], Weight]


class Fold:
    """A mean under way: `sum(value * tensor) / sum(count) * sum(count * length) / sum(count)`, tensor by tensor.

    A tensor is averaged over the updates that hold it, so that devices which train different parts of a model combine
    rightly. Of control variates the sum is given, not the mean, and under `joined/` how many devices begin one. Memory:
    16 bytes a value of the tensors, once for every set of tensors that devices train.
    """

    def __init__(self, weigh: Weigh, plain: Collection[str], over: int | None = None) -> None:
        """Begin.

        Args:
            weigh: What an update weighs.
            plain: Names the running statistics, which are averaged by examples whatever the weights are.
            over: The divisor of every tensor, how many updates there are at most, in the place of what they count.
        """
        self._weigh = weigh
        self._over = over
        self._plain = plain
        self._parts: dict[tuple[str, ...], _Part] = {}
        self._joined: Counter[str] = Counter()
        self.updates: set[tuple[str, str]] = set()

    def add(self, contribution: Contribution) -> None:
        """Take one more update; the order of calls does not matter.

        Raises:
            ValueError: An update of its name is in already, it counts fewer than one example or step, its shapes are
                not those of others, a value is not finite or beyond what sums hold, or it is one too many. Nothing was
                added.
        """
        key, examples = (contribution.device, contribution.task), contribution.examples
        if self._over is not None and len(self.updates) >= self._over:
            raise ValueError(f"the update of {contribution.device!r} is one more than the {self._over} there may be")
        if key in self.updates:
            raise FoldedTwice(f"the update of {contribution.device!r} is folded already")
        if examples < 1 or contribution.steps < 1:
            counted = f"{examples} examples and {contribution.steps} steps"
            raise ValueError(f"the update of {contribution.device!r} counts {counted}")
        update = _coded(contribution.tensors)
        part = self._part(update.layout)
        part.add(update, self._weigh(contribution), contribution)
        self._joined.update(contribution.joined)
        self.updates.add(key)

    @property
    def memory_bytes(self) -> int:
        """Of the sums."""
        return sum(part.sums.nbytes for part in self._parts.values())

    def mean(self) -> Mean:
        """The mean of what was added, float64 by name.

        Raises:
            ValueError: Nothing was.
        """
        if not self.updates:
            raise ValueError("there is no update to average")
        parts = [part for _, part in sorted(self._parts.items()) if part.sums.terms]
        names = sorted({name for part in parts for name in part.sums.layout.shapes})
        means = {name: self._mean(name, [part for part in parts if name in part.sums.layout.shapes]) for name in names}
        return means | {JOINED + name: np.array(float(count)) for name, count in sorted(self._joined.items())}

    def _mean(self, name: str, parts: list["_Part"]) -> NDArray[np.float64]:
        total = parts[0].sums.sum(name)
        for part in parts[1:]:
            total += part.sums.sum(name)
        if name.startswith(CONTROL):
            return total
        if name in self._plain:
            return total / float(sum(part.examples for part in parts))
        if self._over is not None:
            return total / float(self._over)
        count = sum(part.count for part in parts)
        return total / float(count) * float(sum(part.lengths for part in parts) / count)

    def _part(self, layout: Layout) -> "_Part":
        key = tuple(layout.shapes)
        if key not in self._parts:
            for other in self._parts.values():
                _check_shapes(layout, other.sums.layout)
            plain = np.array([name in self._plain for name in layout.shapes], bool)
            self._parts[key] = _Part(Accumulator(layout), plain)
        _check_shapes(layout, self._parts[key].sums.layout)
        return self._parts[key]


@dataclass
class _Part:
    """The sums of the updates of one set of tensors, and exact sums of what they count."""

    sums: Accumulator
    plain: NDArray[np.bool_]
    examples: int = 0
    count: int = 0
    lengths: Fraction | int = 0

    def add(self, update: CodedUpdate, weight: Weight, of: Contribution) -> None:
        self.sums.add(update, of.scale * np.where(self.plain, float(of.examples), weight.value))
        self.examples += of.examples
        self.count += weight.count
        # Whole numbers, which most lengths are, add up faster than fractions and as exactly.
        whole = weight.length.is_integer()
        self.lengths += weight.count * (int(weight.length) if whole else Fraction(weight.length))


def _coded(tensors: Tensors | CodedUpdate) -> CodedUpdate:
    if isinstance(tensors, CodedUpdate):
        return tensors
    layout = Layout({name: tensor.shape for name, tensor in tensors.items()})
    return CodedUpdate(layout.pieces(tensors), layout)


def _check_shapes(layout: Layout, others: Layout) -> None:
    for name, shape in layout.shapes.items():
        if others.shapes.get(name, shape) != shape:
            raise ValueError(f"tensor {name!r} has shape {shape}, others sent {others.shapes[name]}")


@dataclass(frozen=True)
class Aggregate:
    """How many updates become one: by the weight of each, and a fixed divisor if there is one."""

    weigh: Weigh
    over: int | None = None

    def begin(self, plain: Collection[str]) -> Fold:
        """A fold that takes updates one by one; `plain` names the running statistics."""
        return Fold(self.weigh, plain, self.over)

    def __call__(self, contributions: Iterable[Contribution], plain: Collection[str] = ()) -> Mean:
        """All at once."""
        fold = self.begin(plain)
        for contribution in contributions:
            fold.add(contribution)
        return fold.mean()


# The mean of the updates, weighted by example counts; and that in which all devices count alike.
weighted_mean = Aggregate(lambda each: Weight(float(each.examples), each.examples))
uniform_mean = Aggregate(lambda _: Weight(1.0, 1))


def normalised_mean(momentum: float) -> Aggregate:
    """FedNova: every update over the length of its path, times the mean length of all paths.

    A device that does more steps pulls the model further towards its own optimum. With p_k = n_k / n and a_k the sum of
    the weights that local SGD gives its gradients, the fold is `(sum_k p_k a_k) * sum_k p_k delta_k / a_k`; without
    momentum a_k is the number of steps, with momentum r `a_k = (steps - r (1 - r^steps) / (1 - r)) / (1 - r)`. Devices
    of equally many steps give the weighted mean. Running statistics are averaged as they are.

    Source: J. Wang et al.: Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization,
    NeurIPS 2020, eqs. 6 to 9.
    """

    def weigh(each: Contribution) -> Weight:
        length = path_length(each.steps, momentum)
        return Weight(each.examples / length, each.examples, length)

    return Aggregate(weigh)


def share_of(members: int) -> Aggregate:
    """The sum of the updates over a number of devices that stays, however many of them have sent one.

    For updates that add to a mean which is kept (coordinator/methods/ef21.py); running statistics are averaged as ever.
    """
    return Aggregate(lambda _: Weight(1.0, 1), over=members)
