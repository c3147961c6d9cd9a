"""The gradient of each operation, written in the graph language.

A rule takes a node and the gradients of its outputs (None: an output nobody depends on) and answers one gradient, or
None, for each input. Rules build more nodes than are needed; those nobody asks for are never reached.
"""

import math
from collections.abc import Callable, Sequence

import models.compiler.graph as g
from models.compiler.errors import NotDifferentiable
from models.compiler.ir import Node, Value

Gradients = tuple[Value | None, ...]
Gradient = Callable[[Node, Sequence[Value | None]], Gradients]


def operands(node: Node) -> list[Value]:
    """The inputs that are present."""
    return [v for v in node.inputs if v is not None]


def first(d_outputs: Sequence[Value | None]) -> Value:
    """The gradient of output 0, which the loss depends on."""
    assert d_outputs[0] is not None, "autodiff asks only for nodes the loss depends on"
    return d_outputs[0]


def _unfused(node: Node) -> None:
    if node.attrs["relu"]:
        raise NotDifferentiable(node.op, "relu is already fused into it; differentiate before fusing")


def unbroadcast(d: Value, shape: tuple[int, ...]) -> Value:
    """Sum d over the axes along which an operand of `shape` was repeated."""
    lead = len(d.shape) - len(shape)
    repeated = [a for a, n in enumerate(d.shape) if a < lead or (shape[a - lead] == 1 and n != 1)]
    return g.reshape(g.sum(d, repeated, keepdims=True), shape) if repeated else d


def add(node: Node, d_outputs: Sequence[Value | None]) -> Gradients:
    """Both operands get d, summed where they were repeated."""
    a, b = operands(node)
    d = first(d_outputs)
    return unbroadcast(d, a.shape), unbroadcast(d, b.shape)


def sub(node: Node, d_outputs: Sequence[Value | None]) -> Gradients:
    """As add, with the sign of the second turned."""
    a, b = operands(node)
    d = first(d_outputs)
    return unbroadcast(d, a.shape), -unbroadcast(d, b.shape)


def mul(node: Node, d_outputs: Sequence[Value | None]) -> Gradients:
    """Each operand gets d times the other."""
    a, b = operands(node)
    d = first(d_outputs)
    return unbroadcast(d * b, a.shape), unbroadcast(d * a, b.shape)


def gemm(node: Node, d_outputs: Sequence[Value | None]) -> Gradients:
    """With C = op(A) op(B): dop(A) = dC op(B)^T and dop(B) = op(A)^T dC, transposed back where op transposes."""
    _unfused(node)
    d = first(d_outputs)
    a, b, *bias = operands(node)
    ta, tb = node.attrs["trans_a"], node.attrs["trans_b"]
    d_a = g.matmul(b, d, trans_a=tb, trans_b=True) if ta else g.matmul(d, b, trans_b=not tb)
    d_b = g.matmul(d, a, trans_a=True, trans_b=ta) if tb else g.matmul(a, d, trans_a=not ta)
    return (d_a, d_b, *(g.sum(d, [0]) for _ in bias))


def conv(node: Node, d_outputs: Sequence[Value | None]) -> Gradients:
    """Bilinear: each operand has its own gradient kernel."""
    _unfused(node)
    d = first(d_outputs)
    x, w, *bias = operands(node)
    window, groups = node.attrs["window"], node.attrs["groups"]
    d_x = g.conv_grad_x(d, w, x.shape, window, groups)
    d_w = g.conv_grad_w(d, x, w.shape, window, groups)
    return (d_x, d_w, *(g.sum(d, [0, 2, 3]) for _ in bias))


def conv_grad_x(node: Node, d_outputs: Sequence[Value | None]) -> Gradients:
    """Bilinear: the sum of u * d_x is the sum of conv(u, w) * d_y."""
    d_y, w = operands(node)
    u = first(d_outputs)
    window, groups = node.attrs["window"], node.attrs["groups"]
    return g.conv(u, w, window, groups), g.conv_grad_w(d_y, u, w.shape, window, groups)


def conv_grad_w(node: Node, d_outputs: Sequence[Value | None]) -> Gradients:
    """Bilinear: the sum of u * d_w is the sum of conv(x, u) * d_y."""
    d_y, x = operands(node)
    u = first(d_outputs)
    window, groups = node.attrs["window"], node.attrs["groups"]
    return g.conv(x, u, window, groups), g.conv_grad_x(d_y, u, x.shape, window, groups)


def relu(node: Node, d_outputs: Sequence[Value | None]) -> Gradients:
    """Passes where relu's output is positive."""
    return (g.relu_grad(first(d_outputs), node.out()),)


def relu_grad(node: Node, d_outputs: Sequence[Value | None]) -> Gradients:
    """Linear in d_y; flat in y wherever it has a derivative."""
    return g.relu_grad(first(d_outputs), operands(node)[1]), None


def maxpool(node: Node, d_outputs: Sequence[Value | None]) -> Gradients:
    """Passes to the places the maxima came from."""
    (x,) = operands(node)
    attrs = node.attrs
    return (g.max_pool_grad(first(d_outputs), node.out(1), x.shape, attrs["kernel"], attrs["window"]),)


def avgpool(node: Node, d_outputs: Sequence[Value | None]) -> Gradients:
    """Spreads each mean over its window."""
    (x,) = operands(node)
    kernel, window, counted = (node.attrs[k] for k in ("kernel", "window", "count_include_pad"))
    return (g.avg_pool_grad(first(d_outputs), x.shape, kernel, window, count_include_pad=counted),)


def avgpool_grad(node: Node, d_outputs: Sequence[Value | None]) -> Gradients:
    """Linear: its transpose is the pool itself."""
    kernel, window, counted = (node.attrs[k] for k in ("kernel", "window", "count_include_pad"))
    return (g.avg_pool(first(d_outputs), kernel, window, count_include_pad=counted),)


def reduce_sum(node: Node, d_outputs: Sequence[Value | None]) -> Gradients:
    """Repeats d along the summed axes."""
    (x,) = operands(node)
    axes, scale = node.attrs["axes"], node.attrs["scale"]
    d = g.reshape(first(d_outputs), [1 if a in axes else n for a, n in enumerate(x.shape)])
    return (g.broadcast_to(d if math.isclose(scale, 1.0, rel_tol=0.0) else d * scale, x.shape),)


def broadcast(node: Node, d_outputs: Sequence[Value | None]) -> Gradients:
    """Sums d over the repeated axes."""
    return (unbroadcast(first(d_outputs), operands(node)[0].shape),)


def transpose(node: Node, d_outputs: Sequence[Value | None]) -> Gradients:
    """Moves the axes back."""
    axes = node.attrs["axes"]
    return (g.transpose(first(d_outputs), [axes.index(a) for a in range(len(axes))]),)


def reshape(node: Node, d_outputs: Sequence[Value | None]) -> Gradients:
    """Restores the shape."""
    return (g.reshape(first(d_outputs), operands(node)[0].shape),)


def softmax_xent(node: Node, d_outputs: Sequence[Value | None]) -> Gradients:
    """Known for the loss with respect to the logits."""
    if d_outputs[0] is None or d_outputs[1] is not None:
        raise NotDifferentiable("softmax_xent", "only its loss has a gradient here, its probabilities have none")
    return g.softmax_xent_grad(node.out(1), operands(node)[1], d_outputs[0]), None


def unavailable(node: Node, d_outputs: Sequence[Value | None]) -> Gradients:
    """Say which operation cannot be differentiated."""
    del d_outputs
    raise NotDifferentiable(node.op, "its derivative is not among the operations yet")
