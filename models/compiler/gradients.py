"""The gradient of each operation, written in the graph language.

A rule takes a node and the gradients of its outputs (None: an output nobody depends on) and answers one gradient, or
None, for each input. Rules build more nodes than are needed; those nobody asks for are never reached.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

import models.compiler.graph as g
from models.compiler.errors import NotDifferentiable
from models.compiler.ir import Node, Value, Window

EXACT_WHOLE = 1 << 24  # float32 holds every whole number up to here
EXACT_QUOTIENT = 1 << 20  # and the whole part of a quotient of two of them, half a unit off the edge, up to here

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
    """Each operand gets d times the other; of a square both parts at once."""
    a, b = operands(node)
    d = first(d_outputs)
    if a == b:
        return d * 2.0 * a, None
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
    if d_y == x and u.shape[2:] == (1, 1) and (window, groups) == (Window(), 1):
        return g.conv(x, u + g.transpose(u, (1, 0, 2, 3))), None  # both gradients at once
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


def maxpool_grad(node: Node, d_outputs: Sequence[Value | None]) -> Gradients:
    """Linear in d_y: each gets the u of the place its maximum came from, which is taken as fixed."""
    d_y, index = operands(node)
    u, (kh, kw), window = first(d_outputs), node.attrs["kernel"], node.attrs["window"]
    n, c, h, w = u.shape
    if h * w > EXACT_WHOLE or kh * kw > EXACT_QUOTIENT:
        raise NotDifferentiable(node.op, f"places of a {kh} x {kw} window in {h} x {w} have no numbers in float32")
    tap = g.cast(index, "float32")
    row = g.unary("floor", (tap + 0.5) * (1.0 / kw))
    down = _begins(window, 0, d_y.shape) + row * float(window.dilations[0])
    across = _begins(window, 1, d_y.shape) + (tap - row * float(kw)) * float(window.dilations[1])
    places = g.reshape(g.cast(down * float(w) + across, "int32"), (n * c, -1))
    return g.reshape(g.gather(g.reshape(u, (n * c, h * w)), places, 1, elements=True), d_y.shape), None


def _begins(window: Window, axis: int, shape: tuple[int, ...]) -> Value:
    """Where each window of a pool with results of `shape` begins along `axis` (0 down, 1 across)."""
    count = shape[axis + 2]
    begin = np.arange(count, dtype=np.float32) * window.strides[axis] - window.pads[axis]
    return g.constant(begin.reshape((1, 1, count, 1) if axis == 0 else (1, 1, 1, count)))


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
    """To the logits: of the loss by its own kernel, of the probabilities p by p (d - sum(p d))."""
    labels, probs = operands(node)[1], node.out(1)
    d_loss, d_probs = d_outputs
    parts = [] if d_loss is None else [g.softmax_xent_grad(probs, labels, d_loss, node.attrs.get("first_row"))]
    if d_probs is not None:
        parts.append(probs * (d_probs - g.sum(probs * d_probs, [1], keepdims=True)))
    return sum(parts[1:], start=parts[0]), None


def softmax_xent_grad(node: Node, d_outputs: Sequence[Value | None]) -> Gradients:
    """Linear in d_loss; to the probabilities of labelled rows u d_loss / their number."""
    probs, labels, d_loss = operands(node)
    u, begin = first(d_outputs), node.attrs.get("first_row")
    all_rows = g.labelled_rows(labels)
    rows = g.slice(all_rows, [begin or 0], [probs.shape[0]], [1])
    to_probs = u * g.reshape(rows, (probs.shape[0], 1)) * (d_loss / g.maximum(g.sum(all_rows), 1.0))
    return to_probs, None, g.sum(u * g.softmax_xent_grad(probs, labels, g.constant(1.0), begin))


def sampled_softmax(node: Node, d_outputs: Sequence[Value | None]) -> Gradients:
    """What the operation made, times d_loss; to the corrections by the logits, written out."""
    d_loss, *d_gradients = d_outputs
    if d_loss is None or any(d is not None for d in d_gradients):
        raise NotDifferentiable(node.op, "its gradients are finished; write the logits out, with softmax_cross_entropy")
    features, labels, rows, correction = node.inputs
    d_correction = None
    if features is not None and rows is not None and labels is not None and correction is not None:
        begin = node.attrs.get("first_row")
        mine = g.slice(labels, [begin or 0], features.shape[:1], [1])
        o = g.class_logits(features, rows, mine, scale=node.attrs["scale"], own=node.attrs["own"])
        _, probs = g.softmax_xent(o + correction, labels, begin)
        d_correction = g.sum(g.softmax_xent_grad(probs, labels, d_loss, begin), [0])
    return d_loss * node.out(1), None, d_loss * node.out(2), d_correction


def in_place(node: Node, d_outputs: Sequence[Value | None]) -> Gradients:
    """Say that an update has no gradient, and what has."""
    del d_outputs
    raise NotDifferentiable(node.op, "it updates in place; write the step out, as parameter - lr * gradient")
