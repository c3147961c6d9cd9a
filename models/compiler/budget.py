"""Choosing a plan for a board: what is trained, in how many slices, and what is computed twice, within a budget.

Memory is what the engine takes: arena, constants and the workspace of every thread, to the byte, and the records of a
long plan; nothing of the process around it. A step's time is an estimate: multiply-adds over the rate at which products
and convolutions run, plus the bytes that all other operations and updates move over the rate at which they do.

Training more of the model comes first, a shorter step second. Layers are frozen from the input on, as few as fit.
"""

import glob
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edge_runtime import _core
from models.compiler.errors import CompileError
from models.compiler.freeze import settle
from models.compiler.ir import Graph, topological
from models.compiler.onnx_import import import_onnx
from models.compiler.ops import OPS, no_products
from models.compiler.rules import Rule
from models.compiler.training import Compiled, compile_training, needs_batch_statistics

CALIBRATION_STEPS = 5
MOST_SLICES = 64  # plans grow with them, and the memory of a slice hardly falls any more
PEAK_CUT = 2.0  # what exceeds the budget by more does not fit with slices at the peak either
WORTH = 0.99  # more slices that need more than this share of the memory are not followed further


class BudgetError(CompileError):
    """No plan of the model fits; `nearest` is the option that misses by least."""

    def __init__(self, message: str, nearest: "Option") -> None:
        super().__init__(message)
        self.nearest = nearest


@dataclass(frozen=True)
class Budget:
    """What a board can give; None is no limit.

    Attributes:
        memory_bytes: for the engine.
        step_s: for one step.
        threads: of the engine, each with a workspace.
    """

    memory_bytes: int | None = None
    step_s: float | None = None
    threads: int = 1


@dataclass(frozen=True)
class Rate:
    """What a machine does in a second when it trains."""

    multiply_adds: float
    bytes_moved: float

    def step_s(self, compiled: Compiled) -> float:
        """Estimated seconds of a step."""
        report = compiled.report
        return sum(report.multiply_adds) / self.multiply_adds + report.moved_bytes / self.bytes_moved


@dataclass(frozen=True)
class Choice:
    """How a model is trained.

    Attributes:
        frozen_layers: layers that are not trained, counted from the input.
        micro_batches: slices of the batch.
        recompute: whether cheap work is done twice to keep less.
        slice_peak: whether what makes and reads the largest values runs slice by slice.
    """

    frozen_layers: int
    micro_batches: int
    recompute: bool
    slice_peak: bool = False


@dataclass(frozen=True)
class Option:
    """A plan that was considered."""

    choice: Choice
    compiled: Compiled
    memory_bytes: int
    step_s: float

    def excess(self, budget: Budget) -> float:
        """By how much the worse of memory and time exceeds the budget, as a factor; at most 1 fits."""
        limits = ((self.memory_bytes, budget.memory_bytes), (self.step_s, budget.step_s))
        return max((have / limit for have, limit in limits if limit is not None), default=0.0)


Compile = Callable[[Choice], Compiled]


def layers(graph: Graph, trainable: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The names of `trainable` in groups, from the input to the output; a layer is what shares a name up to the dot."""
    used = [node.out().name for node in topological(graph.outputs) if node.op == "leaf"]
    groups: dict[str, list[str]] = {}
    for name in sorted(trainable, key=lambda n: used.index(n) if n in used else len(used)):
        groups.setdefault(name.rpartition(".")[0] or name, []).append(name)
    return tuple(map(tuple, groups.values()))


def compile_within(  # noqa: PLR0913 - the settings a user may give
    model: bytes,
    batch: int,
    budget: Budget,
    *,
    trainable: Sequence[str] = ("*",),
    frozen: Sequence[str] = (),
    rule: Rule | None = None,
    rate: Rate | None = None,
    statistics_of_slices: bool = False,
) -> "Found":
    """Compile an ONNX classifier so that it trains as much as a budget allows.

    Args:
        model: an ONNX file.
        batch: examples in a step; micro-batches are its divisors.
        budget: the limits.
        trainable: shell patterns of what may be trained.
        frozen: patterns of what stays as it is in any case.
        rule: the update rule; SGD with momentum by default.
        rate: what the board does in a second; by default what this machine does, measured with the model itself.
        statistics_of_slices: as in compile_training; without it models with batch normalisation are not sliced.

    Raises:
        BudgetError: no plan fits; it names the nearest.
        CompileError: as import_onnx and compile_training.
    """
    graph = import_onnx(model, batch=batch)
    whole = compile_training(graph, trainable=trainable, frozen=frozen, rule=rule)
    groups = layers(graph, whole.report.trained)

    def held(frozen_layers: int) -> list[str]:
        return [glob.escape(name) for layer in groups[:frozen_layers] for name in layer]

    def slices(frozen_layers: int) -> list[int]:
        left = [name for layer in groups[frozen_layers:] for name in layer]
        sliceable = statistics_of_slices or not needs_batch_statistics(settle(graph, left))
        return [n for n in range(1, min(batch, MOST_SLICES) + 1) if batch % n == 0 and (n == 1 or sliceable)]

    def compiled(choice: Choice) -> Compiled:
        if choice == Choice(0, 1, recompute=True):
            return whole
        return compile_training(
            graph if choice.micro_batches == 1 else import_onnx(model, batch=batch // choice.micro_batches),
            trainable=trainable,
            frozen=[*frozen, *held(choice.frozen_layers)],
            rule=rule,
            recompute=choice.recompute,
            slice_peak=choice.slice_peak,
            micro_batches=choice.micro_batches,
            statistics_of_slices=statistics_of_slices,
        )

    return search(compiled, len(groups), slices, budget, lambda made: rate or measured_rate(made, budget.threads))


@dataclass(frozen=True)
class Found:
    """The options that were tried, from most to least trained, and the one to take."""

    options: tuple[Option, ...]
    chosen: Option


def search(
    compiled: Compile,
    layer_count: int,
    slices: Callable[[int], Sequence[int]],
    budget: Budget,
    rate: Callable[[Compiled], Rate],
) -> Found:
    """The option that trains most of the model within the budget, of those the one with the shortest step.

    Args:
        compiled: makes the plan of a choice.
        layer_count: layers of which all but the last may be frozen.
        slices: numbers of micro-batches to consider with so many frozen layers, ascending from 1.
        budget: the limits.
        rate: what the board does in a second, asked once, of the first plan that is made.

    Raises:
        BudgetError: nothing fits; it names what would, at least.
    """
    options: list[Option] = []
    speed: list[Rate] = []

    def tried(choice: Choice) -> Option:
        made = compiled(choice)
        speed.extend([] if speed else [rate(made)])
        option = Option(choice, made, made.report.engine_bytes(budget.threads), speed[0].step_s(made))
        options.append(option)
        return option

    chosen = _least_frozen(lambda frozen: _fitting(frozen, slices(frozen), budget, tried), layer_count)
    options.sort(
        key=lambda o: (o.choice.frozen_layers, o.choice.micro_batches, not o.choice.recompute, o.choice.slice_peak)
    )
    if chosen is None:
        raise _nothing_fits(options, budget)
    return Found(tuple(options), chosen)


def _least_frozen(fitting: Callable[[int], Option | None], layer_count: int) -> Option | None:
    """The option with fewest frozen layers; freezing more never needs more, so that halving finds it."""
    best = fitting(0)
    if best is not None or layer_count == 1:
        return best
    low, high = 0, layer_count - 1
    best = fitting(high)
    while best is not None and high - low > 1:
        middle = (low + high) // 2
        found = fitting(middle)
        low, high, best = (low, middle, found) if found is not None else (middle, high, best)
    return best


def _fitting(frozen: int, slices: Sequence[int], budget: Budget, tried: Callable[[Choice], Option]) -> Option | None:
    """The option of so many frozen layers that fits with the fewest slices: more take less memory, and longer."""
    least = math.inf
    for count in slices:
        option = tried(Choice(frozen, count, recompute=True))
        if option.excess(budget) <= 1:
            return option
        near = count == 1 and _too_large(option, budget) and option.excess(budget) <= PEAK_CUT
        sliced = tried(replace(option.choice, slice_peak=True)) if near else option
        if sliced.excess(budget) <= 1:
            return sliced
        if option.memory_bytes > WORTH * least:
            return None
        least = option.memory_bytes if count > 1 else math.inf  # the first slices also bring the sums of gradients
        if not _too_large(option, budget):
            option = tried(Choice(frozen, count, recompute=False))
            return option if option.excess(budget) <= 1 else None
    return None


def _too_large(option: Option, budget: Budget) -> bool:
    return budget.memory_bytes is not None and option.memory_bytes > budget.memory_bytes


def _nothing_fits(options: Sequence[Option], budget: Budget) -> BudgetError:
    nearest = min(options, key=lambda o: o.excess(budget))
    wanted = [] if budget.memory_bytes is None else [f"{budget.memory_bytes:,} bytes"]
    wanted += [] if budget.step_s is None else [f"{1e3 * budget.step_s:.3g} ms a step"]
    return BudgetError(
        f"no plan of this model fits into {' and '.join(wanted)}; the nearest takes {nearest.memory_bytes:,} bytes and "
        f"about {1e3 * nearest.step_s:.3g} ms a step: {described(nearest)}. Allow that much, or take a "
        "smaller batch or model",
        nearest,
    )


def described(option: Option) -> str:
    """What an option does, in words."""
    choice, trained = option.choice, option.compiled.report.trained
    slices = f"{choice.micro_batches} micro-batches" if choice.micro_batches > 1 else "the whole batch at once"
    slices += ", the largest values in slices" if choice.slice_peak else ""
    twice = "cheap work done twice" if choice.recompute else "nothing done twice"
    return (
        f"trains {len(trained)} tensors from {trained[0]} on, {choice.frozen_layers} layers frozen, {slices}, {twice}"
    )


def measured_rate(compiled: Compiled, threads: int = 1) -> Rate:
    """What this machine does in a second with the operations of a plan, on zeros."""
    engine = _core.Engine(compiled.plan, threads)
    engine.step()
    operations = _core.describe(compiled.plan)["ops"]
    times_s = np.median(np.asarray(engine.timings(CALIBRATION_STEPS)).reshape(CALIBRATION_STEPS, -1), axis=0)
    product = np.array([OPS[op["op"]].multiply_adds is not no_products for op in operations])
    report = compiled.report
    bytes_moved = _per_second(report.moved_bytes - report.updated_bytes, float(times_s[~product].sum()))
    multiplying_s = float(times_s[product].sum())
    # Part of a product with an update in it is the update's; a guess at that, and never most of all products.
    updating_s = min(report.updated_bytes / bytes_moved, multiplying_s / 2)
    return Rate(_per_second(sum(report.multiply_adds), multiplying_s - updating_s), bytes_moved)


def _per_second(amount: int, seconds: float) -> float:
    """A plan without such operations says nothing of their speed, and never asks."""
    return amount / seconds if amount else math.inf
