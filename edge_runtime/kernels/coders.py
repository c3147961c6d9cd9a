"""Lossless coders: ascending indices as gaps, integers under given distributions as rANS.

They run on one thread and need no workspace. Streams are the same bytes on every machine; a decoder answers bytes that
are no stream with `StreamError`, whose `args` are (rule, message), within memory and time that its arguments bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from edge_runtime import _core
from edge_runtime._core import RansTables, StreamError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "Buffer",
    "RansTables",
    "StreamError",
    "decode_indices",
    "encode_indices",
    "quantized_cdf",
    "rans_decode",
    "rans_encode",
]

TOTAL = 1 << 16  # counts of a distribution

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


def rans_encode(
    symbols: NDArray[np.int32],
    tables: RansTables,
    indexes: NDArray[np.int32],
    *,
    state_bits: Literal[32, 64] = 64,
    ways: Literal[1, 2, 4] = 4,
) -> bytes:
    """Write every symbol under its own distribution, within 0.1 % of the cross-entropy and the states at the end.

    With 64 bits and one way these are the bytes of CompressAI. A symbol outside its distribution costs the escape and
    4 bits more than its own 4-bit groups.

    Args:
        symbols: (m,), any int32.
        tables: Made once, used for both directions, by any number of threads: `RansTables(cdfs, lengths, offsets)`
            of int32 arrays (rows, width), (rows,), (rows,). Row r has counts 0 = cdfs[r, 0] < ... <
            cdfs[r, lengths[r] - 1] = 65536; bin v is the symbol v + offsets[r], the last bin the escape.
        indexes: (m,), the row of each symbol.
        state_bits: 64 emits words of 32 bits and is faster; 32 emits bytes and saves 4 bytes a way, for short streams.
        ways: Interleaved states: more are faster, each costs state_bits / 8 bytes.

    Returns:
        The states and the words, without lengths and tables. Extra memory: m / 2 bytes and 12 KiB, or
        three times the stream and 24 KiB where that is more.

    Raises:
        ValueError: An index is no row, or there is not one for each symbol; state_bits or ways is none of those above.
        TypeError: An array is not a C-contiguous int32 vector.

    Source: Duda, 2013 (arXiv 1311.2540); Giesen, 2014 (interleaving, arXiv 1402.3392). csrc/algorithms/rans.h.
    """
    return _core.rans_encode(symbols, tables, indexes, state_bits, ways)


def rans_decode(
    data: Buffer,
    tables: RansTables,
    indexes: NDArray[np.int32],
    *,
    state_bits: Literal[32, 64] = 64,
    ways: Literal[1, 2, 4] = 4,
) -> NDArray[np.int32]:
    """Read what `rans_encode` wrote with the same tables, indexes, state_bits and ways; time and memory are O(m).

    Returns:
        (m,) symbols.

    Raises:
        StreamError: Truncated, BadEscape, TrailingBytes, BadState. The end of the states is checked, which few changes
            of a stream survive; those of an escaped symbol's own bits do, so this is no checksum.
        ValueError, TypeError: As `rans_encode`.
    """
    return _core.rans_decode(data, tables, indexes, state_bits, ways)


def quantized_cdf(pmf: NDArray[np.float64]) -> NDArray[np.int32]:
    """Give counts of 65536 in all, at least 1 each: one row of `RansTables`.

    Probabilities are rounded, scaled to the total and summed up; then every empty bin takes a count from the smallest
    bin that has more than one. Send the counts, or make them from bits that both sides have: another machine's floats
    may round elsewhere.

    Args:
        pmf: (bins,), 2 <= bins <= 65536, finite and not negative, not all below 2**-17; the last bin is the escape's.

    Raises:
        ValueError: pmf is none of that.

    Source: CompressAI, `pmf_to_quantized_cdf`.
    """
    p = np.asarray(pmf, np.float64)
    if p.ndim != 1 or not 2 <= len(p) <= TOTAL or not np.isfinite(p).all() or (p < 0).any():
        raise ValueError(f"pmf must be 2 to {TOTAL} finite probabilities in a vector, got shape {p.shape}")
    counts = np.floor(np.minimum(p, 1) * TOTAL + 0.5).astype(np.int64)
    if counts.sum() == 0:
        raise ValueError("pmf has no probability of at least 2**-17")
    edges = np.cumsum(counts * TOTAL // counts.sum())
    edges[-1] = TOTAL
    return np.concatenate([[0], np.cumsum(_without_empty(np.diff(edges, prepend=0)))]).astype(np.int32)


def _without_empty(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each empty bin in turn takes a count from the smallest that has two: at most 65536 bins leave one that has."""
    for empty in np.flatnonzero(counts == 0):
        counts[np.argmin(np.where(counts > 1, counts, TOTAL + 1))] -= 1
        counts[empty] = 1
    return counts
