"""The lossless last stage of a codec: the high byte of every value under its own distribution, where that is smaller.

The high byte is where values are alike: the whole of an int8, the sign and exponent of a half. Entry "coded" stands in
the place of "value" if it takes fewer bytes:

    present   32 bytes: bit b % 8 of byte b // 8 is set where the byte b occurs
    counts    2 bytes, little-endian, for each of the m that occur: of 65536 in all, at least one is left to the escape
    low       the other bytes of every value as they lie, (itemsize - 1) n
    stream    rANS (edge_runtime/kernels/coders.py): one state of 32 bits below 4,096 values, four of 64 bits from there

Memory beside the values: 9 bytes each.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_runtime import kernels
from edge_runtime.codecs.codec import BadUpdate
from edge_runtime.codecs.values import VALUE, Entries, Parts, ValueFormat, entry

__all__ = ["with_rans"]

CODED = "coded"
PRESENT_BYTES = 32
SHORT = 4_096
TOTAL = 1 << 16

Bytes = NDArray[np.uint8]


def with_rans(values: ValueFormat) -> ValueFormat:
    """A value format whose values are entropy-coded where it pays."""

    def encode(parts: Parts, seed: int) -> dict[str, NDArray[Any]]:
        entries = values.encode(parts, seed)
        coded = _pack(entries[VALUE]) if entries[VALUE].size else None
        if coded is not None and coded.size < entries[VALUE].nbytes:
            del entries[VALUE]
            entries[CODED] = coded
        return entries

    def unpacked(entries: Entries, counts: Sequence[int]) -> Entries:
        if CODED not in entries:
            return entries
        if VALUE in entries:
            raise BadUpdate(f"{VALUE!r} and {CODED!r} exclude one another")
        packed = entry(entries, CODED, "uint8", entries[CODED].size)
        return {**entries, VALUE: _unpack(packed, values.dtype, values.stored(counts))}

    return replace(
        values,
        encode=encode,
        decode=lambda entries, counts: values.decode(unpacked(entries, counts), counts),
        pieces=lambda entries, counts: values.pieces(unpacked(entries, counts), counts),
        names=(*values.names, CODED),
    )


def _pack(value: NDArray[Any]) -> Bytes:
    planes = value.view(np.uint8).reshape(value.size, -1)
    high = planes[:, -1]
    counts = np.bincount(high, minlength=256)
    present = counts > 0
    cdf = kernels.quantized_cdf(np.append(counts[present] / value.size, 0.0))
    symbols = (np.cumsum(present) - 1).astype(np.int32)[high]
    bits, ways = _states(value.size)
    stream = kernels.rans_encode(symbols, _table(cdf), np.zeros(value.size, np.int32), state_bits=bits, ways=ways)
    return np.concatenate(
        [
            np.packbits(present, bitorder="little"),
            np.diff(cdf)[:-1].astype("<u2").view(np.uint8),
            np.ascontiguousarray(planes[:, :-1]).reshape(-1),
            np.frombuffer(stream, np.uint8),
        ]
    )


def _unpack(packed: Bytes, dtype: str, count: int) -> NDArray[Any]:
    present = np.flatnonzero(np.unpackbits(packed[:PRESENT_BYTES], bitorder="little")).astype(np.uint8)
    low_bytes = np.dtype(dtype).itemsize - 1
    begin = PRESENT_BYTES + 2 * present.size
    end = begin + low_bytes * count
    if not present.size or packed.size < end:
        raise BadUpdate(f"{CODED!r} has {packed.size} bytes; {count} values with {present.size} symbols take more")
    cdf = np.concatenate([[0], np.cumsum(packed[PRESENT_BYTES:begin].view("<u2"), dtype=np.int64), [TOTAL]])
    if (np.diff(cdf) < 1).any():
        raise BadUpdate(f"{CODED!r} has counts that are not 1 .. {TOTAL - 1} in all")
    planes = np.empty((count, low_bytes + 1), np.uint8)
    planes[:, :-1] = packed[begin:end].reshape(count, low_bytes)
    planes[:, -1] = present[_symbols(packed[end:], cdf.astype(np.int32), count)]
    return planes.reshape(-1).view(dtype)


def _symbols(stream: Bytes, cdf: NDArray[np.int32], count: int) -> NDArray[np.int32]:
    bits, ways = _states(count)
    try:
        symbols = kernels.rans_decode(
            stream.tobytes(), _table(cdf), np.zeros(count, np.int32), state_bits=bits, ways=ways
        )
    except kernels.StreamError as error:
        raise BadUpdate(f"{CODED!r} is no rANS stream of {count} values: {error}") from None
    if count and not (symbols.min() >= 0 and symbols.max() < cdf.size - 2):
        raise BadUpdate(f"{CODED!r} has escaped symbols, which no byte needs")
    return symbols


def _table(cdf: NDArray[np.int32]) -> kernels.RansTables:
    return kernels.RansTables(cdf[None], np.array([cdf.size], np.int32), np.zeros(1, np.int32))


def _states(count: int) -> tuple[Literal[32, 64], Literal[1, 4]]:
    """(bits, ways) of the coder: short streams feel the states at their end."""
    return (32, 1) if count < SHORT else (64, 4)
