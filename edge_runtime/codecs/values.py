"""How the values of an update are written: rows of arrays and the bytes they take, each with its bound.

A value format takes lists of flat float32 arrays ("parts": the tensors of a dense update, or the one array of selected
values) and gives the arrays of a tensor file, in which the parts lie one behind the other.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime import kernels
from edge_runtime.codecs.codec import BadCodec, BadUpdate
from edge_runtime.rng import derive_seed

__all__ = ["FORMATS", "ValueFormat"]

Parts = Sequence[NDArray[np.float32]]
Entries = Mapping[str, NDArray[Any]]

VALUE, SCALE = "value", "scale"
BLOCK, MAX_BLOCK = 256, 65_536


@dataclass(frozen=True)
class ValueFormat:
    """Parts <-> entries of a tensor file; `decode` needs the number of values in every part.

    Attributes:
        encode: (parts, seed) -> entries. The parts are finite and stay as they are; the seed is of formats that draw.
        decode: BadUpdate where the entries are not what `encode` makes of so many values.
        pieces: What decode gives, one piece a part, as a fold takes it: not widened where it can be helped.
        dtype: Of the entry "value".
        stored: Its elements for parts of so many values.
        names: Of the entries.
    """

    encode: Callable[[Parts, int], dict[str, NDArray[Any]]]
    decode: Callable[[Entries, Sequence[int]], list[NDArray[np.float32]]]
    pieces: Callable[[Entries, Sequence[int]], list[kernels.Piece]]
    dtype: str
    stored: Callable[[Sequence[int]], int] = sum
    names: tuple[str, ...] = ("value", "scale")


def entry(entries: Entries, name: str, dtype: str, count: int) -> NDArray[Any]:
    """One array of a tensor file: of this name, type and length, or BadUpdate.

    In place where its address fits its type, which that of an array behind an odd number of bytes does not: some
    processors load no float32 from there.
    """
    array = entries.get(name)
    if array is None or array.dtype != np.dtype(dtype) or array.shape != (count,):
        found = "is missing" if array is None else f"is {array.dtype} {array.shape}"
        raise BadUpdate(f"{name!r} {found}; it must be {dtype} ({count},)")
    return array if array.flags.aligned else array.copy()


def _of_type(
    dtype: str, largest: float, narrow: Callable[[Any], Any], widen: Callable[[Any], Any]
) -> Callable[[Sequence[str]], Any]:
    """A type of its own for every value; those beyond the type's largest are cut to it."""

    def encode(parts: Parts, _seed: int) -> dict[str, NDArray[Any]]:
        values = np.empty(sum(part.size for part in parts), dtype)
        for part, (begin, end) in zip(parts, _ranges([part.size for part in parts]), strict=True):
            values[begin:end] = narrow(np.clip(part, -largest, largest))
        return {VALUE: values}

    def decode(entries: Entries, counts: Sequence[int]) -> list[NDArray[np.float32]]:
        values = entry(entries, VALUE, dtype, sum(counts))
        return [widen(np.ascontiguousarray(values[begin:end])) for begin, end in _ranges(counts)]

    def pieces(entries: Entries, counts: Sequence[int]) -> list[kernels.Piece]:
        values = entry(entries, VALUE, dtype, sum(counts))
        return [kernels.Piece(values[begin:end]) for begin, end in _ranges(counts)]

    def build(arguments: Sequence[str]) -> ValueFormat:
        if arguments:
            raise BadCodec(f"takes no argument, got {' '.join(arguments)!r}")
        return ValueFormat(encode, decode, pieces, dtype, names=(VALUE,))

    return build


def _int8(arguments: Sequence[str]) -> ValueFormat:
    """Blocks of values over a float32 scale each: |error| <= scale / 2, 1 + 4 / block bytes a value."""
    block = _whole(arguments, 0, BLOCK, 1, MAX_BLOCK)
    return _in_blocks(block, lambda part, _: kernels.quantize_int8(part, block))


def _qsgd(arguments: Sequence[str]) -> ValueFormat:
    """The same, rounded up or down at random: no bias, whatever the number of levels."""
    levels, block = _whole(arguments[:1], 0, None, 1, 127), _whole(arguments, 1, BLOCK, 1, MAX_BLOCK)
    return _in_blocks(block, lambda part, seed: kernels.quantize_qsgd(part, levels, seed, block, norm="max"))


def _sign(arguments: Sequence[str]) -> ValueFormat:
    """A bit a value and the mean magnitude of every block: to be used with error feedback."""
    block = _whole(arguments, 0, BLOCK, 8, MAX_BLOCK)
    if block % 8:
        raise BadCodec(f"takes blocks of a multiple of 8 values, got {block}")

    def encode(parts: Parts, _seed: int) -> dict[str, NDArray[Any]]:
        return _joined([kernels.quantize_sign(part, block) for part in parts])

    def decode(entries: Entries, counts: Sequence[int]) -> list[NDArray[np.float32]]:
        parts = _split(entries, "uint8", [-(-count // 8) for count in counts], [-(-count // block) for count in counts])
        return [
            kernels.dequantize_sign(bits, scales, count, block)
            for (bits, scales), count in zip(parts, counts, strict=True)
        ]

    def pieces(entries: Entries, counts: Sequence[int]) -> list[kernels.Piece]:
        return [kernels.Piece(part) for part in decode(entries, counts)]

    return ValueFormat(encode, decode, pieces, "uint8", lambda counts: sum(-(-count // 8) for count in counts))


def _in_blocks(
    block: int, quantize: Callable[[NDArray[np.float32], int], tuple[NDArray[np.int8], NDArray[np.float32]]]
) -> ValueFormat:
    def encode(parts: Parts, seed: int) -> dict[str, NDArray[Any]]:
        return _joined([quantize(part, derive_seed(seed, number)) for number, part in enumerate(parts)])

    def decode(entries: Entries, counts: Sequence[int]) -> list[NDArray[np.float32]]:
        parts = _split(entries, "int8", counts, [-(-count // block) for count in counts])
        return [kernels.dequantize_int8(values, scales, block) for values, scales in parts]

    def pieces(entries: Entries, counts: Sequence[int]) -> list[kernels.Piece]:
        parts = _split(entries, "int8", counts, [-(-count // block) for count in counts])
        return [kernels.Piece(values, scales=scales, block=block) for values, scales in parts]

    return ValueFormat(encode, decode, pieces, "int8")


def _joined(coded: Sequence[tuple[NDArray[Any], NDArray[np.float32]]]) -> dict[str, NDArray[Any]]:
    return {VALUE: np.concatenate([q for q, _ in coded]), SCALE: np.concatenate([scales for _, scales in coded])}


def _split(
    entries: Entries, dtype: str, counts: Sequence[int], blocks: Sequence[int]
) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Values and scales of each part."""
    values, scales = entry(entries, VALUE, dtype, sum(counts)), entry(entries, SCALE, "<f4", sum(blocks))
    return [
        (np.ascontiguousarray(values[begin:end]), np.ascontiguousarray(scales[first:last]))
        for (begin, end), (first, last) in zip(_ranges(counts), _ranges(blocks), strict=True)
    ]


def _whole(arguments: Sequence[str], at: int, default: int | None, low: int, high: int) -> int:
    """The last argument, if it is at this place, as a whole number in low .. high; the default where there is none."""
    if len(arguments) > at + 1:
        raise BadCodec(f"takes at most {at + 1} argument(s), got {' '.join(arguments)!r}")
    if len(arguments) <= at and default is not None:
        return default
    text = arguments[at] if len(arguments) > at else ""
    if not text.isascii() or not text.isdigit() or not low <= int(text[:9]) <= high:
        raise BadCodec(f"takes a whole number in {low} .. {high}, got {text!r}")
    return int(text)


def _ranges(counts: Sequence[int]) -> list[tuple[int, int]]:
    return list(pairwise(accumulate(counts, initial=0)))


# Name of the stage -> what builds the format from the stage's arguments.
FORMATS: Mapping[str, Callable[[Sequence[str]], ValueFormat]] = {
    "fp32": _of_type("<f4", float(np.finfo(np.float32).max), lambda part: part, lambda values: values),
    "fp16": _of_type("<f2", 65504.0, kernels.to_float16, kernels.from_float16),
    "bf16": _of_type("<u2", 255 * 2.0**120, kernels.to_bfloat16, kernels.from_bfloat16),
    "int8": _int8,
    "qsgd": _qsgd,
    "sign": _sign,
}
