"""The slow twin of the fused map: its program, value by value over the whole box; see reference.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.kernels.reference_tensor import BINARY, UNARY, float_attribute, present

Array = NDArray[Any]
Attributes = Sequence[int | float]
Output = tuple[tuple[int, ...], Any]  # shape, dtype
Reduce = Callable[..., Array]


def _where(condition: Array, a: Array, b: Array) -> Array:
    return np.asarray(np.where(condition != 0, a, b))


# By the numbers of the plan format.
ELEMENTWISE: dict[int, tuple[int, Callable[..., Array]]] = {
    **{number: (1, function) for number, function in enumerate(UNARY)},
    **{32 + number: (2, function) for number, function in enumerate(BINARY)},
    48: (2, np.add),
    49: (2, np.subtract),
    50: (2, np.multiply),
    51: (1, lambda x: np.where(x < 0, 0, x)),
    52: (2, lambda d_y, y: np.where(y > 0, d_y, 0)),
    53: (3, _where),
}
REDUCTIONS: dict[int, Reduce] = {64: np.sum, 65: np.max, 66: np.min}


def _axes(mask: int, ndim: int) -> tuple[int, ...]:
    """The axes of a bit mask."""
    return tuple(axis for axis in range(ndim) if mask >> axis & 1)


def _laid(array: Array, axes: tuple[int, ...], dims: Sequence[int]) -> Array:
    """An operand with every axis of the box, of size 1 where it is repeated."""
    return array.reshape([n if axis in axes else 1 for axis, n in enumerate(dims)])


def _step(words: Iterator[int | float], values: list[Array], reduced: tuple[int, ...], dims: Sequence[int]) -> Array:
    """The next step of a program."""
    function = int(next(words))
    if function in REDUCTIONS:
        x = np.broadcast_to(values[int(next(words))], dims)
        wide = x.astype(np.float64)
        return np.asarray(REDUCTIONS[function](wide, axis=reduced, keepdims=True), x.dtype)
    arity, compute = ELEMENTWISE[function]
    operands = [values[int(n)] for n in islice(words, arity)]
    with np.errstate(all="ignore"):
        return np.asarray(compute(*operands), operands[-1].dtype)


def run_map(inputs: Sequence[Array | None], attrs: Attributes, outputs: Sequence[Output]) -> list[Array]:
    """Every value of the program in turn, then the results in their shapes."""
    words = iter(attrs)
    n_operands, n_results, n_constants, n_steps, ndim = (int(n) for n in islice(words, 5))
    dims = [int(n) for n in islice(words, ndim)]
    reduced = _axes(int(next(words)), ndim)
    masks = [int(n) for n in islice(words, n_operands)]
    values = [_laid(present(x), _axes(m, ndim), dims) for x, m in zip(inputs, masks, strict=True)]
    dtype = values[0].dtype
    values += [np.full([1] * ndim, float_attribute(n), dtype) for n in islice(words, n_constants)]
    for _ in range(n_steps):
        values.append(_step(words, values, reduced, dims))
    results = [values[int(n)] for n in islice(words, n_results)]
    return [np.array(v.reshape(shape), dtype) for v, (shape, _) in zip(results, outputs, strict=True)]


TWINS = {"map": run_map}
