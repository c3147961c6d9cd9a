"""How the values of an update are written: rows of arrays and the bytes they take, each with its bound.

A value format takes lists of flat float32 arrays ("parts": the tensors of a dense update, or the one array of selected
values) and gives the arrays of a tensor file, in which the parts lie one behind the other.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime import kernels
from edge_runtime.codecs.codec import BadCodec, BadUpdate

__all__ = ["FORMATS", "ValueFormat"]

Parts = Sequence[NDArray[np.float32]]
Entries = Mapping[str, NDArray[Any]]

VALUE, SCALE = "value", "scale"
INT8_BLOCK, MAX_BLOCK = 256, 65_536


@dataclass(frozen=True)
class ValueFormat:
    """Parts <-> entries of a tensor file; `decode` needs the number of values in every part.

    Attributes:
        encode: The parts are finite and stay as they are.
        decode: BadUpdate where the entries are not what `encode` makes of so many values.
    """

    encode: Callable[[Parts], dict[str, NDArray[Any]]]
    decode: Callable[[Entries, Sequence[int]], list[NDArray[np.float32]]]


def entry(entries: Entries, name: str, dtype: str, count: int) -> NDArray[Any]:
    """One array of a tensor file: of this name, type and length, or BadUpdate."""
    array = entries.get(name)
    if array is None or array.dtype != np.dtype(dtype) or array.shape != (count,):
        found = "is missing" if array is None else f"is {array.dtype} {array.shape}"
        raise BadUpdate(f"{name!r} {found}; it must be {dtype} ({count},)")
    return array


def _of_type(
    dtype: str, largest: float, narrow: Callable[[Any], Any], widen: Callable[[Any], Any]
) -> Callable[[Sequence[str]], Any]:
    """A type of its own for every value; those beyond the type's largest are cut to it."""

    def encode(parts: Parts) -> dict[str, NDArray[Any]]:
        values = np.empty(sum(part.size for part in parts), dtype)
        for part, (begin, end) in zip(parts, _ranges([part.size for part in parts]), strict=True):
            values[begin:end] = narrow(np.clip(part, -largest, largest))
        return {VALUE: values}

    def decode(entries: Entries, counts: Sequence[int]) -> list[NDArray[np.float32]]:
        values = entry(entries, VALUE, dtype, sum(counts))
        return [widen(np.ascontiguousarray(values[begin:end])) for begin, end in _ranges(counts)]

    def build(arguments: Sequence[str]) -> ValueFormat:
        if arguments:
            raise BadCodec(f"takes no argument, got {' '.join(arguments)!r}")
        return ValueFormat(encode, decode)

    return build


def _int8(arguments: Sequence[str]) -> ValueFormat:
    """Blocks of values over a float32 scale each: |error| <= scale / 2, 1 + 4 / block bytes a value."""
    block = _block(arguments)

    def encode(parts: Parts) -> dict[str, NDArray[Any]]:
        coded = [kernels.quantize_int8(part, block) for part in parts]
        return {VALUE: np.concatenate([q for q, _ in coded]), SCALE: np.concatenate([scale for _, scale in coded])}

    def decode(entries: Entries, counts: Sequence[int]) -> list[NDArray[np.float32]]:
        blocks = [-(-count // block) for count in counts]
        values, scales = entry(entries, VALUE, "int8", sum(counts)), entry(entries, SCALE, "<f4", sum(blocks))
        return [
            kernels.dequantize_int8(
                np.ascontiguousarray(values[begin:end]), np.ascontiguousarray(scales[first:last]), block
            )
            for (begin, end), (first, last) in zip(_ranges(counts), _ranges(blocks), strict=True)
        ]

    return ValueFormat(encode, decode)


def _block(arguments: Sequence[str]) -> int:
    if not arguments:
        return INT8_BLOCK
    text = arguments[0]
    if len(arguments) > 1 or not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= MAX_BLOCK:
        raise BadCodec(f"takes the values in a block, 1 .. {MAX_BLOCK}, got {' '.join(arguments)!r}")
    return int(text)


def _ranges(counts: Sequence[int]) -> list[tuple[int, int]]:
    ends = np.concatenate([[0], np.cumsum(counts)])
    return list(pairwise(int(end) for end in ends))


# Name of the stage -> what builds the format from the stage's arguments.
FORMATS: Mapping[str, Callable[[Sequence[str]], ValueFormat]] = {
    "fp32": _of_type("<f4", float(np.finfo(np.float32).max), lambda part: part, lambda values: values),
    "fp16": _of_type("<f2", 65504.0, kernels.to_float16, kernels.from_float16),
    "bf16": _of_type("<u2", 255 * 2.0**120, kernels.to_bfloat16, kernels.from_bfloat16),
    "int8": _int8,
}
