"""Values in fewer bits: float16, bfloat16, int8 by blocks, stochastic levels, signs.

Every function takes a C-contiguous vector and gives a new one; `workspace` holds the instruction set and the threads,
and None stands for one thread. Results are the same bits whatever it holds. Formulas are in csrc/kernels/quantize.h.
TypeError: an array is of another dtype, has more dimensions or is not contiguous.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from edge_runtime import _core

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "dequantize_int8",
    "dequantize_sign",
    "from_bfloat16",
    "from_float16",
    "quantize_int8",
    "quantize_qsgd",
    "quantize_sign",
    "to_bfloat16",
    "to_float16",
]


def to_float16(x: NDArray[np.float32], *, workspace: _core.Workspace | None = None) -> NDArray[np.float16]:
    """Round to the nearest float16, ties to even, subnormals too.

    |x| >= 65520 becomes infinity. Otherwise |x - result| <= max(2**-11 |x|, 2**-25). A NaN stays one, quiet, with the
    upper bits it had.
    """
    return _core.to_float16(workspace or _core.Workspace(), x).view(np.float16)


def from_float16(h: NDArray[np.float16], *, workspace: _core.Workspace | None = None) -> NDArray[np.float32]:
    """Give the float32 of the same value; a NaN turns quiet."""
    return _core.from_float16(workspace or _core.Workspace(), _words(h))


def to_bfloat16(x: NDArray[np.float32], *, workspace: _core.Workspace | None = None) -> NDArray[np.uint16]:
    """Round to the nearest bfloat16, ties to even, subnormals too; its bits, which are the upper ones of a float32.

    |x| >= 3.396e38 (half a unit above the largest bfloat16) becomes infinity. Otherwise, and unless x is subnormal,
    |x - result| <= 2**-8 |x|. A NaN stays one, quiet.
    """
    return _core.to_bfloat16(workspace or _core.Workspace(), x)


def from_bfloat16(h: NDArray[np.uint16], *, workspace: _core.Workspace | None = None) -> NDArray[np.float32]:
    """Give the float32 of the same value."""
    return _core.from_bfloat16(workspace or _core.Workspace(), h)


def quantize_int8(
    x: NDArray[np.float32], block: int = 256, *, workspace: _core.Workspace | None = None
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round every block to multiples of its largest magnitude / 127.

    Args:
        x: (n,), finite.
        block: Values that share a scale, in 1..2**31 - 1.
        workspace: Its threads share the blocks.

    Returns:
        q (n,) in -127..127 and scales (ceil(n / block),): |x - q scale| <= (1/2 + 2**-16) scale. A block below
        1.5e-36 is zeros with scale 0.

    Raises:
        ValueError: A value is not finite, or block is out of range.
    """
    return _core.quantize_int8(workspace or _core.Workspace(), x, block)


def quantize_qsgd(  # noqa: PLR0913 - the numbers of the formula, and where it runs
    x: NDArray[np.float32],
    levels: int,
    seed: int,
    block: int = 256,
    *,
    norm: Literal["l2", "max"] = "l2",
    workspace: _core.Workspace | None = None,
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round |x| levels / norm up or down at random, by how near each is; `dequantize_int8` reads it.

    Unbiased: the mean over seeds of q scale is x, but for at most 2**-24 (|x| + scale). The variance of an element is
    at most scale**2 / 4, and with "l2" that of a block at most min(block / levels**2, sqrt(block) / levels) ||x||**2.

    Args:
        x: (n,), finite.
        levels: 1..127; 1 with "max" is TernGrad.
        seed: 0..2**64 - 1. Element i takes 24 bits of hash64(seed, i // 2), whatever block and threads are.
        block: Values that share a norm, in 1..2**31 - 1.
        norm: The Euclidean norm of a block, as in the paper, or its largest magnitude, which has less variance.
        workspace: Its threads share the blocks.

    Returns:
        q (n,) in -levels..levels and scales (ceil(n / block),) = norm / levels. A scale below 1.2e-38 is 0, and its
        block zeros.

    Raises:
        ValueError: A value is not finite, or levels, block or norm is none of those above.

    Source: Alistarh et al., 2017 (QSGD), eq. 4, in buckets (section 3.3); Wen et al., 2017 (TernGrad).
    """
    if norm not in {"l2", "max"}:
        raise ValueError(f"norm must be 'l2' or 'max', got {norm!r}")
    return _core.quantize_qsgd(workspace or _core.Workspace(), x, levels, block, seed, norm == "l2")


def dequantize_int8(
    q: NDArray[np.int8], scales: NDArray[np.float32], block: int = 256, *, workspace: _core.Workspace | None = None
) -> NDArray[np.float32]:
    """Give q scale, rounded once; scales that are not finite are not refused.

    Raises:
        ValueError: block is out of range, or there is not a scale a block.
    """
    return _core.dequantize_int8(workspace or _core.Workspace(), q, scales, block)


def quantize_sign(
    x: NDArray[np.float32], block: int = 256, *, workspace: _core.Workspace | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Keep the signs, and the mean magnitude of every block.

    What is lost of a block is sum(x**2) - sum(|x|)**2 / block, the least that one magnitude for all signs can lose; it
    is a contraction, so error feedback converges. Biased.

    Args:
        x: (n,), finite.
        block: Values that share a scale: a multiple of 8 in 8..2**31 - 8.
        workspace: Its threads share the blocks.

    Returns:
        bits (ceil(n / 8),): bit i % 8 of byte i // 8 is the sign bit of x[i], the last ones are zero; and scales
        (ceil(n / block),).

    Raises:
        ValueError: A value is not finite, or block is out of range.

    Source: Karimireddy et al., 2019 ("Error feedback fixes SignSGD"), section 4.
    """
    return _core.quantize_sign(workspace or _core.Workspace(), x, block)


def dequantize_sign(
    bits: NDArray[np.uint8],
    scales: NDArray[np.float32],
    n: int,
    block: int = 256,
    *,
    workspace: _core.Workspace | None = None,
) -> NDArray[np.float32]:
    """Give the (n,) scales with the signs of `bits`.

    Raises:
        ValueError: block is out of range, or there are not ceil(n / 8) bytes and a scale a block.
    """
    return _core.dequantize_sign(workspace or _core.Workspace(), bits, scales, n, block)


def _words(h: NDArray[np.float16]) -> NDArray[np.uint16]:
    if h.dtype != np.float16:
        raise TypeError(f"h must be float16, got {h.dtype}")
    return h.view(np.uint16)
