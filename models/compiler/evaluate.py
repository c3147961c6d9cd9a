"""Running a graph in NumPy: one slow, readable twin for each operation, in whatever float type the data have.

The compiler folds constants with it; tests judge gradients and kernels by it, in float64.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.compiler.ir import Node, Value, Window, topological

Array = NDArray[Any]
Twin = Callable[[Node, Sequence[Array | None]], tuple[Array, ...]]


def evaluate(outputs: Sequence[Value], given: Mapping[str, Array]) -> list[Array]:
    """The values of `outputs`, with leaves taken from `given` by name.

    Constants follow the float type of the given arrays, so that float64 data are computed in float64 throughout.

    Raises:
        KeyError: a leaf is not given.
    """
    wide = any(a.dtype == np.float64 for a in given.values())
    known: dict[Value, Array] = {}
    for node in topological(outputs):
        if node.op == "leaf":
            results: tuple[Array, ...] = (given[node.attrs["name"]],)
        elif node.op == "constant":
            array = node.attrs["value"]
            results = (array.astype(np.float64) if wide and array.dtype == np.float32 else array,)
        else:
            results = run_node(node, [None if v is None else known[v] for v in node.inputs])
        known.update((Value(node, i), a) for i, a in enumerate(results))
    return [known[v] for v in outputs]


def run_node(node: Node, inputs: Sequence[Array | None]) -> tuple[Array, ...]:
    """The outputs of one operation."""
    return TWINS[node.op](node, inputs)


def _present(inputs: Sequence[Array | None]) -> list[Array]:
    return [a for a in inputs if a is not None]


def _gemm(node: Node, inputs: Sequence[Array | None]) -> tuple[Array, ...]:
    a, b, *bias = _present(inputs)
    product = (a.T if node.attrs["trans_a"] else a) @ (b.T if node.attrs["trans_b"] else b)
    y = product + bias[0] if bias else product
    return (np.maximum(y, 0) if node.attrs["relu"] else y,)


def taps(window: Window, kernel: Sequence[int], out: Sequence[int]) -> Iterator[tuple[int, int, tuple[Any, ...]]]:
    """For each place (i, j) of the kernel, the slice of the padded data that meets it, one element for each output."""
    (sh, sw), (dh, dw) = window.strides, window.dilations
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            rows = slice(i * dh, i * dh + (out[0] - 1) * sh + 1, sh)
            yield i, j, (..., rows, slice(j * dw, j * dw + (out[1] - 1) * sw + 1, sw))


def _padded(x: Array, window: Window, fill: float = 0.0) -> Array:
    top, left, bottom, right = window.pads
    return np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)


def _cropped(x: Array, window: Window, shape: Sequence[int]) -> Array:
    top, left, *_ = window.pads
    return x[:, :, top : top + shape[2], left : left + shape[3]]


def _padded_zeros(node: Node, dtype: Any) -> Array:
    return _padded(np.zeros(node.attrs["shape"], dtype), node.attrs["window"])


def _grouped(x: Array, axis: int, groups: int) -> Array:
    return x.reshape(*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :])


def _conv(node: Node, inputs: Sequence[Array | None]) -> tuple[Array, ...]:
    x, w, *bias = _present(inputs)
    window, groups = node.attrs["window"], node.attrs["groups"]
    shape = node.types[0].shape
    padded, split = _grouped(_padded(x, window), 1, groups), _grouped(w, 0, groups)
    y = np.zeros(_grouped(np.empty(shape), 1, groups).shape, x.dtype)
    for i, j, at in taps(window, w.shape[2:], shape[2:]):
        y += np.einsum("ngchw,goc->ngohw", padded[at], split[..., i, j])
    y = y.reshape(shape)
    if bias:
        y = y + bias[0][:, None, None]
    return (np.maximum(y, 0) if node.attrs["relu"] else y,)


def _conv_grad_x(node: Node, inputs: Sequence[Array | None]) -> tuple[Array, ...]:
    d_y, w = _present(inputs)
    window, groups = node.attrs["window"], node.attrs["groups"]
    d_x = _padded_zeros(node, d_y.dtype)
    grouped, split = _grouped(d_y, 1, groups), _grouped(w, 0, groups)
    for i, j, at in taps(window, w.shape[2:], d_y.shape[2:]):
        part = np.einsum("ngohw,goc->ngchw", grouped, split[..., i, j])
        d_x[at] += part.reshape(d_x[at].shape)
    return (_cropped(d_x, window, node.attrs["shape"]),)


def _conv_grad_w(node: Node, inputs: Sequence[Array | None]) -> tuple[Array, ...]:
    d_y, x = _present(inputs)
    window, groups, shape = node.attrs["window"], node.attrs["groups"], node.attrs["shape"]
    d_w = np.zeros(shape, d_y.dtype)
    padded, grouped = _grouped(_padded(x, window), 1, groups), _grouped(d_y, 1, groups)
    for i, j, at in taps(window, shape[2:], d_y.shape[2:]):
        d_w[..., i, j] = np.einsum("ngohw,ngchw->goc", grouped, padded[at]).reshape(shape[:2])
    return (d_w,)


def _relu(node: Node, inputs: Sequence[Array | None]) -> tuple[Array, ...]:
    del node
    return (np.maximum(_present(inputs)[0], 0),)


def _relu_grad(node: Node, inputs: Sequence[Array | None]) -> tuple[Array, ...]:
    del node
    d_y, y = _present(inputs)
    return (np.where(y > 0, d_y, 0),)


def _maxpool(node: Node, inputs: Sequence[Array | None]) -> tuple[Array, ...]:
    (x,) = _present(inputs)
    padded = _padded(x, node.attrs["window"], -np.inf)
    shape = node.types[0].shape
    places = [padded[at] for _, _, at in taps(node.attrs["window"], node.attrs["kernel"], shape[2:])]
    stacked = np.stack(places)
    return stacked.max(axis=0), stacked.argmax(axis=0).astype(node.types[1].dtype)


def _maxpool_grad(node: Node, inputs: Sequence[Array | None]) -> tuple[Array, ...]:
    d_y, index = _present(inputs)
    window, kernel = node.attrs["window"], node.attrs["kernel"]
    d_x = _padded_zeros(node, d_y.dtype)
    for i, j, at in taps(window, kernel, d_y.shape[2:]):
        d_x[at] += np.where(index == i * kernel[1] + j, d_y, 0)
    return (_cropped(d_x, window, node.attrs["shape"]),)


def _divisor(node: Node, extent: Sequence[int], out: Sequence[int]) -> Array:
    """Elements each window's mean is over."""
    window, kernel = node.attrs["window"], node.attrs["kernel"]
    inside = _padded(np.ones((1, 1, *extent)), window, float(node.attrs["count_include_pad"]))
    return np.asarray(sum(inside[at] for _, _, at in taps(window, kernel, out)))


def _avgpool(node: Node, inputs: Sequence[Array | None]) -> tuple[Array, ...]:
    (x,) = _present(inputs)
    out, window = node.types[0].shape[2:], node.attrs["window"]
    padded = _padded(x, window)
    total = sum(padded[at] for _, _, at in taps(window, node.attrs["kernel"], out))
    return (np.asarray(total / _divisor(node, x.shape[2:], out), x.dtype),)


def _avgpool_grad(node: Node, inputs: Sequence[Array | None]) -> tuple[Array, ...]:
    (d_y,) = _present(inputs)
    window, shape = node.attrs["window"], node.attrs["shape"]
    share = d_y / _divisor(node, shape[2:], d_y.shape[2:])
    d_x = _padded_zeros(node, d_y.dtype)
    for _, _, at in taps(window, node.attrs["kernel"], d_y.shape[2:]):
        d_x[at] += share
    return (_cropped(d_x, window, shape),)


def _elementwise(function: Callable[[Array, Array], Array]) -> Twin:
    def twin(node: Node, inputs: Sequence[Array | None]) -> tuple[Array, ...]:
        del node
        a, b = _present(inputs)
        return (np.asarray(function(a, b)),)

    return twin


def _reduce_sum(node: Node, inputs: Sequence[Array | None]) -> tuple[Array, ...]:
    (x,) = _present(inputs)
    total = x.sum(axis=node.attrs["axes"], keepdims=node.attrs["keepdims"])
    return (np.asarray(total * node.attrs["scale"], x.dtype),)


def _transpose(node: Node, inputs: Sequence[Array | None]) -> tuple[Array, ...]:
    return (_present(inputs)[0].transpose(node.attrs["axes"]),)


def _reshape(node: Node, inputs: Sequence[Array | None]) -> tuple[Array, ...]:
    return (_present(inputs)[0].reshape(node.attrs["shape"]),)


def _broadcast(node: Node, inputs: Sequence[Array | None]) -> tuple[Array, ...]:
    return (np.broadcast_to(_present(inputs)[0], node.attrs["shape"]),)


def _softmax_xent(node: Node, inputs: Sequence[Array | None]) -> tuple[Array, ...]:
    del node
    logits, labels = _present(inputs)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    rows = np.flatnonzero(labels != -1)
    loss = -log_probs[rows, labels[rows]].sum() / max(len(rows), 1)
    return np.asarray(loss, logits.dtype), np.exp(log_probs)


def _softmax_xent_grad(node: Node, inputs: Sequence[Array | None]) -> tuple[Array, ...]:
    del node
    probs, labels, d_loss = _present(inputs)
    rows = np.flatnonzero(labels != -1)
    d = np.zeros_like(probs)
    d[rows] = probs[rows]
    d[rows, labels[rows]] -= 1
    return (np.asarray(d * (d_loss / max(len(rows), 1)), probs.dtype),)


def _sgd(node: Node, inputs: Sequence[Array | None]) -> tuple[Array, ...]:
    param, grad, lr, *rest = inputs
    assert param is not None
    assert grad is not None
    assert lr is not None
    momentum = node.attrs["momentum"]
    g = grad + node.attrs["weight_decay"] * param
    velocity = rest[0] if rest else None
    if velocity is None:
        return (param - lr * g,)
    velocity = momentum * velocity + g
    step = g + momentum * velocity if node.attrs["nesterov"] else velocity
    return param - lr * step, velocity


TWINS: dict[str, Twin] = {
    "add": _elementwise(np.add),
    "avgpool": _avgpool,
    "avgpool_grad": _avgpool_grad,
    "broadcast": _broadcast,
    "conv": _conv,
    "conv_grad_w": _conv_grad_w,
    "conv_grad_x": _conv_grad_x,
    "copy": _reshape,
    "gemm": _gemm,
    "maxpool": _maxpool,
    "maxpool_grad": _maxpool_grad,
    "mul": _elementwise(np.multiply),
    "reduce_sum": _reduce_sum,
    "relu": _relu,
    "relu_grad": _relu_grad,
    "reshape": _reshape,
    "sgd": _sgd,
    "softmax_xent": _softmax_xent,
    "softmax_xent_grad": _softmax_xent_grad,
    "sub": _elementwise(np.subtract),
    "transpose": _transpose,
}
