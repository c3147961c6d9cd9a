"""Codecs that send the values of largest magnitude: topk, threshold, dgc, ef21.

Entries: "place", which values were sent, counted through all tensors in the order of their names, ascending: int32, or
the coded gaps of edge_runtime/kernels/coders.py after `rice`. One part: the values.

Control variates (SCAFFOLD, names `control/...`) are chosen among themselves: their changes are of a gradient's size,
often a hundred times that of the weights' changes, of which nothing would be sent.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod, sqrt

import numpy as np
from numpy.typing import NDArray

from edge_runtime import kernels
from edge_runtime.codecs.codec import RESIDUAL, BadCodec, BadUpdate, Shapes, State
from edge_runtime.codecs.reduction import (
    Arrays,
    Entries,
    Layout,
    Metadata,
    Parts,
    Reduced,
    Reduction,
    parse_arguments,
    round_of,
    slot_of,
    total_of,
)
from edge_runtime.codecs.values import entry
from edge_runtime.plan import CONTROL

__all__ = ["SELECTORS", "Selector", "selecting"]

PLACE, MOMENTUM, MEMORY = "place", "momentum", "memory"


@dataclass(frozen=True)
class Selector:
    """Which values are sent.

    Attributes:
        select: (parts, metadata, slots: parts of each) -> a selection a part; parts and slots are changed in place.
        most: Of so many values, how many at most.
        carries: The slots: RESIDUAL gains what the value format loses, MEMORY what the update says.
    """

    select: Callable[[Parts, Metadata, Mapping[str, Parts]], list[kernels.Selection]]
    most: Callable[[int], int]
    carries: tuple[str, ...] = ()


def _topk(texts: Sequence[str]) -> Selector:
    """The largest of all; with `ef` the rest is carried over (gradient dropping, Aji and Heafield, 2017)."""
    arguments = parse_arguments(texts, flags=("ef",))
    share = arguments.numbers[0] if len(arguments.numbers) == 1 else 0
    if not 0 < share <= 1:
        raise BadCodec("takes the share of values to send, in (0, 1], and then, if the rest is to be carried over, ef")

    def select(parts: Parts, _metadata: Metadata, slots: Mapping[str, Parts]) -> list[kernels.Selection]:
        count = count_of(share, _size(parts))
        if RESIDUAL in slots:
            return kernels.top_k_residual_tree(parts, slots[RESIDUAL], count)
        return kernels.top_k_tree(parts, count)

    return Selector(select, lambda total: count_of(share, total), (RESIDUAL,) if arguments.flags else ())


def _threshold(texts: Sequence[str]) -> Selector:
    """Every value of at least this magnitude; with `ef` the rest is carried over.

    Source: N. Strom: Scalable Distributed DNN Training Using Commodity GPU Cloud Computing, Interspeech 2015. Differs:
    values are sent, not the threshold with their sign.
    """
    arguments = parse_arguments(texts, flags=("ef",))
    least = arguments.numbers[0] if len(arguments.numbers) == 1 else 0
    if not least > 0:
        raise BadCodec("takes the magnitude, above 0, from which values are sent, and then, to carry the rest over, ef")

    def select(parts: Parts, _metadata: Metadata, slots: Mapping[str, Parts]) -> list[kernels.Selection]:
        if RESIDUAL not in slots:
            return [kernels.above(part, least) for part in parts]
        found = []
        for part, residual in zip(parts, slots[RESIDUAL], strict=True):
            np.add(residual, part, out=residual)
            found.append(kernels.above(residual, least))
            residual[found[-1].indices] = 0
        return found

    return Selector(select, lambda total: total, (RESIDUAL,) if arguments.flags else ())


def _dgc(texts: Sequence[str]) -> Selector:
    """Deep gradient compression: what is carried gathers momentum, which ends where a value is sent.

    Source: Lin et al., ICLR 2018, algorithm 4 and section 3.3; the warm-up's shares are those of the authors' code,
    share^(r / (W + 1)) in round r of W. Differs: shares are over all tensors together, and what is compressed is a
    round's update.
    """
    arguments = parse_arguments(texts, named=("clip", "warmup"))
    share, factor = arguments.numbers if len(arguments.numbers) == 2 else (0, 0)
    clip, warmup = arguments.named.get("clip", 0.0), arguments.named.get("warmup", 0.0)
    if not 0 < share <= 1 or not 0 <= factor < 1:
        raise BadCodec("takes the share of values to send, in (0, 1], and the momentum, in [0, 1)")
    if "clip" in arguments.named and not clip > 0:
        raise BadCodec(f"takes a norm above 0 after clip, got {clip:g}")
    if "warmup" in arguments.named and not (1 <= warmup <= 1_000_000 and warmup.is_integer()):
        raise BadCodec(f"takes a whole number of rounds in 1 .. 1000000 after warmup, got {warmup:g}")

    def select(parts: Parts, metadata: Metadata, slots: Mapping[str, Parts]) -> list[kernels.Selection]:
        now = share ** min(1.0, round_of(metadata) / (warmup + 1)) if warmup else share
        if clip:
            _clip(parts, clip)
        count = count_of(now, _size(parts))
        return kernels.dgc_tree(parts, slots[MOMENTUM], slots[RESIDUAL], count, factor)

    most = (lambda total: total) if warmup else (lambda total: count_of(share, total))
    return Selector(select, most, (RESIDUAL, MOMENTUM))


def _ef21(texts: Sequence[str]) -> Selector:
    """The largest differences to a memory of what was sent, which the gateway holds as well, summed over devices.

    c = C(x - g), g <- g + c on the device; sum g <- sum g + sum c on the gateway (coordinator/methods/ef21.py).

    Source: Richtarik, Sokolov, Fatkhullin: EF21: A New, Simpler, Theoretically Better, and Practically Faster Error
    Feedback, NeurIPS 2021. Differs: g begins at zero, so the first update is the paper's g^0.
    """
    numbers = parse_arguments(texts).numbers
    share = numbers[0] if len(numbers) == 1 else 0
    if not 0 < share <= 1:
        raise BadCodec("takes the share of values to send, in (0, 1]")

    def select(parts: Parts, _metadata: Metadata, slots: Mapping[str, Parts]) -> list[kernels.Selection]:
        for part, memory in zip(parts, slots[MEMORY], strict=True):
            np.subtract(part, memory, out=part)
        return kernels.top_k_tree(parts, count_of(share, _size(parts)))

    return Selector(select, lambda total: count_of(share, total), (MEMORY,))


SELECTORS: Mapping[str, Callable[[Sequence[str]], Selector]] = {
    "topk": _topk,
    "threshold": _threshold,
    "dgc": _dgc,
    "ef21": _ef21,
}


def count_of(share: float, total: int) -> int:
    """How many of so many values a share is: rounded to the nearest, at least one."""
    return max(1, round(share * total))


def _size(parts: Parts) -> int:
    return sum(part.size for part in parts)


def _clip(parts: Parts, norm: float) -> None:
    """Scale all parts together down to a norm."""
    found = sqrt(sum(float(np.einsum("i,i", part, part, dtype=np.float64)) for part in parts))
    if found > norm:
        for part in parts:
            np.multiply(part, np.float32(norm / found), out=part)


def selecting(selector: Selector, *, coded: bool) -> Reduction:
    """The stage that sends what a selector selects; `coded` writes places as gaps."""

    def reduce(tensors: Arrays, metadata: Metadata, state: State) -> Reduced:
        shapes = {name: tensors[name].shape for name in sorted(tensors)}
        parts = [tensors[name].reshape(-1) for name in shapes]
        sizes = [part.size for part in parts]
        total = total_of(sizes)
        slots = {slot: _flat(slot_of(state, slot, shapes)) for slot in selector.carries}
        found = _select(selector, list(shapes), parts, metadata, slots)
        starts = accumulate(sizes, initial=0)
        places = np.concatenate([each.indices + start for each, start in zip(found, starts, strict=False)])
        selected = np.concatenate([each.values for each in found])
        side = np.frombuffer(kernels.encode_indices(places, total), np.uint8) if coded else places

        def settle(said: Parts) -> None:
            if RESIDUAL in slots:
                _add(slots[RESIDUAL], found, selected - said[0])  # what the value format rounded away is merely late
            if MEMORY in slots:
                _add(slots[MEMORY], found, said[0])

        return Reduced([selected], {PLACE: side}, _scatter(places, shapes), settle)

    def layout(entries: Entries, shapes: Shapes) -> Layout:
        sizes = [prod(shapes[name]) for name in sorted(shapes)]
        most = sum(selector.most(sum(sizes[i] for i in group)) for group in _groups(sorted(shapes)))
        return _scatter(read_places(entries, PLACE, total_of(sizes), most, coded=coded), shapes)

    return Reduction(reduce, layout, (PLACE,), selector.carries, MEMORY in selector.carries)


def _groups(names: Sequence[str]) -> list[list[int]]:
    """Where the tensors stand that are chosen among: the weights, and the control variates if there are any."""
    groups: dict[bool, list[int]] = {name.startswith(CONTROL): [] for name in names}
    for number, name in enumerate(names):
        groups[name.startswith(CONTROL)].append(number)
    return list(groups.values())


def _select(
    selector: Selector, names: Sequence[str], parts: Parts, metadata: Metadata, slots: Mapping[str, Parts]
) -> list[kernels.Selection]:
    """What is selected of every part."""
    found: dict[int, kernels.Selection] = {}
    for group in _groups(names):
        of_group = {slot: [arrays[i] for i in group] for slot, arrays in slots.items()}
        found |= zip(group, selector.select([parts[i] for i in group], metadata, of_group), strict=True)
    return [found[number] for number in range(len(names))]


def _flat(arrays: Arrays) -> Parts:
    """Views of a slot's tensors."""
    return [array.reshape(-1) for array in arrays.values()]


def _add(slot: Parts, found: Sequence[kernels.Selection], values: NDArray[np.float32]) -> None:
    """Add values to a slot at the places that were selected."""
    begin = 0
    for part, each in zip(slot, found, strict=True):
        part[each.indices] += values[begin : begin + each.indices.size]
        begin += each.indices.size


def _scatter(places: NDArray[np.int32], shapes: Shapes) -> Layout:
    sizes = {name: prod(shapes[name]) for name in sorted(shapes)}
    starts = list(accumulate(sizes.values(), initial=0))

    def restore(parts: Parts) -> Iterator[tuple[str, NDArray[np.float32]]]:
        ends = np.searchsorted(places, starts)
        for name, start, first, last in zip(sizes, starts, ends, ends[1:], strict=False):
            flat = np.zeros(sizes[name], np.float32)
            flat[places[first:last] - start] = parts[0][first:last]
            yield name, flat.reshape(shapes[name])

    return Layout([places.size], restore, lambda parts: [replace(parts[0], places=places)])


def read_places(entries: Entries, name: str, total: int, most: int, *, coded: bool) -> NDArray[np.int32]:
    """The ascending places within `total` that an entry says, at most so many.

    Raises:
        BadUpdate: It says none, or others.
    """
    if name not in entries or entries[name].ndim != 1:
        raise BadUpdate(f"{name!r} is missing, or has not one dimension")
    if coded:
        packed = entry(entries, name, "uint8", entries[name].size)
        try:
            return kernels.decode_indices(packed.tobytes(), total, most)
        except kernels.StreamError as error:
            raise BadUpdate(f"{name!r} is no stream of coded gaps: {error}") from None
    places = entry(entries, name, "<i4", entries[name].size)
    if places.size > most:
        raise BadUpdate(f"{name!r} has {places.size} places; at most {most} are sent")
    if places.size and (places[0] < 0 or places[-1] >= total or bool((np.diff(places) <= 0).any())):
        raise BadUpdate(f"{name!r} must ascend within 0 .. {total - 1}")
    return places
