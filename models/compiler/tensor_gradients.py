"""The gradients of what maps, picks and moves elements; those of the other operations are in gradients.py."""

import math
from collections.abc import Callable, Sequence

import models.compiler.graph as g
from models.compiler.boxes import Box
from models.compiler.elementary import unary
from models.compiler.gradients import Gradients, first, operands, unbroadcast
from models.compiler.ir import Node, Value

# f'(x) from x and y = f(x); None where it is 0 wherever it exists.
SLOPES: dict[str, Callable[[Value, Value], Value] | None] = {
    "exp": lambda _, y: y,
    "log": lambda x, _: unary("reciprocal", x),
    "sqrt": lambda _, y: g.div(0.5, y),
    "reciprocal": lambda _, y: -g.square(y),
    "tanh": lambda _, y: 1.0 - g.square(y),
    "sigmoid": lambda _, y: y * (1.0 - y),
    "erf": lambda x, _: g.exp(-g.square(x)) * (2.0 / math.sqrt(math.pi)),
    "softplus": lambda x, _: g.sigmoid(x),
    "abs": lambda x, _: unary("sign", x),
    "sign": None,
    "floor": None,
    "ceil": None,
    "round": None,
    "sin": lambda x, _: unary("cos", x),
    "cos": lambda x, _: -unary("sin", x),
}


def unary_function(node: Node, d_outputs: Sequence[Value | None]) -> Gradients:
    """The slope times d."""
    slope = SLOPES[node.attrs["function"]]
    return (None if slope is None else first(d_outputs) * slope(operands(node)[0], node.out()),)


def _pow(a: Value, b: Value, c: Value, d: Value) -> Gradients:
    """To a b a^(b-1); to b a^b log(a), which is 0 where a is not positive (as in torch at a = 0)."""
    positive = g.less(0.0, a)
    log = g.log(g.where(positive, a, 1.0))
    return unbroadcast(d * b * g.pow(a, b - 1.0), a.shape), unbroadcast(d * c * log, b.shape)


def _div(a: Value, b: Value, c: Value, d: Value) -> Gradients:
    part = d / b
    return unbroadcast(part, a.shape), -unbroadcast(part * c, b.shape)


def _chosen(x: Value, other: Value, *, smallest: bool) -> Value:
    """1 where x is the one chosen; where both are equal, 1/2, or all for x against a number."""
    better = g.less(x, other) if smallest else g.less(other, x)
    fixed = other.node.op == "constant"
    return better if fixed else better + g.equal(x, other) * 0.5


def binary_function(node: Node, d_outputs: Sequence[Value | None]) -> Gradients:
    """By function; comparisons are flat."""
    (a, b), d = operands(node), first(d_outputs)
    match node.attrs["function"]:
        case "div":
            return _div(a, b, node.out(), d)
        case "pow":
            return _pow(a, b, node.out(), d)
        case "min" | "max" as function:
            s = function == "min"
            to_a, to_b = _chosen(a, b, smallest=s), _chosen(b, a, smallest=s)
            return unbroadcast(d * to_a, a.shape), unbroadcast(d * to_b, b.shape)
        case _:
            return None, None


def where(node: Node, d_outputs: Sequence[Value | None]) -> Gradients:
    """To whichever was taken."""
    (condition, a, b), d = operands(node), first(d_outputs)
    return None, unbroadcast(g.where(condition, d, 0.0), a.shape), unbroadcast(g.where(condition, 0.0, d), b.shape)


def flat(node: Node, d_outputs: Sequence[Value | None]) -> Gradients:
    """No gradient: the operation counts, or was told to be a constant."""
    del d_outputs
    return (None,) * len(node.inputs)


def _kept(node: Node) -> tuple[int, ...]:
    (x,), axes = operands(node), node.attrs["axes"]
    return tuple(1 if a in axes else n for a, n in enumerate(x.shape))


def minmax(node: Node, d_outputs: Sequence[Value | None]) -> Gradients:
    """Equal shares to the places that hold the extreme."""
    (x,), shape = operands(node), _kept(node)
    at = g.equal(x, g.reshape(node.out(), shape))
    share = g.reshape(first(d_outputs), shape) / g.sum(at, node.attrs["axes"], keepdims=True)
    return (at * share,)


def topk(node: Node, d_outputs: Sequence[Value | None]) -> Gradients:
    """Back to the places the values came from."""
    (x,) = operands(node)
    return (g.scatter_add(first(d_outputs), node.out(1), x.shape, node.attrs["axis"], elements=True),)


def cumsum(node: Node, d_outputs: Sequence[Value | None]) -> Gradients:
    """Linear: the sums from the other end."""
    attrs = node.attrs
    turned = g.cumsum(first(d_outputs), attrs["axis"], exclusive=attrs["exclusive"], reverse=not attrs["reverse"])
    return (turned,)


def strided_copy(node: Node, d_outputs: Sequence[Value | None]) -> Gradients:
    """Linear: x gets the box of d, base gets d with the box emptied."""
    x, base = node.inputs
    assert x is not None
    d, box = first(d_outputs), node.attrs["box"]
    d_x = g.strided_copy(d, box.turned(), x.shape)
    if base is None:
        return d_x, None
    empty = Box(0, box.y_offset, tuple((n, 0, y) for n, _, y in box.axes))
    return d_x, g.strided_copy(g.constant([0.0]), empty, base.shape, base=d)


def gather(node: Node, d_outputs: Sequence[Value | None]) -> Gradients:
    """Linear in x: every d to the place it was taken from."""
    x, index = operands(node)
    return g.scatter_add(first(d_outputs), index, x.shape, node.attrs["axis"], elements=node.attrs["elements"]), None


def scatter_add(node: Node, d_outputs: Sequence[Value | None]) -> Gradients:
    """Linear: the adjoint's adjoint."""
    index = operands(node)[1]
    return g.gather(first(d_outputs), index, node.attrs["axis"], elements=node.attrs["elements"]), None


def matmul(node: Node, d_outputs: Sequence[Value | None]) -> Gradients:
    """As gemm, summed over the axes along which an operand was repeated."""
    (a, b), d = operands(node), first(d_outputs)
    ta, tb = node.attrs["trans_a"], node.attrs["trans_b"]
    d_a = g.matmul(b, d, trans_a=tb, trans_b=True) if ta else g.matmul(d, b, trans_b=not tb)
    d_b = g.matmul(d, a, trans_a=True, trans_b=ta) if tb else g.matmul(a, d, trans_a=not ta)
    return unbroadcast(d_a, a.shape), unbroadcast(d_b, b.shape)
