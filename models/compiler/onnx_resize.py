"""ONNX Resize: every axis is resampled by itself, by a gather (nearest) or by two gathers and a blend (linear)."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

import models.compiler.graph as g
from models.compiler.errors import ModelError
from models.compiler.ir import Value
from models.compiler.onnx_nodes import ModelNode, Terms, integers, known, value

Coordinates = NDArray[np.float64]
# Where the middle of output place i lies in the input, for n input and m output places and their ratio s = m / n.
COORDINATES: dict[str, Callable[[Coordinates, int, int, float], Coordinates]] = {
    "half_pixel": lambda i, _n, _m, s: (i + 0.5) / s - 0.5,
    "pytorch_half_pixel": lambda i, _n, m, s: (i + 0.5) / s - 0.5 if m > 1 else np.zeros_like(i),
    "asymmetric": lambda i, _n, _m, s: i / s,
    "align_corners": lambda i, n, m, s: i * (n - 1) / (s * n - 1) if m > 1 else np.zeros_like(i),
}
ROUNDINGS: dict[str, Callable[[Coordinates], Coordinates]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def resize(node: ModelNode, terms: Terms) -> Value:
    """Sizes as operand 3 (from opset 11), or scales as operand 2 (opset 10: 1)."""
    x, mode = value(terms, 0), str(node.attrs.get("mode", "nearest"))
    default = "asymmetric" if node.opset < 11 else "half_pixel"
    transform = node.attrs.get("coordinate_transformation_mode", default)
    nearest = node.attrs.get("nearest_mode", "floor" if node.opset < 11 else "round_prefer_floor")
    unusual = [k for k in ("antialias", "exclude_outside") if node.attrs.get(k, 0)]
    if mode not in ("nearest", "linear") or transform not in COORDINATES or nearest not in ROUNDINGS or unusual:
        raise ModelError(f"Resize by {mode}, {transform}, {nearest} {' '.join(unusual)} is not supported")
    for axis, size, scale in _sizes(node, terms, x.shape):
        if (size, scale) == (x.shape[axis], 1.0):
            continue
        at = COORDINATES[transform](np.arange(size, dtype=np.float64), x.shape[axis], size, scale)
        x = _pick(x, ROUNDINGS[nearest](at), axis) if mode == "nearest" else _blend(x, at, axis)
    return x


def _sizes(node: ModelNode, terms: Terms, shape: tuple[int, ...]) -> list[tuple[int, int, float]]:
    """(axis, new size, scale) of every axis that is given."""
    axes = node.attrs.get("axes", range(len(shape)))
    wanted = integers(node, terms, "sizes", 3)
    if wanted:
        if node.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise ModelError("keep_aspect_ratio_policy is not supported")
        return [(a % len(shape), n, n / shape[a]) for a, n in zip(axes, wanted, strict=True)]
    scales = known(terms, 1 if node.opset < 11 else 2)
    if scales is None or not scales.size:
        raise ModelError("neither scales nor sizes are given")
    return [(a % len(shape), int(shape[a] * float(s)), float(s)) for a, s in zip(axes, scales.ravel(), strict=True)]


def _pick(x: Value, at: Coordinates, axis: int) -> Value:
    inside = np.clip(at, 0, x.shape[axis] - 1).astype(np.int32)
    return g.gather(x, g.constant(inside), axis)


def _blend(x: Value, at: Coordinates, axis: int) -> Value:
    low = np.floor(at)
    weight = (at - low).reshape(-1, *(1,) * (len(x.shape) - axis - 1)).astype(np.float32)
    return _pick(x, low, axis) * g.constant(1.0 - weight) + _pick(x, low + 1, axis) * g.constant(weight)
