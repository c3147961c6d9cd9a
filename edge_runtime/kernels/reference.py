"""The slow twins: every operation of a plan in readable NumPy, for tests and for arithmetic in float64.

Each function computes what `docs/plan-format.md` says, in the dtype of its inputs. Shapes are those of the table there.
Attributes are the integers of the plan file; those that stand for a float32 hold its bits. Floating-point attributes
may be given as Python floats too, so that central differences can use values that float32 does not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.kernels import reference_map, reference_sampled_softmax, reference_tensor
from edge_runtime.kernels.reference_tensor import float_attribute

Array = NDArray[Any]
Attributes = Sequence[int | float]
Output = tuple[tuple[int, ...], Any]  # shape, dtype


@dataclass(frozen=True)
class Window:
    """The attributes of a sliding window, two of a kind: (vertical, horizontal)."""

    stride: tuple[int, int]
    pad: tuple[int, int]
    dilation: tuple[int, int]
    kernel: tuple[int, int]

    def places(self, output: tuple[int, int], size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
        """Rows (kh, kw, h, w) of one window: its taps that lie inside the input."""
        tops = [o * s - p for o, s, p in zip(output, self.stride, self.pad, strict=True)]
        taps = ((kh, kw) for kh in range(self.kernel[0]) for kw in range(self.kernel[1]))
        rows = ((kh, kw, tops[0] + kh * self.dilation[0], tops[1] + kw * self.dilation[1]) for kh, kw in taps)
        return [row for row in rows if 0 <= row[2] < size[0] and 0 <= row[3] < size[1]]


def window(attrs: Attributes, kernel: tuple[int, ...]) -> Window:
    """The window that ten attributes of a plan and a kernel size describe."""
    a = [int(value) for value in attrs[:8]]
    return Window((a[0], a[1]), (a[2], a[3]), (a[6], a[7]), (kernel[0], kernel[1]))


def gemm(inputs: Sequence[Array | None], attrs: Attributes, _outputs: Sequence[Output]) -> list[Array]:
    """C = A B + bias, then relu."""
    a, b, bias = _present(inputs[0]), _present(inputs[1]), inputs[2]
    c = (a.T if attrs[0] else a) @ (b.T if attrs[1] else b)
    c = c if bias is None else c + bias
    return [np.where(c < 0, 0, c).astype(c.dtype) if attrs[2] else c]


def conv(inputs: Sequence[Array | None], attrs: Attributes, outputs: Sequence[Output]) -> list[Array]:
    """Sum over the window of w * x, group by group; then relu, up to a limit whose bits are the last attribute."""
    x, w, bias = _present(inputs[0]), _present(inputs[1]), inputs[2]
    y = np.zeros(outputs[0][0], x.dtype)
    for group, place, (kh, kw, h, v) in _conv_places(x.shape, w.shape, y.shape, attrs):
        y[:, group.filters, *place] += x[:, group.channels, h, v] @ w[group.filters, :, kh, kw].T
    y = y if bias is None else y + bias[None, :, None, None]
    y = np.where(y < 0, 0, y).astype(y.dtype) if attrs[9] else y
    return [y if attrs[9] in {0, 1} else np.minimum(y, np.int32(attrs[9]).view(np.float32)).astype(y.dtype)]


def conv_grad_x(inputs: Sequence[Array | None], attrs: Attributes, outputs: Sequence[Output]) -> list[Array]:
    """Every d_y goes back to the x it was made of."""
    d_y, w = _present(inputs[0]), _present(inputs[1])
    d_x = np.zeros(outputs[0][0], d_y.dtype)
    for group, place, (kh, kw, h, v) in _conv_places(d_x.shape, w.shape, d_y.shape, attrs):
        d_x[:, group.channels, h, v] += d_y[:, group.filters, *place] @ w[group.filters, :, kh, kw]
    return [d_x]


def conv_grad_w(inputs: Sequence[Array | None], attrs: Attributes, outputs: Sequence[Output]) -> list[Array]:
    """Every weight collects d_y times the x it met."""
    d_y, x = _present(inputs[0]), _present(inputs[1])
    d_w = np.zeros(outputs[0][0], x.dtype)
    for group, place, (kh, kw, h, v) in _conv_places(x.shape, d_w.shape, d_y.shape, attrs):
        d_w[group.filters, :, kh, kw] += d_y[:, group.filters, *place].T @ x[:, group.channels, h, v]
    return [d_w]


def relu(inputs: Sequence[Array | None], _attrs: Attributes, _outputs: Sequence[Output]) -> list[Array]:
    """Negative numbers become zero; a NaN stays."""
    x = _present(inputs[0])
    return [np.where(x < 0, 0, x).astype(x.dtype)]


def relu_grad(inputs: Sequence[Array | None], _attrs: Attributes, _outputs: Sequence[Output]) -> list[Array]:
    """d_y where y > 0."""
    d_y, y = _present(inputs[0]), _present(inputs[1])
    return [np.where(y > 0, d_y, 0).astype(d_y.dtype)]


def maxpool(inputs: Sequence[Array | None], attrs: Attributes, outputs: Sequence[Output]) -> list[Array]:
    """The first maximum of each window and where it was; a NaN counts as the greatest."""
    x = _present(inputs[0])
    y, index = np.zeros(outputs[0][0], x.dtype), np.zeros(outputs[1][0], outputs[1][1])
    win = window(attrs, (int(attrs[8]), int(attrs[9])))
    for i, j in np.ndindex(*y.shape[2:]):
        places = win.places((i, j), (x.shape[2], x.shape[3]))
        values = np.stack([x[:, :, h, w] for _, _, h, w in places])
        first = np.argmax(values, axis=0)  # argmax takes the first, and a NaN over numbers
        y[:, :, i, j] = np.take_along_axis(values, first[None], axis=0)[0]
        index[:, :, i, j] = np.array([kh * win.kernel[1] + kw for kh, kw, _, _ in places])[first]
    return [y, index]


def maxpool_grad(inputs: Sequence[Array | None], attrs: Attributes, outputs: Sequence[Output]) -> list[Array]:
    """Every d_y goes to the place its index names."""
    d_y, index = _present(inputs[0]), _present(inputs[1])
    d_x = np.zeros(outputs[0][0], d_y.dtype)
    win = window(attrs, (int(attrs[8]), int(attrs[9])))
    for i, j in np.ndindex(*d_y.shape[2:]):
        for kh, kw, h, w in win.places((i, j), (d_x.shape[2], d_x.shape[3])):
            chosen = index[:, :, i, j] == kh * win.kernel[1] + kw
            d_x[:, :, h, w] += np.where(chosen, d_y[:, :, i, j], 0).astype(d_y.dtype)
    return [d_x]


def avgpool(inputs: Sequence[Array | None], attrs: Attributes, outputs: Sequence[Output]) -> list[Array]:
    """The mean of each window, over its places inside x or over all of them."""
    x = _present(inputs[0])
    y = np.zeros(outputs[0][0], x.dtype)
    win = window(attrs, (int(attrs[8]), int(attrs[9])))
    for i, j in np.ndindex(*y.shape[2:]):
        places = win.places((i, j), (x.shape[2], x.shape[3]))
        total = sum((x[:, :, h, w] for _, _, h, w in places), np.zeros(x.shape[:2], x.dtype))
        y[:, :, i, j] = total / _divisor(win, places, attrs)
    return [y]


def avgpool_grad(inputs: Sequence[Array | None], attrs: Attributes, outputs: Sequence[Output]) -> list[Array]:
    """Every place of a window gets an equal part of its d_y."""
    d_y = _present(inputs[0])
    d_x = np.zeros(outputs[0][0], d_y.dtype)
    win = window(attrs, (int(attrs[8]), int(attrs[9])))
    for i, j in np.ndindex(*d_y.shape[2:]):
        places = win.places((i, j), (d_x.shape[2], d_x.shape[3]))
        for _, _, h, w in places:
            d_x[:, :, h, w] += d_y[:, :, i, j] / _divisor(win, places, attrs)
    return [d_x]


def add(inputs: Sequence[Array | None], _attrs: Attributes, outputs: Sequence[Output]) -> list[Array]:
    """A + b."""
    return [np.broadcast_to(_present(inputs[0]) + _present(inputs[1]), outputs[0][0])]


def sub(inputs: Sequence[Array | None], _attrs: Attributes, outputs: Sequence[Output]) -> list[Array]:
    """A - b."""
    return [np.broadcast_to(_present(inputs[0]) - _present(inputs[1]), outputs[0][0])]


def mul(inputs: Sequence[Array | None], _attrs: Attributes, outputs: Sequence[Output]) -> list[Array]:
    """A * b."""
    return [np.broadcast_to(_present(inputs[0]) * _present(inputs[1]), outputs[0][0])]


def reduce_sum(inputs: Sequence[Array | None], attrs: Attributes, outputs: Sequence[Output]) -> list[Array]:
    """Scale times the sum over the axes of a bit mask."""
    x = _present(inputs[0])
    axes = tuple(d for d in range(x.ndim) if int(attrs[0]) >> d & 1)
    total = np.sum(x, axis=axes, dtype=np.float64) * float_attribute(attrs[1])
    return [np.asarray(total, x.dtype).reshape(outputs[0][0])]


def transpose(inputs: Sequence[Array | None], attrs: Attributes, _outputs: Sequence[Output]) -> list[Array]:
    """Axis j of y is axis attrs[j] of x."""
    return [np.transpose(_present(inputs[0]), [int(axis) for axis in attrs])]


def softmax_xent(inputs: Sequence[Array | None], attrs: Attributes, _outputs: Sequence[Output]) -> list[Array]:
    """The rows' part of the mean cross-entropy over all labels, and the probabilities of every row."""
    logits = _present(inputs[0])
    labels, labelled = _labels_of(len(logits), _present(inputs[1]), attrs)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    rows = np.flatnonzero(labels >= 0)
    losses = (log_sum - shifted)[rows, labels[rows]]
    loss = losses.sum() / max(labelled, 1)
    return [np.array(loss, logits.dtype), np.exp(shifted - log_sum)]


def softmax_xent_grad(inputs: Sequence[Array | None], attrs: Attributes, _outputs: Sequence[Output]) -> list[Array]:
    """d_loss / labelled * (probs - onehot), zero for rows without a label."""
    probs, d_loss = _present(inputs[0]), _present(inputs[2])
    labels, labelled = _labels_of(len(probs), _present(inputs[1]), attrs)
    rows = np.flatnonzero(labels >= 0)
    d_logits = np.zeros_like(probs)
    d_logits[rows] = probs[rows]
    d_logits[rows, labels[rows]] -= 1
    return [d_logits * (d_loss / max(labelled, 1))]


def sampled_softmax(inputs: Sequence[Array | None], attrs: Attributes, _outputs: Sequence[Output]) -> list[Array]:
    """Loss and gradients of linear logits, in the type of the features."""
    features, rows = _present(inputs[0]), _present(inputs[2])
    labels, labelled = _labels_of(len(features), _present(inputs[1]), attrs[2:])
    share = np.count_nonzero(labels >= 0) / max(labelled, 1)
    made = reference_sampled_softmax.linear_loss(
        features, rows, labels, inputs[3], scale=float_attribute(attrs[0]) or None, own=int(attrs[1])
    )
    return [np.asarray(part * share, features.dtype) for part in made]


def _labels_of(rows: int, labels: Array, attrs: Attributes) -> tuple[Array, int]:
    """The labels of `rows` rows from attrs[0] on, or all of them, and how many of all are not -1."""
    first = int(attrs[0]) if attrs else 0
    return labels[first : first + rows], int(np.count_nonzero(labels >= 0))


def sgd(inputs: Sequence[Array | None], attrs: Attributes, _outputs: Sequence[Output]) -> list[Array]:
    """One step of torch.optim.SGD with dampening 0. Returns the new param, and the new velocity where there is one."""
    param, grad, lr, velocity = _present(inputs[0]), _present(inputs[1]), _present(inputs[2]), inputs[3]
    momentum, weight_decay = (param.dtype.type(float_attribute(value)) for value in attrs[:2])
    g = grad + weight_decay * param
    if velocity is None:
        return [param - lr * g]
    velocity = momentum * velocity + g
    return [param - lr * (g + momentum * velocity if attrs[2] else velocity), velocity]


def gemm_sgd(inputs: Sequence[Array | None], attrs: Attributes, outputs: Sequence[Output]) -> list[Array]:
    """The step of sgd by a gradient that is a product."""
    a, b, param, lr, velocity = inputs
    return sgd([param, *gemm([a, b, None], [*attrs[:2], 0], []), lr, velocity], attrs[2:], outputs)


def copy(inputs: Sequence[Array | None], _attrs: Attributes, outputs: Sequence[Output]) -> list[Array]:
    """The same numbers in another shape."""
    return [_present(inputs[0]).reshape(outputs[0][0]).copy()]


Twin = Callable[[Sequence[Array | None], Attributes, Sequence[Output]], list[Array]]

TWINS: dict[str, Twin] = {
    "gemm": gemm,
    "conv": conv,
    "conv_grad_x": conv_grad_x,
    "conv_grad_w": conv_grad_w,
    "relu": relu,
    "relu_grad": relu_grad,
    "maxpool": maxpool,
    "maxpool_grad": maxpool_grad,
    "avgpool": avgpool,
    "avgpool_grad": avgpool_grad,
    "add": add,
    "sub": sub,
    "mul": mul,
    "reduce_sum": reduce_sum,
    "transpose": transpose,
    "softmax_xent": softmax_xent,
    "softmax_xent_grad": softmax_xent_grad,
    "sampled_softmax": sampled_softmax,
    "sgd": sgd,
    "gemm_sgd": gemm_sgd,
    "copy": copy,
    **reference_tensor.TWINS,
    **reference_map.TWINS,
}


def run(
    op_name: str, inputs: Sequence[Array | None], attrs: Attributes, output_shapes_and_dtypes: Sequence[Output]
) -> list[Array]:
    """Compute one operation of a plan.

    Args:
        op_name: A name of the table in docs/plan-format.md.
        inputs: Operands in order, None for absent ones; not modified. float32 or float64 alike.
        attrs: The attributes as the plan file holds them.
        output_shapes_and_dtypes: One (shape, dtype) per present output.

    Returns:
        One new array per present output.

    Raises:
        KeyError: There is no operation of that name.
    """
    return TWINS[op_name](inputs, attrs, output_shapes_and_dtypes)


def interpret(description: Mapping[str, Any], buffers: dict[int, Array], dtype: Any = np.float64) -> None:
    """Run a whole plan in NumPy, in place.

    Args:
        description: What `edge_runtime._core.describe` says of the plan.
        buffers: Arrays by tensor number for everything the plan reads before it writes (roles 1 to 5 and constants);
            receives everything it writes. Floating-point arrays should already be of `dtype`.
        dtype: What float32 tensors are computed in.
    """
    tensors = description["tensors"]
    for op in description["ops"]:
        outputs = [number for number in op["outputs"] if number is not None]
        wanted = [(tuple(tensors[n]["shape"]), _dtype_of(tensors[n]["dtype"], dtype)) for n in outputs]
        inputs = [None if number is None else buffers[number] for number in op["inputs"]]
        buffers.update(zip(outputs, run(op["op"], inputs, op["attrs"], wanted), strict=True))


def _dtype_of(name: str, floating: Any) -> Any:
    return floating if name == "float32" else np.dtype(name)


def _present(array: Array | None) -> Array:
    if array is None:
        raise ValueError("this operand must not be absent")
    return array


@dataclass(frozen=True)
class _Group:
    """Channels of x and filters that belong together."""

    channels: slice
    filters: slice


def _conv_places(
    x: tuple[int, ...], w: tuple[int, ...], y: tuple[int, ...], attrs: Attributes
) -> list[tuple[_Group, tuple[int, int], tuple[int, int, int, int]]]:
    """Every (group, place of y, (kh, kw, h, w)) of a convolution with these shapes."""
    groups, win = int(attrs[8]), window(attrs, w[2:])
    filters = w[0] // groups
    return [
        (_Group(slice(g * w[1], (g + 1) * w[1]), slice(g * filters, (g + 1) * filters)), (i, j), place)
        for g in range(groups)
        for i, j in np.ndindex(*y[2:])
        for place in win.places((i, j), (x[2], x[3]))
    ]


def _divisor(win: Window, places: list[tuple[int, int, int, int]], attrs: Attributes) -> int:
    return win.kernel[0] * win.kernel[1] if attrs[10] else len(places)
