"""A batch in slices: the step's program for a few rows, repeated in the same memory, and one update at the end.

The mean over a batch is the sum of its slices' parts (softmax_xent with first_row), so gradients add up to those of the
whole batch. The program of one slice is made once; here it is written out for every slice, one after the other, with
sums of the gradients between them. Whatever does not depend on the rows is computed once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import models.compiler.graph as g
from models.compiler.emit import MAX_RECORDS
from models.compiler.errors import CompileError
from models.compiler.ir import Node, Value, topological, with_attrs
from models.compiler.schedule import is_kernel


@dataclass(frozen=True)
class Slices:
    """How a batch is cut.

    Attributes:
        count: of slices.
        columns: for each leaf that holds the rows of one slice, the value that holds all `count` times as many rows.
    """

    count: int
    columns: Mapping[Value, Value]


@dataclass(frozen=True)
class Unrolled:
    """The programs of all slices.

    Attributes:
        loss: of the whole batch.
        gradients: summed over the slices.
        moved: what the last slice makes of the slots, each slice going on from the one before.
        stages: number of the slice that each node belongs to; the nodes of none run whenever they are needed.
    """

    loss: Value
    gradients: tuple[Value, ...]
    moved: tuple[Value, ...]
    stages: Mapping[Node, int]


def unroll(loss: Value, gradients: Sequence[Value], targets: Sequence[tuple[Value, Value]], slices: Slices) -> Unrolled:
    """Write the program of slice 0 out for all slices.

    Args:
        loss: the part of slice 0.
        gradients: of that part.
        targets: slots that a slice moves without a gradient, and what they become.
        slices: how the batch is cut.

    Raises:
        CompileError: the plan would have more operations than a reader takes.
    """
    template = (loss, *gradients, *(new for _, new in targets))
    _check_size(template, slices.count)
    totals: list[Value] = []
    slots: dict[Value, Value] = {}
    stages: dict[Node, int] = {}
    for number in range(slices.count):
        outputs = _instance(template, number, {**_rows_of(slices.columns, number), **slots})
        parts, moved = outputs[: 1 + len(gradients)], outputs[1 + len(gradients) :]
        totals = [a + b for a, b in zip(totals, parts, strict=True)] if totals else list(parts)
        slots = dict(zip((slot for slot, _ in targets), moved, strict=True))
        for node in topological([*totals, *moved]):
            stages.setdefault(node, number)
    return Unrolled(totals[0], tuple(totals[1:]), tuple(slots.values()), stages)


def _check_size(template: Sequence[Value], count: int) -> None:
    """Refuse what would be refused at the end anyway, before it is written out."""
    operations = sum(is_kernel(node) for node in topological(template))
    if operations * count > MAX_RECORDS:
        raise CompileError(
            f"{count} micro-batches of {operations} operations are more than the {MAX_RECORDS} operations of a plan; "
            "take fewer"
        )


def _rows_of(columns: Mapping[Value, Value], number: int) -> dict[Value, Value]:
    """For each leaf of one slice its rows of the whole."""
    return {
        leaf: g.slice(whole, [number * leaf.shape[0], *[0] * (len(leaf.shape) - 1)], leaf.shape, [1] * len(leaf.shape))
        for leaf, whole in columns.items()
    }


def _instance(template: Sequence[Value], number: int, given: Mapping[Value, Value]) -> tuple[Value, ...]:
    """The template with other values for some leaves, and with the labels of slice `number`."""
    new = dict(given)
    for node in topological(template):
        inputs = tuple(None if v is None else new.get(v, v) for v in node.inputs)
        rows = {"first_row": number * node.inputs[0].shape[0]} if "first_row" in node.attrs and node.inputs[0] else {}
        if inputs != node.inputs or (rows and number):
            made = with_attrs(node, inputs, rows)
            new.update((Value(node, i), Value(made, i)) for i in range(len(node.types)))
    return tuple(new.get(v, v) for v in template)
