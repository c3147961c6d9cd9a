"""The slow twin of `fold`: the same whole numbers, term by term."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.kernels import reference_quantizers as quantizers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from edge_runtime.kernels.fold import Piece

__all__ = ["dense", "weighted_sum"]

COARSE, FINE = 2.0**-18, 2.0**-64


def dense(pieces: Sequence[Piece], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[np.float32]]:
    """The tensors of an update whose pieces do not overlap."""
    sizes = [int(np.prod(shapes[name])) for name in sorted(shapes)]
    flat = np.zeros(sum(sizes), np.float32)
    for piece in pieces:
        values = _float32(piece)
        places = np.arange(len(values)) + piece.begin if piece.places is None else piece.places
        flat[places] = values
    ends = list(accumulate(sizes))
    return {
        name: flat[end - size : end].reshape(shapes[name])
        for name, size, end in zip(sorted(shapes), sizes, ends, strict=True)
    }


def _float32(piece: Piece) -> NDArray[np.float32]:
    if piece.scales is not None:
        return quantizers.dequantize_int8(piece.values, piece.scales, piece.block)
    if piece.values.dtype == np.uint16:
        return quantizers.from_bfloat16(piece.values)
    return piece.values.astype(np.float32)


def weighted_sum(terms: Iterable[tuple[NDArray[np.float32], float]], size: int) -> NDArray[np.float64]:
    """Sum of weight * tensor over vectors of this size; Python's integers hold what the kernel takes apart."""
    units = np.zeros(size, object)
    for x, weight in terms:
        p = x.astype(np.float64) * weight
        coarse = np.rint(p / COARSE)
        fine = np.rint((p - coarse * COARSE) / FINE)
        units += np.array([(int(c) << 46) + int(f) for c, f in zip(coarse, fine, strict=True)], object)
    return np.array([int(unit) / (1 << 64) for unit in units]).reshape(size)
