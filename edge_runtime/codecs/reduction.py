"""The first stage of a codec: which numbers stand for the tensors, and what is carried over of the others."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import isfinite, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.codecs.codec import RESIDUAL, BadCodec, Shapes, State
from edge_runtime.errors import RemoteError
from edge_runtime.kernels import Piece

__all__ = [
    "MAX_VALUES",
    "WHOLE",
    "Arguments",
    "Arrays",
    "Entries",
    "Layout",
    "Parts",
    "Reduced",
    "Reduction",
    "TooManyValues",
    "parse_arguments",
    "round_of",
    "slot_of",
    "with_feedback",
]

MAX_VALUES = (1 << 31) - 1  # places and rows are int32

Arrays = dict[str, NDArray[Any]]
Entries = Mapping[str, NDArray[Any]]
Metadata = Mapping[str, str]
Parts = Sequence[NDArray[np.float32]]


class TooManyValues(RemoteError):
    """The tensors of a job hold more values than a place can count."""


class MissingRound(RemoteError):
    """A stage that changes with the rounds is given metadata without one."""


@dataclass(frozen=True)
class Layout:
    """What is to be read, known before the values are.

    Attributes:
        counts: Values in every part.
        restore: Parts of so many values -> (name, new float32 tensor) in the order of the names, one at a time.
        place: Where parts stand for values of the tensors: parts as pieces -> the same with their places.
    """

    counts: Sequence[int]
    restore: Callable[[Parts], Iterator[tuple[str, NDArray[np.float32]]]]
    place: Callable[[list[Piece]], list[Piece]] | None = None


@dataclass(frozen=True)
class Reduced:
    """What stands for the tensors.

    Attributes:
        parts: Flat arrays for the value format.
        side: Entries of the tensor file that say where they belong.
        layout: What `Reduction.layout` makes of `side`.
        settle: Told what the value format made of the parts; leaves in the state what was not said.
    """

    parts: Parts
    side: Arrays
    layout: Layout
    settle: Callable[[Parts], None] = lambda _: None


@dataclass(frozen=True)
class Reduction:
    """A first stage.

    Attributes:
        reduce: (tensors, metadata, state) -> what stands for them; tensors and state are changed.
        layout: (entries, shapes) -> where the parts belong. BadUpdate where `reduce` cannot have written these entries.
        side: The names of its own entries.
        carries: As in Codec.
        remembers: As in Codec.
    """

    reduce: Callable[[Arrays, Metadata, State], Reduced]
    layout: Callable[[Entries, Shapes], Layout]
    side: tuple[str, ...] = ()
    carries: tuple[str, ...] = ()
    remembers: bool = False


def _reshape(shapes: Shapes) -> Layout:
    names = sorted(shapes)

    def restore(parts: Parts) -> Iterator[tuple[str, NDArray[np.float32]]]:
        for name, part in zip(names, parts, strict=True):
            yield name, part.reshape(shapes[name])

    sizes = [prod(shapes[name]) for name in names]

    def place(parts: list[Piece]) -> list[Piece]:
        begins = accumulate(sizes, initial=0)
        return [replace(part, begin=begin) for part, begin in zip(parts, begins, strict=False)]

    return Layout(sizes, restore, place)


def _flatten(tensors: Arrays, _metadata: Metadata, _state: State) -> Reduced:
    parts = [tensors[name].reshape(-1) for name in sorted(tensors)]
    return Reduced(parts, {}, _reshape({name: tensor.shape for name, tensor in tensors.items()}))


WHOLE = Reduction(_flatten, lambda _entries, shapes: _reshape(shapes))  # every value


def with_feedback(reduction: Reduction) -> Reduction:
    """Error feedback round a stage that carries no residual: what its bytes do not say joins the next update.

    Residual <- residual + tensors; encode the residual; residual <- residual - what the bytes say. Memory beside the
    update: the residual, 4 bytes a value, and one tensor.

    Source: Karimireddy et al.: Error Feedback Fixes SignSGD and other Gradient Compression Schemes, 2019, algorithm 2.
    """

    def reduce(tensors: Arrays, metadata: Metadata, state: State) -> Reduced:
        carried = slot_of(state, RESIDUAL, {name: tensor.shape for name, tensor in tensors.items()})
        for name, tensor in tensors.items():
            carried[name] += tensor
        reduced = reduction.reduce(carried, metadata, state)

        def settle(parts: Parts) -> None:
            for name, said in reduced.layout.restore(parts):
                carried[name] -= said

        return Reduced(reduced.parts, reduced.side, reduced.layout, settle)

    return Reduction(reduce, reduction.layout, reduction.side, (RESIDUAL, *reduction.carries))


def slot_of(state: State, slot: str, shapes: Shapes) -> Arrays:
    """What a slot holds for these names, to be changed in place; zeros where it has none of that shape yet."""
    held = state.setdefault(slot, {})
    for name, shape in shapes.items():
        if name not in held or held[name].shape != shape:
            held[name] = np.zeros(shape, np.float32)
    return {name: held[name] for name in shapes}


def total_of(sizes: Iterable[int]) -> int:
    """The sum.

    Raises:
        TooManyValues: It is no int32.
    """
    total = sum(sizes)
    if total > MAX_VALUES:
        raise TooManyValues(f"{total} values; places count up to {MAX_VALUES}")
    return total


def round_of(metadata: Metadata) -> int:
    """The round an update is made in, from 1.

    Raises:
        MissingRound: The metadata do not say.
    """
    text = metadata.get("round", "")
    if not (text.isascii() and text.isdigit()):
        raise MissingRound(f"the metadata's round is {text!r}; a stage that changes with the rounds needs a number")
    return max(1, int(text))


@dataclass(frozen=True)
class Arguments:
    """What stands behind the name of a stage: `0.01 0.9 clip 5 ef` is numbers, named numbers and flags."""

    numbers: tuple[float, ...]
    named: Mapping[str, float]
    flags: Collection[str]


def parse_arguments(texts: Sequence[str], *, named: Collection[str] = (), flags: Collection[str] = ()) -> Arguments:
    """Sort the arguments of a stage.

    Raises:
        BadCodec: A word is neither a finite number nor among `named` and `flags`, is repeated, or lacks its number.
    """
    numbers: list[float] = []
    found: dict[str, float] = {}
    raised: list[str] = []
    left = list(texts)
    while left:
        word = left.pop(0)
        if word in found or word in raised:
            raise BadCodec(f"has {word!r} twice")
        if word in named:
            found[word] = _number(left.pop(0) if left else "", named, flags)
        elif word in flags:
            raised.append(word)
        elif found or raised:
            raise BadCodec(f"has {word!r}, where one of {[*named, *flags]} may stand")
        else:
            numbers.append(_number(word, named, flags))
    return Arguments(tuple(numbers), found, raised)


def _number(text: str, named: Collection[str], flags: Collection[str]) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not isfinite(value):
        raise BadCodec(f"has {text!r} where a number must stand; words it knows: {[*named, *flags]}")
    return value
