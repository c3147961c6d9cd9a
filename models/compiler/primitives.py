"""The functions of the graph language that are one operation each: products, windows, sums, views, updates.

Every function checks types at once and raises CompileError naming the operation and the shapes.
"""

import math
from collections.abc import Sequence

from models.compiler import shapes
from models.compiler.ir import Operand, Value, Window, apply, binary, product


def add(a: Operand, b: Operand) -> Value:
    """Sum of a and b with NumPy broadcasting."""
    return binary("add", a, b)


def sub(a: Operand, b: Operand) -> Value:
    """Difference of a and b with NumPy broadcasting."""
    return binary("sub", a, b)


def mul(a: Operand, b: Operand) -> Value:
    """Product of a and b with NumPy broadcasting."""
    return binary("mul", a, b)


def square(x: Value) -> Value:
    """Product of x with itself."""
    return mul(x, x)


def matmul(a: Value, b: Value, *, trans_a: bool = False, trans_b: bool = False) -> Value:
    """op(a) @ op(b), where op transposes the last two axes if its flag is set; the axes before them broadcast."""
    return product(a, b, trans_a=trans_a, trans_b=trans_b)


def conv(x: Value, w: Value, window: Window | None = None, groups: int = 1) -> Value:
    """Cross-correlation of x (N, C, H, W) with w (O, C / groups, KH, KW)."""
    attrs = {"window": window or Window(), "groups": groups, "relu": False, "limit": None}
    return apply("conv", shapes.conv, (x, w), attrs)[0]


def conv_grad_x(d_y: Value, w: Value, shape: tuple[int, ...], window: Window, groups: int) -> Value:
    """The x-gradient of conv, for an x of `shape`; linear in d_y and in w."""
    attrs = {"window": window, "groups": groups, "shape": shape}
    return apply("conv_grad_x", shapes.conv_grad_x, (d_y, w), attrs)[0]


def conv_grad_w(d_y: Value, x: Value, shape: tuple[int, ...], window: Window, groups: int) -> Value:
    """The w-gradient of conv, for a w of `shape`; linear in d_y and in x."""
    attrs = {"window": window, "groups": groups, "shape": shape}
    return apply("conv_grad_w", shapes.conv_grad_w, (d_y, x), attrs)[0]


def relu(x: Value) -> Value:
    """max(x, 0)."""
    return apply("relu", shapes.same("relu"), (x,), {})[0]


def relu_grad(d_y: Value, y: Value) -> Value:
    """d_y where y > 0, else 0."""
    return apply("relu_grad", shapes.same("relu_grad"), (d_y, y), {})[0]


def max_pool(x: Value, kernel: tuple[int, int], window: Window) -> Value:
    """Maximum over each window; padding never wins."""
    return apply("maxpool", shapes.maxpool, (x,), {"window": window, "kernel": kernel})[0]


def max_pool_grad(d_y: Value, index: Value, shape: tuple[int, ...], kernel: tuple[int, int], window: Window) -> Value:
    """The gradient of max_pool, for an x of `shape`: d_y goes to the place its maximum came from."""
    attrs = {"window": window, "kernel": kernel, "shape": shape}
    return apply("maxpool_grad", shapes.maxpool_grad, (d_y, index), attrs)[0]


def avg_pool(x: Value, kernel: tuple[int, int], window: Window, *, count_include_pad: bool = False) -> Value:
    """Mean over each window, of its elements inside x, or of all its places with count_include_pad."""
    attrs = {"window": window, "kernel": kernel, "count_include_pad": count_include_pad}
    return apply("avgpool", shapes.avgpool, (x,), attrs)[0]


def avg_pool_grad(
    d_y: Value, shape: tuple[int, ...], kernel: tuple[int, int], window: Window, *, count_include_pad: bool
) -> Value:
    """The gradient of avg_pool, for an x of `shape`."""
    attrs = {"window": window, "kernel": kernel, "count_include_pad": count_include_pad, "shape": shape}
    return apply("avgpool_grad", shapes.avgpool_grad, (d_y,), attrs)[0]


def reshape(x: Value, shape: Sequence[int]) -> Value:
    """The same elements in another shape; one dimension may be -1."""
    known = math.prod(d for d in shape if d != -1)
    whole = tuple(x.type.size // max(known, 1) if d == -1 else int(d) for d in shape)
    return apply("reshape", shapes.reshape, (x,), {"shape": whole})[0]


def copy(x: Value, shape: Sequence[int]) -> Value:
    """As reshape, but with bytes of its own."""
    return apply("copy", shapes.reshape, (x,), {"shape": tuple(shape)})[0]


def transpose(x: Value, axes: Sequence[int] | None = None) -> Value:
    """Axes in the given order, or reversed."""
    order = tuple(axes) if axes is not None else tuple(reversed(range(len(x.shape))))
    return apply("transpose", shapes.transpose, (x,), {"axes": order})[0]


def broadcast_to(x: Value, shape: Sequence[int]) -> Value:
    """Repeat x to `shape` by NumPy's rule."""
    return apply("broadcast", shapes.broadcast, (x,), {"shape": tuple(shape)})[0]


def sum(  # noqa: A001 - the language reads like NumPy
    x: Value, axes: Sequence[int] | None = None, *, keepdims: bool = False, scale: float = 1.0
) -> Value:
    """Sum, times `scale`, over `axes` (all of them by default); negative axes count from the end."""
    rank = len(x.shape)
    over = tuple(sorted({a + rank if a < 0 else a for a in (range(rank) if axes is None else axes)}))
    attrs = {"axes": over, "keepdims": keepdims, "scale": scale}
    return apply("reduce_sum", shapes.reduce_sum, (x,), attrs)[0]


def mean(x: Value, axes: Sequence[int] | None = None, *, keepdims: bool = False) -> Value:
    """The mean over `axes` (all of them by default)."""
    total = sum(x, axes, keepdims=keepdims)
    return sum(x, axes, keepdims=keepdims, scale=total.type.size / x.type.size)


def softmax_xent(logits: Value, labels: Value, first_row: int | None = None) -> tuple[Value, Value]:
    """Mean cross-entropy over the labels that are not -1, and the probabilities (batch, classes).

    With `first_row` the logits belong to as many of the labels from there on, and the result is their part of the mean
    over all labels: such parts add up to the mean.
    """
    loss, probs = apply("softmax_xent", shapes.softmax_xent, (logits, labels), _rows_from(first_row))
    return loss, probs


def _rows_from(first_row: int | None) -> dict[str, int]:
    return {} if first_row is None else {"first_row": first_row}


def softmax_cross_entropy(logits: Value, labels: Value) -> Value:
    """Mean cross-entropy of logits (batch, classes) with int32 labels (batch); label -1 is left out."""
    return softmax_xent(logits, labels)[0]


def softmax_xent_grad(probs: Value, labels: Value, d_loss: Value, first_row: int | None = None) -> Value:
    """The logits-gradient of softmax_xent: d_loss * (probs - onehot) / number of labels that are not -1."""
    return apply("softmax_xent_grad", shapes.softmax_xent_grad, (probs, labels, d_loss), _rows_from(first_row))[0]


def sampled_softmax(  # noqa: PLR0913 - the operands and settings of one loss
    features: Value,
    rows: Value,
    labels: Value,
    correction: Value | None = None,
    *,
    scale: float = 0.0,
    own: int = 0,
    first_row: int | None = None,
) -> Value:
    """Mean cross-entropy of features @ rows.T + correction, of which never more than a tile exists.

    Its gradients are finished in the forward part, so it cannot be differentiated twice; write the logits out for that.

    Args:
        features: (B, D).
        rows: (S, D); those of the classes that are here.
        labels: int32 (B), places in `rows`; -1 is left out.
        correction: (S), added to the logits: -log q for a sampled negative, with q the probability that it is here, and
            0 for what is here for certain. It may be trained, as a bias.
        scale: of cosines as logits; 0 for dot products. A zero vector has cosine 0 and no gradient.
        own: number of leading classes that an example does not see unless they are its label.
        first_row: as in softmax_xent.

    Source: arXiv 2203.04888.
    """
    attrs = {"scale": scale, "own": own, **_rows_from(first_row)}
    return apply("sampled_softmax", shapes.sampled_softmax, (features, labels, rows, correction), attrs)[0]


def linear_cross_entropy(features: Value, rows: Value, labels: Value, *, scale: float = 0.0) -> Value:
    """Mean softmax cross-entropy of features @ rows.T (B, C) without storing it; see sampled_softmax."""
    return sampled_softmax(features, rows, labels, scale=scale)


def sgd(  # noqa: PLR0913 - the operands and settings of one update rule
    param: Value,
    grad: Value,
    lr: Value,
    velocity: Value | None = None,
    *,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
) -> tuple[Value, ...]:
    """One step of stochastic gradient descent: the new parameter, then the new velocity where one is given."""
    attrs = {"momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
    return apply("sgd", shapes.sgd, (param, grad, lr, velocity), attrs)


def adamw(  # noqa: PLR0913, PLR0917 - as sgd
    param: Value,
    grad: Value,
    lr: Value,
    m: Value,
    v: Value,
    t: Value,
    *,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
) -> tuple[Value, ...]:
    """Step number `t` (a scalar, from 1) of AdamW: the new parameter, first and second moment."""
    attrs = {"beta1": beta1, "beta2": beta2, "epsilon": epsilon, "weight_decay": weight_decay}
    return apply("adamw", shapes.adamw, (param, grad, lr, m, v, t), attrs)


def blend(slot: Value, value: Value, rate: float = 1.0) -> Value:
    """Move a slot towards a value in place: slot + rate * (value - slot); a rate of 1 replaces it."""
    return apply("blend", shapes.blend, (slot, value), {"rate": rate})[0]
