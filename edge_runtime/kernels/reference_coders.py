"""The slow twins of `coders`: the same streams, bit by bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["decode_indices", "encode_indices"]

BLOCK = 256
FORM_BITS = 6
RAW = 32
QUOTIENTS = 16
WIDTH_BITS = 5


def encode_indices(indices: NDArray[np.int32], n: int) -> bytes:
    """As `coders.encode_indices`, one character a bit."""
    assert len(indices) == 0 or 0 <= indices[0] <= indices[-1] < n
    gaps = np.diff(indices.astype(np.int64), prepend=-1) - 1
    assert (gaps >= 0).all()
    bits = "".join(_block(gaps[begin : begin + BLOCK].tolist()) for begin in range(0, len(gaps), BLOCK))
    bits += "0" * (-len(bits) % 8)
    body = bytes(int(bits[i : i + 8][::-1], 2) for i in range(0, len(bits), 8))
    return _leb128(len(indices)) + body


def decode_indices(data: bytes, n: int) -> NDArray[np.int32]:
    """Read a stream that is known to be good."""
    end = next(i for i, byte in enumerate(data) if byte < 128) + 1
    count = sum((byte & 127) << (7 * i) for i, byte in enumerate(data[:end]))
    bits = iter("".join(f"{byte:08b}"[::-1] for byte in data[end:]))
    gaps = np.array([gap for begin in range(0, count, BLOCK) for gap in _gaps(bits, min(BLOCK, count - begin))])
    indices = np.cumsum(gaps.astype(np.int64) + 1) - 1
    assert len(indices) == 0 or indices[-1] < n
    return indices.astype(np.int32)


def _block(gaps: list[int]) -> str:
    """The shortest of all forms that the writer tries; of equal ones Golomb-Rice."""
    rice = _downhill(gaps, sorted(gaps)[(len(gaps) - 1) // 2])
    width = max(gaps).bit_length()
    if len(gaps) * width < _rice_bits(gaps, rice):
        return _number(RAW + width, FORM_BITS) + "".join(_number(gap, width) for gap in gaps)
    return _number(rice, FORM_BITS) + "".join(_rice(gap, rice) for gap in gaps)


def _downhill(gaps: list[int], median: int) -> int:
    b = max(median.bit_length() - 1, 0)
    while b < 30 and _rice_bits(gaps, b + 1) < _rice_bits(gaps, b):
        b += 1
    while b > 0 and _rice_bits(gaps, b - 1) <= _rice_bits(gaps, b):
        b -= 1
    return b


def _rice_bits(gaps: list[int], b: int) -> int:
    return sum(len(_rice(gap, b)) for gap in gaps)


def _rice(gap: int, b: int) -> str:
    if gap >> b >= QUOTIENTS:
        width = gap.bit_length()
        return "0" * QUOTIENTS + _number(width, WIDTH_BITS) + _number(gap, width)
    return "0" * (gap >> b) + "1" + _number(gap & ((1 << b) - 1), b)


def _gaps(bits: Iterator[str], count: int) -> Iterator[int]:
    form = _take(bits, FORM_BITS)
    for _ in range(count):
        if form >= RAW:
            yield _take(bits, form - RAW)
        else:
            quotient = 0
            while quotient < QUOTIENTS and next(bits) == "0":
                quotient += 1
            low = form if quotient < QUOTIENTS else _take(bits, WIDTH_BITS)
            yield (quotient % QUOTIENTS) << form | _take(bits, low)


def _number(value: int, count: int) -> str:
    return f"{value:0{count}b}"[::-1] if count else ""


def _take(bits: Iterator[str], count: int) -> int:
    return sum(int(next(bits)) << i for i in range(count))


def _leb128(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
