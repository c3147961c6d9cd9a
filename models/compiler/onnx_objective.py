"""A loss that arrives as ONNX, such as a torch module exported with inputs (output, labels), on top of a model."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from glob import escape

import numpy as np

import models.compiler.graph as g
from models.compiler.errors import ModelError
from models.compiler.freeze import select, settle
from models.compiler.ir import Graph, Value, substitute, topological
from models.compiler.onnx_import import (
    convert_node,
    first_output,
    input_leaf,
    inputs_of,
    read_model,
    reading_of,
)
from models.compiler.onnx_nodes import Term, Training
from models.compiler.onnx_sequences import without_sequences
from models.compiler.randomness import SEED, STEP
from models.compiler.rules import Rule
from models.compiler.training import LABELS, Compiled, compile_loss


@dataclass(frozen=True)
class ImportedLoss:
    """A scalar and what it is made of besides the model.

    Attributes:
        value: the loss.
        columns: batch columns that it reads beside the model's.
        parameters: tensors of its own, such as prototypes.
        notes: for people.
    """

    value: Value
    columns: tuple[Value, ...]
    parameters: tuple[Value, ...]
    notes: tuple[str, ...]


def import_loss(loss: bytes, graph: Graph) -> ImportedLoss:
    """Read a loss for the batch of a model.

    Its first input is the model's first output; an input named "x" is the model's input; every other one is a column
    of the batch under its own name, whose first dimension is the batch. A single column of whole numbers (batch) is
    named "y", as boards know labels. Its first output is the loss, one float32 number.

    Raises:
        UnsupportedOp: an operator the compiler does not have.
        ModelError: anything else that is wrong with the loss, or does not fit the model.
    """
    (x,), output = graph.inputs, graph.outputs[0]
    batch = x.shape[0]
    proto = without_sequences(read_model(loss))
    inputs = inputs_of(proto)
    if not inputs:
        raise ModelError("the loss has no input; its first one must be the model's output")
    first, *others = inputs
    columns = {info.name: input_leaf(info, batch, info.name) for info in others if info.name != x.name}
    columns = _labelled(columns, batch)
    terms: dict[str, Term] = {first.name: output, x.name: x, **columns}
    _check_fits(first.name, [d.dim_value for d in first.type.tensor_type.shape.dim], output)
    shared = Training(
        batch_statistics=False, rows=g.leaf("rows of the loss", "float32", (batch,)), draws=["model"] * _streams(graph)
    )
    reading = reading_of(proto, batch, None, shared)
    notes: list[str] = []
    for node in proto.graph.node:
        convert_node(node, reading, terms, notes)
    value = first_output(proto, terms)
    if shared.updates or value.type.dtype != "float32" or value.type.size != 1:
        raise ModelError(f"a loss is one float32 number without statistics of its own, this one is {value.type}")
    known = {x, *columns.values(), *graph.parameters, SEED, STEP, *((graph.rows,) if graph.rows else ())}
    leaves = [node.out() for node in topological([value]) if node.op == "leaf"]
    own = tuple(v for v in leaves if v not in known)
    _check_names(own, graph)
    return ImportedLoss(g.reshape(value, ()), tuple(columns.values()), own, tuple(notes))


def compile_onnx_loss(  # noqa: PLR0913 - the settings a user may give
    graph: Graph,
    loss: bytes,
    *,
    trainable: Iterable[str] = ("*",),
    frozen: Iterable[str] = (),
    rule: Rule | None = None,
    recompute: bool = True,
) -> Compiled:
    """Compile a model under a loss given as ONNX; the arguments are those of compile_training and import_loss.

    Rows with a label of -1 fill up a batch: they stay out of a model's batch statistics, and out of ONNX's own
    cross-entropy losses. Any other loss sees them, so it must take care of them itself.
    """
    made = import_loss(loss, graph)
    trained = select([p.name for p in (*graph.parameters, *made.parameters)], trainable, frozen)
    graph = settle(graph, trained)
    made = import_loss(loss, graph)
    labels = next((v for v in made.columns if v.name == LABELS and v.type.dtype == "int32"), None)
    rows = g.constant(np.ones(graph.inputs[0].shape[0])) if labels is None else g.labelled_rows(labels)
    counting = {} if graph.rows is None else {graph.rows: rows}
    value, *moved = substitute([made.value, *(new for _, new in graph.updates)], counting)
    return compile_loss(
        value,
        _read((*graph.inputs, *made.columns), [value, *moved]),
        trainable=[escape(name) for name in trained],
        rule=rule,
        notes=(*graph.notes, *made.notes),
        updates=tuple(zip((slot for slot, _ in graph.updates), moved, strict=True)),
        recompute=recompute,
    )


def _read(columns: Sequence[Value], outputs: Sequence[Value]) -> list[Value]:
    """The columns that a graph depends on."""
    nodes = set(topological(outputs))
    return [v for v in columns if v.node in nodes]


def _labelled(columns: Mapping[str, Value], batch: int) -> dict[str, Value]:
    """A single column of whole numbers (batch) has the name of labels."""
    whole = [name for name, v in columns.items() if v.type.dtype == "int32" and v.shape == (batch,)]
    return {**columns, whole[0]: g.leaf(LABELS, "int32", (batch,))} if len(whole) == 1 else dict(columns)


def _check_fits(name: str, sizes: Sequence[int], output: Value) -> None:
    """The dimensions a loss states, 0 where it leaves them open, are those of the model's output."""
    if len(sizes) != len(output.shape) or any(
        n not in (0, m) for n, m in list(zip(sizes, output.shape, strict=True))[1:]
    ):
        raise ModelError(f"input {name!r} of the loss is {list(sizes)}, the model's output is {list(output.shape)}")


def _check_names(own: Sequence[Value], graph: Graph) -> None:
    taken = {p.name for p in graph.parameters} & {v.name for v in own}
    if taken:
        raise ModelError(f"tensors {', '.join(sorted(taken))} of the loss have names of the model's; rename them")


def _streams(graph: Graph) -> int:
    """How many streams of random numbers a model uses."""
    outputs = [*graph.outputs, *(new for _, new in graph.updates)]
    return 1 + max((node.attrs["stream"] for node in topological(outputs) if node.op == "random"), default=-1)
