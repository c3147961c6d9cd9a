"""Lossless coders: ascending indices as gaps.

They run on one thread and need no workspace. Streams are the same bytes on every machine; a decoder answers bytes that
are no stream with `StreamError`, whose `args` are (rule, message), within memory and time that its arguments bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime import _core
from edge_runtime._core import StreamError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Buffer", "StreamError", "decode_indices", "encode_indices"]

Buffer = bytes | bytearray | memoryview


def encode_indices(indices: NDArray[np.int32], n: int) -> bytes:
    """Write ascending indices as gaps, 256 to a block, each block as a bitmap, in Golomb-Rice or raw.

    The parameter of a block follows its density; the shortest form wins. Indices that were drawn at random cost less
    than 3 % above the entropy of their gaps, those in clusters less than at random. At most 5 + 4 k bytes; a byte of
    extra memory for 256 indices.

    Args:
        indices: (k,), strictly ascending, each in 0..n-1.
        n: The number of places, at most 2**31 - 1. It is not in the stream.

    Raises:
        ValueError: n is out of range, or the indices do not ascend within it.
        TypeError: `indices` is not a C-contiguous int32 vector.

    Source: Golomb, 1966; Rice and Plaunt, 1971. The format is in csrc/algorithms/gaps.h.
    """
    return _core.encode_indices(indices, n)


def decode_indices(data: Buffer, n: int, max_count: int) -> NDArray[np.int32]:
    """Read what `encode_indices` wrote.

    Args:
        data: The whole stream and nothing else.
        n: As it was written with.
        max_count: The most indices to accept: 4 bytes each are allocated after the stream's count is checked.

    Returns:
        (k,), strictly ascending, each in 0..n-1; k <= min(n, max_count).

    Raises:
        StreamError: Truncated, BadCount, TooManyIndices, BadForm, IndexOutOfRange, TrailingBytes, BadPadding.
        ValueError: n or max_count is out of range.
    """
    return _core.decode_indices(data, n, max_count)
