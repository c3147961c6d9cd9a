"""The slow twins of the operations that map, pick and move elements, and of two updates; see reference.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.rng import hash64

Array = NDArray[Any]
Attributes = Sequence[int | float]
Output = tuple[tuple[int, ...], Any]  # shape, dtype


def float_attribute(value: float) -> float:
    """The float that an attribute stands for: a float itself, or an int that holds the bits of a float32."""
    return value if isinstance(value, float) else float(np.array(value, np.int32).view(np.float32))


def present(array: Array | None) -> Array:
    """An operand that must be there."""
    if array is None:
        raise ValueError("this operand must not be absent")
    return array


def _sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(x < 0, e, 1) / (1 + e))


def _sign(x: Array) -> Array:
    return np.asarray(np.where(x == 0, x, np.sign(x)))


# In the order of the plan format's numbers.
UNARY: tuple[Callable[[Array], Array], ...] = (
    np.exp,
    np.log,
    np.sqrt,
    np.reciprocal,
    np.tanh,
    _sigmoid,
    np.vectorize(math.erf, otypes=[np.float64]),
    lambda x: np.logaddexp(0, x),
    np.abs,
    _sign,
    np.floor,
    np.ceil,
    np.rint,
    np.sin,
    np.cos,
)
BINARY: tuple[Callable[[Array, Array], Array], ...] = (
    np.divide,
    np.power,
    np.minimum,
    np.maximum,
    np.equal,
    np.less,
    np.less_equal,
)


def unary(inputs: Sequence[Array | None], attrs: Attributes, _outputs: Sequence[Output]) -> list[Array]:
    """f(x)."""
    x = present(inputs[0])
    with np.errstate(all="ignore"):
        return [np.asarray(UNARY[int(attrs[0])](x), x.dtype)]


def binary(inputs: Sequence[Array | None], attrs: Attributes, outputs: Sequence[Output]) -> list[Array]:
    """f(a, b)."""
    a, b = present(inputs[0]), present(inputs[1])
    with np.errstate(all="ignore"):
        c = BINARY[int(attrs[0])](a, b)
    return [np.array(np.broadcast_to(c, outputs[0][0]), np.result_type(a, b))]


def where(inputs: Sequence[Array | None], _attrs: Attributes, outputs: Sequence[Output]) -> list[Array]:
    """A where the condition is not 0, else b."""
    condition, a, b = (present(array) for array in inputs[:3])
    return [np.array(np.broadcast_to(np.where(condition != 0, a, b), outputs[0][0]))]


def minmax(inputs: Sequence[Array | None], attrs: Attributes, outputs: Sequence[Output]) -> list[Array]:
    """The extreme over the axes of a bit mask."""
    x = present(inputs[0])
    axes = tuple(d for d in range(x.ndim) if int(attrs[1]) >> d & 1)
    return [np.asarray((np.min if attrs[0] else np.max)(x, axis=axes)).reshape(outputs[0][0])]


def argminmax(inputs: Sequence[Array | None], attrs: Attributes, _outputs: Sequence[Output]) -> list[Array]:
    """Where the first extreme lies."""
    find = np.argmin if attrs[0] else np.argmax
    return [np.asarray(find(present(inputs[0]), axis=int(attrs[1])), np.int32)]


def strided_copy(inputs: Sequence[Array | None], attrs: Attributes, outputs: Sequence[Output]) -> list[Array]:
    """Base or fill, and a box of x over it."""
    x, base = present(inputs[0]), inputs[1]
    fill = float_attribute(attrs[0]) if x.dtype.kind == "f" else int(attrs[0])
    y = np.full(outputs[0][0], fill, x.dtype) if base is None else base.copy()
    sizes, x_strides, y_strides = (np.array(attrs[3 + k :: 3], np.int64) for k in range(3))
    places = np.indices([int(n) for n in sizes]).reshape(len(sizes), -1)
    flat = y.reshape(-1)
    flat[int(attrs[2]) + y_strides @ places] = x.reshape(-1)[int(attrs[1]) + x_strides @ places]
    return [flat.reshape(outputs[0][0])]


def _rows(index: Array, axis: int, *, elements: bool) -> tuple[Any, ...]:
    """The index of x that names, for every gathered element, where it comes from."""
    if not elements:
        return (*[slice(None)] * axis, index)
    grid = tuple(np.indices(index.shape))
    return (*grid[:axis], index, *grid[axis + 1 :])


def gather(inputs: Sequence[Array | None], attrs: Attributes, _outputs: Sequence[Output]) -> list[Array]:
    """Elements or rows that an index names; 0 where it is out of range."""
    x, index, axis = present(inputs[0]), present(inputs[1]), int(attrs[0])
    inside = (index >= 0) & (index < x.shape[axis])
    y = x[_rows(np.where(inside, index, 0), axis, elements=bool(attrs[1]))]
    mask = inside if attrs[1] else inside.reshape(*(1,) * axis, *index.shape, *(1,) * (x.ndim - axis - 1))
    return [np.where(mask, y, 0).astype(x.dtype)]


def scatter_add(inputs: Sequence[Array | None], attrs: Attributes, outputs: Sequence[Output]) -> list[Array]:
    """Every d_y added to the place its index names."""
    d_y, index, axis = present(inputs[0]), present(inputs[1]), int(attrs[0])
    d_x = np.zeros(outputs[0][0], d_y.dtype)
    inside = (index >= 0) & (index < d_x.shape[axis])
    mask = inside if attrs[1] else inside.reshape(*(1,) * axis, *index.shape, *(1,) * (d_x.ndim - axis - 1))
    rows = _rows(np.where(inside, index, 0), axis, elements=bool(attrs[1]))
    np.add.at(d_x, rows, np.where(mask, d_y, 0))
    return [d_x]


def cast(inputs: Sequence[Array | None], _attrs: Attributes, outputs: Sequence[Output]) -> list[Array]:
    """The same numbers in another type, cut to its range."""
    x, dtype = present(inputs[0]), np.dtype(outputs[0][1])
    if dtype.kind == "f":
        return [x.astype(dtype)]
    limits = np.iinfo(np.uint8 if dtype == np.uint8 else np.int32)
    wide = np.nan_to_num(np.asarray(x, np.float64), nan=0.0, posinf=limits.max, neginf=limits.min)
    return [np.clip(np.trunc(wide), limits.min, limits.max).astype(dtype)]


def matmul(inputs: Sequence[Array | None], attrs: Attributes, _outputs: Sequence[Output]) -> list[Array]:
    """Products of the last two axes."""
    a, b = present(inputs[0]), present(inputs[1])
    return [(a.swapaxes(-1, -2) if attrs[0] else a) @ (b.swapaxes(-1, -2) if attrs[1] else b)]


def cumsum(inputs: Sequence[Array | None], attrs: Attributes, _outputs: Sequence[Output]) -> list[Array]:
    """Running sums along an axis."""
    x, axis = present(inputs[0]), int(attrs[0])
    seen = np.flip(x, axis) if attrs[2] else x
    sums = np.cumsum(seen, axis=axis, dtype=np.float64)
    sums = sums - seen if attrs[1] else sums
    return [(np.flip(sums, axis) if attrs[2] else sums).astype(x.dtype)]


def topk(inputs: Sequence[Array | None], attrs: Attributes, _outputs: Sequence[Output]) -> list[Array]:
    """The k most extreme along an axis, and where they lie; of equals the first."""
    x, axis, k = present(inputs[0]), int(attrs[1]), int(attrs[2])
    order = np.argsort(x if attrs[0] else -x, axis=axis, kind="stable")
    index = np.take(order, np.arange(k), axis=axis)
    return [np.take_along_axis(x, index, axis=axis), index.astype(np.int32)]


def adamw(inputs: Sequence[Array | None], attrs: Attributes, _outputs: Sequence[Output]) -> list[Array]:
    """One step of torch.optim.AdamW. Returns the new param, first and second moment."""
    param, grad, lr, m, v, t = (present(array) for array in inputs[:6])
    beta1, beta2, epsilon, weight_decay = (float_attribute(value) for value in attrs)
    m = m + (1 - beta1) * (grad - m)
    v = beta2 * v + (1 - beta2) * grad * grad
    step = lr / (1 - beta1 ** float(t)) * m / (np.sqrt(v / (1 - beta2 ** float(t))) + epsilon)
    return [(param * (1 - lr * weight_decay) - step).astype(param.dtype), m.astype(param.dtype), v.astype(param.dtype)]


def blend(inputs: Sequence[Array | None], attrs: Attributes, _outputs: Sequence[Output]) -> list[Array]:
    """A slot moved towards a value."""
    slot, value = present(inputs[0]), present(inputs[1])
    rate = slot.dtype.type(float_attribute(attrs[0]))
    return [slot + rate * (value - slot)]


def random(inputs: Sequence[Array | None], attrs: Attributes, outputs: Sequence[Output]) -> list[Array]:
    """Uniform or normal numbers from a hash of seed, stream, step and place."""
    seed, step = (int(np.asarray(present(a), np.float32).view(np.uint32)) for a in inputs[:2])
    shape, dtype = outputs[0]
    places = np.arange(math.prod(shape), dtype=np.uint64)
    h = hash64(seed, int(attrs[1]), step, places)
    u = (h >> np.uint64(40)).astype(np.float64)
    if attrs[0]:
        angle = (h >> np.uint64(16) & np.uint64(0xFFFFFF)).astype(np.float64)
        u = np.sqrt(-2.0 * np.log((u + 1.0) * 2.0**-24)) * np.cos(2.0 * np.pi * angle * 2.0**-24 - np.pi / 4)
    else:
        u = u * 2.0**-24
    return [u.reshape(shape).astype(dtype)]


Twin = Callable[[Sequence[Array | None], Attributes, Sequence[Output]], list[Array]]

TWINS: dict[str, Twin] = {
    "unary": unary,
    "binary": binary,
    "where": where,
    "minmax": minmax,
    "argminmax": argminmax,
    "strided_copy": strided_copy,
    "gather": gather,
    "scatter_add": scatter_add,
    "cast": cast,
    "matmul": matmul,
    "cumsum": cumsum,
    "topk": topk,
    "adamw": adamw,
    "blend": blend,
    "random": random,
}
