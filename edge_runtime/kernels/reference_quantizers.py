"""The slow twins of `quantizers`, written from their formulas; float16 is NumPy's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from edge_runtime.rng import hash64

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "dequantize_int8",
    "dequantize_sign",
    "from_bfloat16",
    "quantize_int8",
    "quantize_qsgd",
    "quantize_sign",
    "to_bfloat16",
    "to_float16",
]

Floats = NDArray[np.float32]
SMALLEST_NORMAL = np.finfo(np.float32).tiny
PARTIAL_SUMS = 16


def to_float16(x: Floats) -> NDArray[np.float16]:
    """As NumPy rounds it."""
    with np.errstate(over="ignore"):
        return x.astype(np.float16)


def to_bfloat16(x: Floats) -> NDArray[np.uint16]:
    """The upper half of the nearest float32 whose lower half is zero."""
    bits = x.view(np.uint32).astype(np.uint64)
    upper, lower = bits >> np.uint64(16), bits & np.uint64(0xFFFF)
    up = (lower > 0x8000) | ((lower == 0x8000) & (upper % 2 == 1))
    return np.where(np.isnan(x), upper | np.uint64(0x40), upper + up).astype(np.uint16)


def from_bfloat16(h: NDArray[np.uint16]) -> Floats:
    """Sixteen zero bits below."""
    return (h.astype(np.uint32) << np.uint32(16)).view(np.float32)


def quantize_int8(x: Floats, block: int) -> tuple[NDArray[np.int8], Floats]:
    """round_half_even(x / scale), block by block."""
    parts = [(part, _usable(np.max(np.abs(part)) / np.float32(127))) for part in _blocks(x, block)]
    q = [np.rint(part / scale) if scale else np.zeros_like(part) for part, scale in parts]
    return _joined(q).astype(np.int8), np.array([scale for _, scale in parts], np.float32)


def quantize_qsgd(
    x: Floats, levels: int, seed: int, block: int, norm: Literal["l2", "max"]
) -> tuple[NDArray[np.int8], Floats]:
    """sign(x) (floor(r) + [u < r - floor(r)]), r = |x| / scale."""
    u = _uniform(seed, len(x))
    q, scales = [], []
    for begin, part in enumerate(_blocks(x, block)):
        scale = _usable(_norm(part, norm, levels))
        r = np.abs(part) / scale if scale else np.zeros_like(part)
        rounded = np.floor(r) + (u[begin * block :][: len(part)] < r - np.floor(r))
        q.append(np.sign(part) * np.minimum(rounded, levels))
        scales.append(scale)
    return _joined(q).astype(np.int8), np.array(scales, np.float32)


def dequantize_int8(q: NDArray[np.int8], scales: Floats, block: int) -> Floats:
    """Q times the scale of its block."""
    return q.astype(np.float32) * np.repeat(scales, block)[: len(q)]


def quantize_sign(x: Floats, block: int) -> tuple[NDArray[np.uint8], Floats]:
    """Sign bits, and mean magnitudes."""
    scales = [_ordered_sum(np.abs(part.astype(np.float64))) / len(part) for part in _blocks(x, block)]
    return np.packbits(np.signbit(x), bitorder="little"), np.array(scales, np.float32)


def dequantize_sign(bits: NDArray[np.uint8], scales: Floats, n: int, block: int) -> Floats:
    """The scale of the block, negative where the bit is set."""
    negative = np.unpackbits(bits, count=n, bitorder="little").astype(bool)
    magnitudes = np.repeat(scales, block)[:n]
    return np.where(negative, -magnitudes, magnitudes)


def _blocks(x: Floats, block: int) -> Iterator[Floats]:
    return (x[begin : begin + block] for begin in range(0, len(x), block))


def _joined(parts: list[Floats]) -> Floats:
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


def _usable(scale: np.float32) -> np.float32:
    return np.float32(0) if scale < SMALLEST_NORMAL else scale


def _norm(part: Floats, norm: Literal["l2", "max"], levels: int) -> np.float32:
    """Of a block, over `levels`."""
    if norm == "max":
        return np.float32(np.max(np.abs(part)) / np.float32(levels))
    wide = np.sqrt(_ordered_sum(part.astype(np.float64) ** 2)) / levels
    return np.float32(min(wide, np.finfo(np.float32).max))


def _ordered_sum(values: NDArray[np.float64]) -> np.float64:
    """Sixteen partial sums, then halves added to halves."""
    rows = np.zeros((-(-len(values) // PARTIAL_SUMS), PARTIAL_SUMS))
    rows.flat[: len(values)] = values
    partial = np.zeros(PARTIAL_SUMS)
    for row in rows:
        partial += row
    while len(partial) > 1:
        partial = partial[: len(partial) // 2] + partial[len(partial) // 2 :]
    return np.float64(partial[0])


def _uniform(seed: int, n: int) -> Floats:
    h = hash64(seed, np.arange((n + 1) // 2, dtype=np.uint64))
    pairs = np.stack([h >> np.uint64(40), (h >> np.uint64(16)) & np.uint64(0xFFFFFF)], axis=1)
    return (pairs.reshape(-1)[:n].astype(np.float64) * 2.0**-24).astype(np.float32)
