"""Rewriting to fewer and cheaper operations with the same values.

Each rule looks at one operation and answers a value in place of its result, or None. Reshapes cost nothing
in a plan, so they are moved behind elementwise work, where they no longer stand between operations that can
be fused.
"""

from collections.abc import Callable, Sequence

import numpy as np

import models.compiler.graph as g
from models.compiler.boxes import apart
from models.compiler.evaluate import run_node
from models.compiler.ir import Node, Value, apply, rewrite
from models.compiler.ops import OPS
from models.compiler.shapes import broadcast_shape
from models.compiler.strided import added_to_few

Inputs = tuple[Value | None, ...]
Local = Callable[[Node, Inputs], Value | None]
MAX_ROUNDS = 16  # each round shortens a chain; real graphs settle in two or three
MAX_FOLDED_BYTES = 4096  # constants that grow beyond their operands are computed on the board instead
ELEMENTWISE = ("add", "sub", "mul")


def _reshape_of_reshape(node: Node, inputs: Inputs) -> Value | None:
    (x,) = inputs
    assert x is not None
    shape = node.types[0].shape
    if x.shape == shape:
        return x
    if x.node.op == "reshape" and x.node.inputs[0] is not None:
        return g.reshape(x.node.inputs[0], shape)
    if x.node.op == "constant":
        return g.constant(x.node.attrs["value"].reshape(shape))
    return None


def _relu_of(node: Node, inputs: Inputs) -> Value | None:
    (x,) = inputs
    assert x is not None
    if x.node.op == "relu":
        return x
    if x.node.op == "reshape" and x.node.inputs[0] is not None:
        return g.reshape(g.relu(x.node.inputs[0]), node.types[0].shape)
    return None


def _relu_grad(node: Node, inputs: Inputs) -> Value | None:
    d_y, y = inputs
    assert d_y is not None
    assert y is not None
    return _relu_grad_before_pool(d_y, y) or _relu_grad_of_reshape(node, d_y, y)


def _relu_grad_before_pool(d_y: Value, y: Value) -> Value | None:
    """Mask the gradient of a maximum pool's small output instead of that of its input y.

    A place that gets any gradient holds the maximum of its window, so it is positive where the maximum is. After this
    nobody needs the large y once it is pooled, which is most of what a small convolutional network keeps.
    """
    if d_y.node.op != "maxpool_grad":
        return None
    d_pooled, index = d_y.node.inputs
    assert d_pooled is not None
    assert index is not None
    pool = index.node
    if pool.op != "maxpool" or pool.inputs[0] != y:
        return None
    masked = g.relu_grad(d_pooled, pool.out(0))
    return g.max_pool_grad(masked, index, y.shape, pool.attrs["kernel"], pool.attrs["window"])


def _relu_grad_of_reshape(node: Node, d_y: Value, y: Value) -> Value | None:
    if y.node.op != "reshape" or y.node.inputs[0] is None:
        return None
    inner = y.node.inputs[0]
    return g.reshape(g.relu_grad(g.reshape(d_y, inner.shape), inner), node.types[0].shape)


def _transpose_of(node: Node, inputs: Inputs) -> Value | None:
    (x,) = inputs
    assert x is not None
    axes = node.attrs["axes"]
    if axes == tuple(range(len(axes))):
        return x
    if x.node.op == "transpose" and x.node.inputs[0] is not None:
        return g.transpose(x.node.inputs[0], [x.node.attrs["axes"][a] for a in axes])
    moved = [a for a in axes if x.shape[a] != 1]  # moving only axes of size 1 leaves the bytes in place
    return g.reshape(x, node.types[0].shape) if moved == sorted(moved) else None


def _gemm_of_transpose(node: Node, inputs: Inputs) -> Value | None:
    a, b, *bias = inputs
    assert a is not None
    assert b is not None
    flip_a, flip_b = a.node.op == "transpose", b.node.op == "transpose"
    if bias or node.attrs["relu"] or not (flip_a or flip_b):
        return None
    left, right = (a.node.inputs[0] if flip_a else a), (b.node.inputs[0] if flip_b else b)
    assert left is not None
    assert right is not None
    return g.matmul(left, right, trans_a=node.attrs["trans_a"] != flip_a, trans_b=node.attrs["trans_b"] != flip_b)


def _trivial_sum(node: Node, inputs: Inputs) -> Value | None:
    (x,) = inputs
    assert x is not None
    if any(x.shape[a] != 1 for a in node.attrs["axes"]):
        return None
    scale = node.attrs["scale"]
    return g.reshape(x if scale == 1 else x * scale, node.types[0].shape)


def _whole_average(node: Node, inputs: Inputs) -> Value | None:
    """An average over all places is a sum: it fuses with what makes its operand, and so does its gradient."""
    (x,) = inputs
    assert x is not None
    if node.attrs["kernel"] != x.shape[2:] or node.attrs["window"].pads != (0, 0, 0, 0):
        return None
    return g.mean(x, [2, 3], keepdims=True)


def _trivial_broadcast(node: Node, inputs: Inputs) -> Value | None:
    (x,) = inputs
    assert x is not None
    return x if x.shape == node.types[0].shape else None


def _is_constant(v: Value, number: float) -> bool:
    return v.node.op == "constant" and bool(np.all(v.node.attrs["value"] == number))


def _add(node: Node, inputs: Inputs) -> Value | None:
    a, b = inputs
    assert a is not None
    assert b is not None
    placed = _beside(a, b) or _beside(b, a) or added_to_few(a, b) or added_to_few(b, a)
    return placed or _elementwise(node, inputs)


def _beside(whole: Value, part: Value) -> Value | None:
    """A sum of pieces that lie apart in zeros is their copy to one tensor, as in the gradient of what was cut up."""
    if not _in_zeros(part) or part.node.inputs[1] is not None or whole.shape != part.shape:
        return None
    piece, box = part.node.inputs[0], part.node.attrs["box"]
    below: Value | None = whole
    while below is not None:
        if not _in_zeros(below) or not apart(below.node.attrs["box"], box):
            return None
        below = below.node.inputs[1]
    assert piece is not None
    return g.strided_copy(piece, box, part.shape, whole)


def _in_zeros(v: Value) -> bool:
    return v.node.op == "strided_copy" and (v.node.inputs[1] is not None or v.node.attrs["fill"] == 0.0)


def _elementwise(node: Node, inputs: Inputs) -> Value | None:
    a, b = inputs
    assert a is not None
    assert b is not None
    neutral = 1.0 if node.op == "mul" else 0.0
    if a.shape == node.types[0].shape and _is_constant(b, neutral):
        return a
    if node.op != "sub" and b.shape == node.types[0].shape and _is_constant(a, neutral):
        return b
    return _elementwise_of_broadcast(node, a, b) or _elementwise_of_reshapes(node, a, b)


def _elementwise_of_broadcast(node: Node, a: Value, b: Value) -> Value | None:
    """The operation repeats its operands itself."""
    small = [v.node.inputs[0] if v.node.op == "broadcast" else v for v in (a, b)]
    left, right = small
    if (left, right) == (a, b) or left is None or right is None:
        return None
    made = LANGUAGE[node.op](left, right)
    return made if made.shape == node.types[0].shape else g.broadcast_to(made, node.types[0].shape)


def _elementwise_of_reshapes(node: Node, a: Value, b: Value) -> Value | None:
    """op(reshape(p), reshape(q)) = reshape(op(p, q)) where p and q have one shape, or q is a single number."""
    p, q = (v.node.inputs[0] if v.node.op == "reshape" else None for v in (a, b))
    if p is not None and b.shape == ():
        q = b
    elif q is not None and a.shape == ():
        p = a
    elif p is None or q is None or p.shape != q.shape or a.shape != b.shape:
        return None
    assert p is not None
    assert q is not None
    return g.reshape(LANGUAGE[node.op](p, q), node.types[0].shape)


def _map_of_broadcast(node: Node, inputs: Inputs) -> Value | None:
    """A function of several operands repeats them itself, as long as one has the shape of the result."""
    small = tuple(v.node.inputs[0] if v is not None and v.node.op == "broadcast" else v for v in inputs)
    present = [v for v in small if v is not None]
    if small == inputs or broadcast_shape(node.op, [v.type for v in present]) != node.types[0].shape:
        return None
    return apply(node.op, OPS[node.op].infer, small, node.attrs)[0]


LANGUAGE: dict[str, Callable[[Value, Value], Value]] = {"add": g.add, "sub": g.sub, "mul": g.mul}
RULES: dict[str, Local] = {
    "reshape": _reshape_of_reshape,
    "relu": _relu_of,
    "relu_grad": _relu_grad,
    "transpose": _transpose_of,
    "gemm": _gemm_of_transpose,
    "reduce_sum": _trivial_sum,
    "avgpool": _whole_average,
    "broadcast": _trivial_broadcast,
    "binary": _map_of_broadcast,
    "where": _map_of_broadcast,
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    "add": _add,
}


def simplify(outputs: Sequence[Value]) -> tuple[Value, ...]:
    """Apply every rule, and share equal nodes, until nothing changes."""
    current = tuple(outputs)
    for _ in range(MAX_ROUNDS):
        new = share(rewrite(current, _apply_rule))
        if _same(current, new):
            return new
        current = new
    return current


def _apply_rule(node: Node, inputs: Inputs) -> Sequence[Value] | None:
    if _foldable(node, inputs):
        given = [None if v is None else v.node.attrs["value"] for v in inputs]
        return [g.constant(a) for a in run_node(node, given)]
    rule = RULES.get(node.op)
    replaced = rule(node, inputs) if rule else None
    return None if replaced is None else [replaced]


def _foldable(node: Node, inputs: Inputs) -> bool:
    present = [v for v in inputs if v is not None]
    if node.op == "broadcast" or any(v.node.op != "constant" for v in present):
        return False
    return sum(t.nbytes for t in node.types) <= max(MAX_FOLDED_BYTES, *(v.type.nbytes for v in present))


def _same(a: Sequence[Value], b: Sequence[Value]) -> bool:
    """Whether a pass left the graph alone: a rewrite keeps every node whose inputs it keeps."""
    return tuple(a) == tuple(b)


def share(outputs: Sequence[Value]) -> tuple[Value, ...]:
    """Compute equal things once: one node for each operation, inputs and attributes."""
    known: dict[object, Node] = {}

    def rule(node: Node, inputs: Inputs) -> Sequence[Value] | None:
        key = (node.op, inputs, node.types, tuple(sorted(node.attrs.items())))
        first = known.setdefault(key, Node(node.op, inputs, node.types, node.attrs) if inputs != node.inputs else node)
        return [Value(first, i) for i in range(len(first.types))]

    return rewrite(outputs, rule)
