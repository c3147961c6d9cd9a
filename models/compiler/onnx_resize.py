"""ONNX Resize: every axis is resampled by itself.

Nearest is a gather, linear two gathers and a blend; what reads more places is a product with a matrix of weights.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

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
    # As half_pixel, about the middle of an input whose scaled size is not whole.
    "half_pixel_symmetric": lambda i, n, m, s: n / 2 * (1 - m / (s * n)) + (i + 0.5) / s - 0.5,
    "align_corners": lambda i, n, m, s: i * (n - 1) / (s * n - 1) if m > 1 else np.zeros_like(i),
}
ROUNDINGS: dict[str, Callable[[Coordinates], Coordinates]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}

MAX_SIZE = 1 << 20  # of an axis after resizing
MAX_WEIGHTS = 1 << 22  # stored for one axis


@dataclass(frozen=True)
class Kernel:
    """How the places around a coordinate are weighed (Keys 1981, eq. 4, with sharpness a for cubic).

    Attributes:
        mode: linear or cubic.
        a: the slope of the cubic kernel at 1.
        antialias: widen the kernel where the output is smaller than the input.
        exclude_outside: places outside the input have no weight, rather than the value at the edge.
    """

    mode: str
    a: float
    antialias: bool
    exclude_outside: bool

    def weights(self, at: Coordinates, n: int, scale: float) -> Coordinates:
        """(m, n): what each input place counts at each of the coordinates (m)."""
        wide = min(scale, 1.0) if self.antialias else 1.0
        reach = math.ceil((1 if self.mode == "linear" else 2) / wide) + 1
        places = np.arange(-reach, n + reach)
        weights = self._at(np.abs(places - at[:, None]) * wide)
        if self.exclude_outside:
            weights[:, (places < 0) | (places >= n)] = 0.0
        folded = np.zeros((len(at), n))
        np.add.at(folded.T, np.clip(places, 0, n - 1), weights.T)
        return np.asarray(folded / folded.sum(1, keepdims=True))

    def _at(self, t: Coordinates) -> Coordinates:
        if self.mode == "linear":
            return np.maximum(1.0 - t, 0.0)
        a = self.a
        near, far = ((a + 2) * t - (a + 3)) * t * t + 1, ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
        return np.where(t < 1, near, np.where(t < 2, far, 0.0))


def resize(node: ModelNode, terms: Terms) -> Value:
    """Sizes as operand 3 (from opset 11), or scales as operand 2 (opset 10: 1)."""
    x, mode = value(terms, 0), str(node.attrs.get("mode", "nearest"))
    default = "asymmetric" if node.opset < 11 else "half_pixel"
    transform = node.attrs.get("coordinate_transformation_mode", default)
    nearest = node.attrs.get("nearest_mode", "floor" if node.opset < 11 else "round_prefer_floor")
    if mode not in ("nearest", "linear", "cubic") or transform not in COORDINATES or nearest not in ROUNDINGS:
        raise ModelError(
            f"Resize by {mode}, {transform}, {nearest} is not supported; coordinates are {', '.join(COORDINATES)}"
        )
    antialias, exclude = (bool(node.attrs.get(k, 0)) for k in ("antialias", "exclude_outside"))
    kernel = Kernel(mode, float(node.attrs.get("cubic_coeff_a", -0.75)), antialias, exclude)
    for axis, size, scale in _sizes(node, terms, x.shape):
        if (size, scale) == (x.shape[axis], 1.0):
            continue
        if not 1 <= size <= MAX_SIZE:
            raise ModelError(f"axis {axis} would have {size} places; 1 to {MAX_SIZE} are possible")
        at = COORDINATES[transform](np.arange(size, dtype=np.float64), x.shape[axis], size, scale)
        if mode == "nearest":
            x = _pick(x, ROUNDINGS[nearest](at), axis)
        elif mode == "linear" and not (antialias or exclude):
            x = _blend(x, at, axis)
        elif size * x.shape[axis] > MAX_WEIGHTS:
            raise ModelError(f"{size} x {x.shape[axis]} weights of axis {axis} are more than {MAX_WEIGHTS}")
        else:
            x = _weighed(x, kernel.weights(at, x.shape[axis], scale), axis)
    return x


def _weighed(x: Value, weights: Coordinates, axis: int) -> Value:
    """The axis (n) times weights (m, n)."""
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    rows = g.reshape(x, (math.prod(before), x.shape[axis], math.prod(after)))
    return g.reshape(g.constant(weights[None]) @ rows, (*before, len(weights), *after))


def _sizes(node: ModelNode, terms: Terms, shape: tuple[int, ...]) -> list[tuple[int, int, float]]:
    """(axis, new size, scale) of every axis that is given."""
    axes = node.attrs.get("axes", range(len(shape)))
    wanted = integers(node, terms, "sizes", 3)
    if wanted:
        policy = node.attrs.get("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            common = {"not_larger": min, "not_smaller": max}[policy](
                n / shape[a] for a, n in zip(axes, wanted, strict=True)
            )
            return [(a % len(shape), math.floor(common * shape[a] + 0.5), common) for a in axes]
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
