"""Codecs made of stages: which values are sent, how values are written, how their places are written.

    ["topk 0.01 ef", "fp16", "rice"]    the hundredth largest, the rest carried over; 2 bytes each; places as coded gaps
    ["int8"]                            every value, in about a byte

First, if at all, `topk` or `dgc`; then a value format (edge_runtime/codecs/values.py), `fp32` where none is named;
then, after a selection, `rice`, or else 4 bytes a place. The bytes are a tensor file with the update's metadata and the
entries "value", "scale" (int8, qsgd, sign) and "place" (topk, dgc); the tensors lie one behind the other in the order
of their names, and a place counts through all of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime import kernels
from edge_runtime.codecs.codec import RESIDUAL, BadCodec, BadUpdate, Codec, Shapes, State
from edge_runtime.codecs.values import FORMATS, ValueFormat, entry
from edge_runtime.errors import RemoteError
from edge_runtime.rng import derive_seed
from edge_runtime.tensors import decode_tensors, encode_tensors

__all__ = ["build_pipeline"]

PLACE, MOMENTUM = "place", "momentum"
MAX_VALUES = (1 << 31) - 1  # places are int32

Arrays = dict[str, NDArray[Any]]
Decoded = tuple[Arrays, dict[str, str]]


class TooManyValues(RemoteError):
    """The tensors of a job hold more values than a place can count."""


def build_pipeline(texts: Sequence[str]) -> Codec:
    """The codec of these stages.

    Raises:
        BadCodec: Names the stage that cannot be built, and what may stand there.
    """
    if not texts:
        raise BadCodec('no stage; ["dense"] sends the tensors as they are')
    left = list(texts)
    chosen: Selector | None = _taken(left, SELECTORS)
    values: ValueFormat = _taken(left, FORMATS) or FORMATS["fp32"](())
    coded = chosen is not None and _taken(left, {"rice": _no_argument}) is not None
    if left:
        known = [*SELECTORS, *FORMATS, "rice"]
        raise BadCodec(f"stage {left[0]!r} is unknown or out of place; in this order, each at most once: {known}")
    if chosen is None:
        return Codec(tuple(texts), _dense_encode(values), _dense_decode(values))
    return Codec(
        tuple(texts),
        _sparse_encode(chosen, values, coded=coded),
        _sparse_decode(values, coded=coded),
        carries=chosen.carries,
    )


def _taken(left: list[str], builders: Mapping[str, Callable[[Sequence[str]], Any]]) -> Any:
    """What the first stage that is left builds, if it is one of these; it is left no more."""
    name, *arguments = left[0].split() if left and left[0].split() else [""]
    if name not in builders:
        return None
    text = left.pop(0)
    try:
        return builders[name](arguments)
    except BadCodec as error:
        raise BadCodec(f"stage {text!r} {error}") from None


Parts = list[NDArray[np.float32]]


@dataclass(frozen=True)
class Selector:
    """Which values are sent.

    Attributes:
        select: (parts, how many, slots: parts of each) -> a selection a part; the slots are changed in place.
        share: Of all values.
        carries: The slots.
    """

    select: Callable[[Parts, int, Mapping[str, Parts]], list[kernels.Selection]]
    share: float
    carries: tuple[str, ...]


def _topk(arguments: Sequence[str]) -> Selector:
    """The largest of all; with `ef` the rest is carried over (error feedback)."""
    share, *rest = arguments or [""]
    ratio = _number(share)
    if not 0 < ratio <= 1 or rest not in ([], ["ef"]):
        raise BadCodec("takes the share of values to send, in (0, 1], and then, if the rest is to be carried over, ef")
    if not rest:
        return Selector(lambda parts, count, _: kernels.top_k_tree(parts, count), ratio, ())
    return Selector(
        lambda parts, count, slots: kernels.top_k_residual_tree(parts, slots[RESIDUAL], count), ratio, (RESIDUAL,)
    )


def _dgc(arguments: Sequence[str]) -> Selector:
    """Deep gradient compression: what is carried gathers momentum, which ends where a value is sent."""
    share, factor = (_number(text) for text in ([*arguments, "", ""] if len(arguments) < 3 else ["", ""])[:2])
    if not 0 < share <= 1 or not 0 <= factor < 1:
        raise BadCodec("takes the share of values to send, in (0, 1], and the momentum, in [0, 1)")

    def select(parts: Parts, count: int, slots: Mapping[str, Parts]) -> list[kernels.Selection]:
        return kernels.dgc_tree(parts, slots[MOMENTUM], slots[RESIDUAL], count, factor)

    return Selector(select, share, (RESIDUAL, MOMENTUM))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return -1.0


def _no_argument(arguments: Sequence[str]) -> bool:
    if arguments:
        raise BadCodec("takes no argument")
    return True


SELECTORS: Mapping[str, Callable[[Sequence[str]], Selector]] = {"topk": _topk, "dgc": _dgc}


def count_of(share: float, total: int) -> int:
    """How many of so many values a share is: rounded to the nearest, at least one."""
    return max(1, round(share * total))


def _dense_encode(values: ValueFormat) -> Callable[[Arrays, Mapping[str, str], State], bytes]:
    def encode(tensors: Arrays, metadata: Mapping[str, str], _state: State) -> bytes:
        parts = [tensors[name].reshape(-1) for name in sorted(tensors)]
        return encode_tensors(values.encode(parts, _seed(metadata)), metadata)

    return encode


def _dense_decode(values: ValueFormat) -> Callable[[bytes, Shapes], Decoded]:
    def decode(data: bytes, shapes: Shapes) -> Decoded:
        entries, metadata = decode_tensors(data)
        names = sorted(shapes)
        parts = values.decode(entries, [prod(shapes[name]) for name in names])
        return {name: part.reshape(shapes[name]) for name, part in zip(names, parts, strict=True)}, metadata

    return decode


def _sparse_encode(
    selector: Selector, values: ValueFormat, *, coded: bool
) -> Callable[[Arrays, Mapping[str, str], State], bytes]:
    def encode(tensors: Arrays, metadata: Mapping[str, str], state: State) -> bytes:
        parts = [tensors[name].reshape(-1) for name in sorted(tensors)]
        total = _total([part.size for part in parts])
        slots = {slot: _carried(state, slot, tensors) for slot in selector.carries}
        found = selector.select(parts, count_of(selector.share, total), slots)
        selected = np.concatenate([each.values for each in found])
        entries = values.encode([selected], _seed(metadata))
        if RESIDUAL in slots:
            _keep_rounding(slots[RESIDUAL], found, selected - values.decode(entries, [selected.size])[0])
        starts = accumulate((part.size for part in parts), initial=0)
        places = np.concatenate([each.indices + start for each, start in zip(found, starts, strict=False)])
        packed = np.frombuffer(kernels.encode_indices(places, total), np.uint8) if coded else places
        return encode_tensors({**entries, PLACE: packed}, metadata)

    return encode


def _seed(metadata: Mapping[str, str]) -> int:
    """Of the formats that draw: a task that is done again draws the same."""
    return derive_seed("values", metadata.get("task", ""))


def _total(sizes: Sequence[int]) -> int:
    if sum(sizes) > MAX_VALUES:
        raise TooManyValues(f"{sum(sizes)} values; topk counts places up to {MAX_VALUES}")
    return sum(sizes)


def _carried(state: State, slot: str, tensors: Arrays) -> Parts:
    """What a slot holds of these tensors, flat, in the order of their names; zeros where there is nothing yet."""
    held = state.setdefault(slot, {})
    for name, tensor in tensors.items():
        if name not in held or held[name].shape != tensor.shape:
            held[name] = np.zeros(tensor.shape, np.float32)
    return [held[name].reshape(-1) for name in sorted(tensors)]


def _keep_rounding(kept: Parts, found: Sequence[kernels.Selection], lost: NDArray[np.float32]) -> None:
    """Put what the value format rounded away back into the residuals, so that nothing is lost but merely late."""
    begin = 0
    for residual, each in zip(kept, found, strict=True):
        residual[each.indices] += lost[begin : begin + each.indices.size]
        begin += each.indices.size


def _sparse_decode(values: ValueFormat, *, coded: bool) -> Callable[[bytes, Shapes], Decoded]:
    def decode(data: bytes, shapes: Shapes) -> Decoded:
        entries, metadata = decode_tensors(data)
        sizes = {name: prod(shapes[name]) for name in sorted(shapes)}
        total = _total(list(sizes.values()))
        places = _places(entries, total, coded=coded)
        selected = values.decode(entries, [places.size])[0]
        ends = np.searchsorted(places, list(accumulate(sizes.values(), initial=0)))
        tensors, start = {}, 0
        for (name, size), first, last in zip(sizes.items(), ends[:-1], ends[1:], strict=True):
            flat = np.zeros(size, np.float32)
            flat[places[first:last] - start] = selected[first:last]
            tensors[name] = flat.reshape(shapes[name])
            start += size
        return tensors, metadata

    return decode


def _places(entries: Mapping[str, NDArray[Any]], total: int, *, coded: bool) -> NDArray[np.int32]:
    if PLACE not in entries or entries[PLACE].ndim != 1:
        raise BadUpdate(f"{PLACE!r} is missing, or has not one dimension")
    if coded:
        packed = entry(entries, PLACE, "uint8", entries[PLACE].size)
        try:
            return kernels.decode_indices(packed.tobytes(), total, total)
        except kernels.StreamError as error:
            raise BadUpdate(f"{PLACE!r} is no stream of coded gaps: {error}") from None
    places = entry(entries, PLACE, "<i4", entries[PLACE].size)
    if places.size and (places[0] < 0 or places[-1] >= total or bool((np.diff(places) <= 0).any())):
        raise BadUpdate(f"{PLACE!r} must ascend within 0 .. {total - 1}")
    return places
