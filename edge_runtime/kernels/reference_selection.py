"""The slow twins of selection: a stable sort by magnitude."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

__all__ = ["above", "accumulate_dgc", "magnitude", "sent", "top_k"]


def magnitude(x: Array, *, bfloat16: bool = False) -> Array:
    """|x| as float64; uint16 holds float16's or bfloat16's bits."""
    if x.dtype == np.uint16:
        x = (x.astype(np.uint32) << 16).view(np.float32) if bfloat16 else x.view(np.float16)
    return np.abs(x.astype(np.float64)).reshape(-1)


def top_k(x: Array, k: int, *, bfloat16: bool = False) -> Array:
    """Ascending places of the k largest |x|, of equals the lower."""
    order = np.argsort(-magnitude(x, bfloat16=bfloat16), kind="stable")
    return np.sort(order[:k])


def above(x: Array, threshold: float, *, bfloat16: bool = False) -> Array:
    """Ascending places of |x| >= threshold."""
    return np.flatnonzero(magnitude(x, bfloat16=bfloat16) >= threshold)


def accumulate_dgc(
    gradient: Array, momentum: Array, residual: Array, factor: float, *, nesterov: bool = False
) -> tuple[Array, Array]:
    """(u, v) after u = m u + g, v = v + u, every operation rounded to the operands' dtype (arXiv 1712.01887)."""
    m = gradient.dtype.type(factor)
    u = m * (momentum + gradient) if nesterov else m * momentum + gradient
    return u, residual + ((u + gradient) if nesterov else u)


def sent(residual: Array, k: int) -> tuple[Array, Array, Array]:
    """(places, values, what stays) of a residual of which the k largest are sent."""
    places = top_k(residual, k)
    values = residual.reshape(-1)[places]
    rest = residual.copy()
    rest.reshape(-1)[places] = 0
    return places, values, rest
