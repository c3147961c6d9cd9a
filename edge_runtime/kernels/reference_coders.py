"""The slow twins of `coders`: the same streams, bit by bit."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["decode_indices", "encode_indices", "rans_decode", "rans_encode"]

BLOCK = 256
FORM_BITS = 6
RAW = 32
QUOTIENTS = 16
WIDTH_BITS = 5
STATES = {64: (1 << 31, 32), 32: (1 << 23, 8)}  # the lowest state, the bits of a word


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


@dataclass(frozen=True)
class Row:
    """One distribution: cumulative counts up to 65536, the last bin the escape, and the symbol of the first bin."""

    cdf: list[int]
    offset: int


def rans_encode(symbols: list[int], rows: list[Row], indexes: list[int], state_bits: int, ways: int) -> bytes:
    """As `coders.rans_encode`, with whole numbers and a list of words."""
    low, word_bits = STATES[state_bits]
    states, words = [low] * ways, list[int]()

    def room(way: int, frequency: int) -> int:
        x = states[way]
        while x >= (low >> 16 << word_bits) * frequency:
            words.append(x & ((1 << word_bits) - 1))
            x >>= word_bits
        return x

    for i in reversed(range(len(symbols))):
        row, way = rows[indexes[i]], i % ways
        value, escape = symbols[i] - row.offset, len(row.cdf) - 2
        if not 0 <= value < escape:
            code = -2 * value - 1 if value < 0 else 2 * (value - escape)
            groups = [code >> (4 * j) & 15 for j in range(-(-code.bit_length() // 4))]
            for group in [*reversed(groups), len(groups)]:
                states[way] = room(way, 1 << 12) << 4 | group
            value = escape
        frequency = row.cdf[value + 1] - row.cdf[value]
        quotient, rest = divmod(room(way, frequency), frequency)
        states[way] = (quotient << 16) + rest + row.cdf[value]
    state_bytes = b"".join(x.to_bytes(state_bits // 8, "little") for x in states)
    return state_bytes + b"".join(word.to_bytes(word_bits // 8, "little") for word in reversed(words))


def rans_decode(data: bytes, rows: list[Row], indexes: list[int], state_bits: int, ways: int) -> list[int]:
    """Read a stream that is known to be good."""
    low, word_bits = STATES[state_bits]
    size = state_bits // 8
    states = [int.from_bytes(data[way * size : way * size + size], "little") for way in range(ways)]
    step = word_bits // 8
    words = iter(int.from_bytes(data[i : i + step], "little") for i in range(ways * size, len(data), step))

    def take(way: int, x: int) -> None:
        while x < low:
            x = x << word_bits | next(words)
        states[way] = x

    def take_group(way: int) -> int:
        group = states[way] & 15
        take(way, states[way] >> 4)
        return group

    symbols = []
    for i, index in enumerate(indexes):
        row, way = rows[index], i % ways
        count = states[way] & 0xFFFF
        value = bisect.bisect_right(row.cdf, count) - 1
        take(way, (row.cdf[value + 1] - row.cdf[value]) * (states[way] >> 16) + count - row.cdf[value])
        if value == len(row.cdf) - 2:
            code = sum(take_group(way) << (4 * j) for j in range(take_group(way)))
            value = -(code // 2) - 1 if code % 2 else code // 2 + value
        symbols.append(value + row.offset)
    assert states == [low] * ways
    return symbols


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
