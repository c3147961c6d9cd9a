"""A batch in slices: the step's program for a few rows, repeated in the same memory, and one update at the end.

The mean over a batch is the sum of its slices' parts (softmax_xent with first_row), so gradients add up to those of the
whole batch. The program of one slice is made once; here it is written out for every slice, one after the other, with
sums of the gradients between them. Whatever does not depend on the rows is computed once.

A gradient that is a product over rows is not summed where it is larger than the rows it is made of: those are kept,
slice below slice, and multiplied once at the end, as without slices.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import models.compiler.graph as g
from models.compiler.boxes import Box
from models.compiler.emit import MAX_RECORDS
from models.compiler.errors import CompileError
from models.compiler.ir import Node, Value, topological, with_attrs
from models.compiler.ir import product as matrix_product
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
class Total:
    """The gradient of the whole batch.

    Attributes:
        made_of: the gradient itself as one value; or two, all rows of the operands of a product.
        product: that product as a slice has it.
    """

    made_of: tuple[Value, ...]
    product: Node | None = None

    def of(self, values: Sequence[Value]) -> Value:
        """The gradient where `values` stand for `made_of`."""
        if self.product is None:
            return values[0]
        flags = self.product.attrs
        return matrix_product(*values, trans_a=flags["trans_a"], trans_b=flags["trans_b"])


@dataclass(frozen=True)
class Unrolled:
    """The programs of all slices.

    Attributes:
        loss: of the whole batch.
        gradients: of the whole batch.
        moved: what the last slice makes of the slots, each slice going on from the one before.
        stages: number of the slice that each node belongs to; the nodes of none run whenever they are needed.
    """

    loss: Value
    gradients: tuple[Total, ...]
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
    products = {v: v.node for v in gradients if _larger_than_its_rows(v.node, slices)}
    summed = (loss, *(v for v in gradients if v not in products))
    kept = tuple(dict.fromkeys(v for node in products.values() for v in _operands(node) if v not in slices.columns))
    template = (*summed, *kept, *(new for _, new in targets))
    _check_size(template, slices.count)
    totals: dict[Value, Value] = {}
    slots: dict[Value, Value] = {}
    stages: dict[Node, int] = {}
    for number in range(slices.count):
        outputs = _instance(template, number, {**_rows_of(slices.columns, number), **slots})
        parts, moved = dict(zip((*summed, *kept), outputs, strict=False)), outputs[len(summed) + len(kept) :]
        totals |= {v: totals[v] + parts[v] if v in totals else parts[v] for v in summed}
        totals |= {v: _below(totals.get(v), parts[v], number, slices.count) for v in kept}
        slots = dict(zip((slot for slot, _ in targets), moved, strict=True))
        for node in topological([*totals.values(), *moved]):
            stages.setdefault(node, number)
    whole = {v: slices.columns.get(v) or totals[v] for node in products.values() for v in _operands(node)}
    found = (
        Total(tuple(whole[u] for u in _operands(v.node)), v.node) if v in products else Total((totals[v],))
        for v in gradients
    )
    return Unrolled(totals[loss], tuple(found), tuple(slots.values()), stages)


def _operands(product: Node) -> tuple[Value, Value]:
    a, b = product.inputs[:2]
    assert a is not None
    assert b is not None
    return a, b


def _larger_than_its_rows(node: Node, slices: Slices) -> bool:
    """Whether the rows of all slices that a gradient is the product of take fewer bytes than it does."""
    if node.op != "gemm" or node.attrs["relu"] or any(v is not None for v in node.inputs[2:]):
        return False
    if (node.attrs["trans_a"], node.attrs["trans_b"]) != (True, False):
        return False  # only then it is a sum over the rows of both
    rows = sum(v.type.nbytes for v in _operands(node) if v not in slices.columns)
    return rows * slices.count < node.types[0].nbytes


def _below(whole: Value | None, part: Value, number: int, count: int) -> Value:
    """The rows of slice `number` in their place among those of all slices."""
    places = math.prod(part.shape)
    return g.strided_copy(
        part, Box(0, number * places, ((places, 1, 1),)), (part.shape[0] * count, *part.shape[1:]), whole
    )


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
