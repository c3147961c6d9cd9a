"""The intermediate representation: an immutable graph of typed values.

A Node applies one operation of ops.OPS; a Value is one output of a node. Nodes point at their inputs only, so a graph
is what can be reached from its outputs: a pass builds new nodes and whatever nobody reaches any more is gone. Two nodes
are the same only if they are the same object; two values are the same if they are the same output of the same node.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.compiler import shapes, tensor_shapes
from models.compiler.shapes import Attrs, Infer, Type, Window

__all__ = [
    "Graph",
    "Mode",
    "Node",
    "Role",
    "Type",
    "Value",
    "Window",
    "apply",
    "constant",
    "leaf",
    "rewrite",
    "topological",
]


class Role(IntEnum):
    """Whose a tensor's bytes are; the numbers of the plan format."""

    TEMPORARY = 0
    TRAINED = 1
    FROZEN = 2
    STATE = 3
    BATCH = 4
    SCALAR = 5
    OUTPUT = 6
    CONSTANT = 7


@dataclass(frozen=True, eq=False)
class Node:
    """One application of an operation.

    "leaf" (attribute `name`) and "constant" (attribute `value`) have no inputs and are not in OPS.
    """

    op: str
    inputs: "tuple[Value | None, ...]" = field(repr=False)
    types: tuple[Type, ...]
    attrs: Attrs

    def out(self, index: int = 0) -> "Value":
        """The value of output `index`."""
        return Value(self, index)


@dataclass(frozen=True)
class Value:
    """Output `index` of a node. Arithmetic on values builds nodes, with NumPy's broadcasting."""

    node: Node
    index: int = 0

    @property
    def type(self) -> Type:
        """Element type and shape."""
        return self.node.types[self.index]

    @property
    def shape(self) -> tuple[int, ...]:
        """Size along each axis."""
        return self.type.shape

    @property
    def name(self) -> str:
        """Name of a leaf, empty for any other value."""
        return str(self.node.attrs["name"]) if self.node.op == "leaf" else ""

    def __add__(self, other: "Value | float") -> "Value":
        return binary("add", self, other)

    def __radd__(self, other: "Value | float") -> "Value":
        return binary("add", other, self)

    def __sub__(self, other: "Value | float") -> "Value":
        return binary("sub", self, other)

    def __rsub__(self, other: "Value | float") -> "Value":
        return binary("sub", other, self)

    def __mul__(self, other: "Value | float") -> "Value":
        return binary("mul", self, other)

    def __rmul__(self, other: "Value | float") -> "Value":
        return binary("mul", other, self)

    def __truediv__(self, other: "Value | float") -> "Value":
        return binary("binary", self, other, {"function": "div"})

    def __rtruediv__(self, other: "Value | float") -> "Value":
        return binary("binary", other, self, {"function": "div"})

    def __neg__(self) -> "Value":
        return binary("mul", self, -1.0)

    def __matmul__(self, other: "Value") -> "Value":
        return product(self, other, trans_a=False, trans_b=False)


Operand = Value | float
Rule = Callable[[Node, tuple[Value | None, ...]], Sequence[Value] | None]


@dataclass(frozen=True)
class Mode:
    """A value that is another one in inference, such as a normalised batch.

    Attributes:
        training: while one of `tensors` is trained.
        inference: otherwise.
        tensors: the layer's own parameters, running statistics among them; of a layer without any, as dropout, the
            frozen products above it decide.
    """

    training: Value
    inference: Value
    tensors: tuple[Value, ...]


@dataclass(frozen=True)
class Graph:
    """A model: batch inputs, named parameters, outputs.

    Attributes:
        inputs: leaves the caller fills for each batch.
        parameters: leaves with the names of the tensors they stand for, in order of first use.
        outputs: what the model computes.
        notes: what an import changed or left out, for people.
        rows: a leaf (batch) that says which rows of the batch count (1) and which fill it up (0); None where the
            model treats rows alike.
        updates: parameters that a step moves without a gradient, as running statistics, and what they become.
        last_op: operator that makes output 0.
        modes: values that are others where their layer is frozen, in the order of the model.
    """

    inputs: tuple[Value, ...]
    parameters: tuple[Value, ...]
    outputs: tuple[Value, ...]
    notes: tuple[str, ...] = ()
    rows: Value | None = None
    updates: tuple[tuple[Value, Value], ...] = ()
    last_op: str = ""
    modes: tuple[Mode, ...] = ()


def apply(op: str, infer: Infer, inputs: tuple[Value | None, ...], attrs: Attrs) -> tuple[Value, ...]:
    """Build a node of `op`, its types by `infer`, and answer its outputs."""
    types = infer([None if v is None else v.type for v in inputs], attrs)
    node = Node(op, inputs, types, attrs)
    return tuple(Value(node, i) for i in range(len(types)))


def leaf(name: str, dtype: str, shape: Sequence[int]) -> Value:
    """A named value that comes from outside: a parameter, a batch column, a scalar, a state."""
    return Value(Node("leaf", (), (shapes.checked(f"leaf {name}", (), dtype, shape),), {"name": name}))


def constant(value: ArrayLike | NDArray[Any]) -> Value:
    """A value fixed at compile time: float32 unless it is int32 or uint8 already."""
    array = np.asarray(value)
    kept = array if array.dtype in (np.int32, np.uint8) else array.astype(np.float32)
    kept = np.array(kept, order="C")
    kept.setflags(write=False)
    return Value(Node("constant", (), (shapes.checked("constant", (), str(kept.dtype), kept.shape),), {"value": kept}))


def binary(op: str, a: Operand, b: Operand, attrs: Attrs = MappingProxyType({})) -> Value:
    """An elementwise operation of two operands; a Python number becomes a constant."""
    left = a if isinstance(a, Value) else constant(a)
    right = b if isinstance(b, Value) else constant(b)
    return apply(op, shapes.elementwise(op), (left, right), attrs)[0]


def product(a: Value, b: Value, *, trans_a: bool, trans_b: bool) -> Value:
    """op(a) @ op(b) over the last two axes; one matrix for a whole batch of rows is one large product."""
    flags = {"trans_a": trans_a, "trans_b": trans_b}
    if len(a.shape) == len(b.shape) == 2:
        return apply("gemm", shapes.gemm, (a, b), {**flags, "relu": False})[0]
    if len(b.shape) == 2 and len(a.shape) > 2 and not trans_a:
        rows = product(_reshaped(a, (a.type.size // a.shape[-1], a.shape[-1])), b, trans_a=False, trans_b=trans_b)
        return _reshaped(rows, (*a.shape[:-1], rows.shape[1]))
    rank = max(len(a.shape), len(b.shape))
    left, right = (_reshaped(v, (1,) * (rank - len(v.shape)) + v.shape) for v in (a, b))
    return apply("matmul", tensor_shapes.matmul, (left, right), flags)[0]


def _reshaped(x: Value, shape: tuple[int, ...]) -> Value:
    return x if x.shape == shape else apply("reshape", shapes.reshape, (x,), {"shape": shape})[0]


def topological(outputs: Iterable[Value]) -> list[Node]:
    """Every node the outputs need, producers first; the order depends on the graph alone.

    Iterative: deep networks would exhaust Python's stack.
    """
    order: list[Node] = []
    seen: set[Node] = set()
    stack = [(v.node, False) for v in reversed(list(outputs))]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((v.node, False) for v in reversed(node.inputs) if v is not None and v.node not in seen)
    return order


def depending(outputs: Sequence[Value], on: Iterable[Value]) -> set[Node]:
    """The nodes that depend on one of the given values, those of the values included."""
    reached = {v.node for v in on}
    for node in topological(outputs):
        if any(v is not None and v.node in reached for v in node.inputs):
            reached.add(node)
    return reached


def uses(outputs: Sequence[Value]) -> Counter[Value]:
    """How often each value is read, by nodes and as an output."""
    counts = Counter(outputs)
    for node in topological(outputs):
        counts.update(v for v in node.inputs if v is not None)
    return counts


def rewrite(outputs: Sequence[Value], rule: Rule) -> tuple[Value, ...]:
    """Rebuild a graph bottom up.

    `rule(node, inputs)` sees each old node with its already rewritten inputs and answers values in place of the node's
    outputs, or None to keep the operation. Leaves and constants keep their identity.
    """
    new: dict[Value, Value] = {}
    for node in topological(outputs):
        inputs = tuple(None if v is None else new[v] for v in node.inputs)
        replaced = rule(node, inputs) if node.inputs else None
        if replaced is None:
            kept = node if inputs == node.inputs else Node(node.op, inputs, node.types, node.attrs)
            replaced = [Value(kept, i) for i in range(len(node.types))]
        new.update((Value(node, i), v) for i, v in enumerate(replaced))
    return tuple(new[v] for v in outputs)


def substitute(outputs: Sequence[Value], replacements: Mapping[Value, Value]) -> tuple[Value, ...]:
    """The same graph with some of its values replaced by others of their type."""
    new: dict[Value, Value] = dict(replacements)
    for node in topological(outputs):
        inputs = tuple(None if v is None else new.get(v, v) for v in node.inputs)
        if inputs != node.inputs:
            made = Node(node.op, inputs, node.types, node.attrs)
            for i in range(len(node.types)):
                new.setdefault(Value(node, i), Value(made, i))  # what is replaced stays so, whatever is below it
    return tuple(new.get(v, v) for v in outputs)


def with_attrs(node: Node, inputs: tuple[Value | None, ...], changes: Mapping[str, Any]) -> Node:
    """The same operation with the same output types, other inputs and some other attributes."""
    return Node(node.op, inputs, node.types, {**node.attrs, **changes})
