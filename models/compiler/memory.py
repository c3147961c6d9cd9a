"""Offsets for buffers that live at different times, in one block of memory as small as can be found.

Placing intervals optimally is NP-hard (it is dynamic storage allocation); first-fit by decreasing size is near the
lower bound on the graphs of networks. A few more orders, each with a short repair loop, then shuffled ones close most
of what is left.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64  # a cache line, and the widest vector register
REPAIRS = 64  # tries to move the buffer that sticks out to the front; each costs one placement
SHUFFLES = 32  # of the order by size, each with its repairs
SMALL = 256  # of the lower bound: smaller buffers than this part of it are placed after all others
FEW = 256  # large buffers: more are not searched apart
PLACED = 20_000  # buffers, in all tries together: some seconds; large programs get fewer tries


def aligned(nbytes: int) -> int:
    """Bytes rounded up to the alignment."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Buffer:
    """`nbytes` needed from step `first` to step `last`, both included."""

    nbytes: int
    first: int
    last: int

    def meets(self, other: "Buffer") -> bool:
        """Whether both are alive at some step."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Placement:
    """An offset for each buffer, in their order, and the end of the last."""

    offsets: tuple[int, ...]
    peak_bytes: int


def lower_bound(buffers: Sequence[Buffer]) -> int:
    """The maximum over steps of the bytes alive: no placement can use less."""
    changes: dict[int, int] = {}
    for b in buffers:
        changes[b.first] = changes.get(b.first, 0) + aligned(b.nbytes)
        changes[b.last + 1] = changes.get(b.last + 1, 0) - aligned(b.nbytes)
    live = peak = 0
    for step in sorted(changes):
        live += changes[step]
        peak = max(peak, live)
    return peak


def place(buffers: Sequence[Buffer]) -> Placement:
    """The best placement found: offsets are multiples of 64, buffers alive together do not overlap.

    Large buffers decide, and are few, so an order is searched for them first; the others go into the holes they leave.
    Then all are tried together. Deterministic: ties are broken by the buffers' order, and shuffles by fixed seeds.
    """
    bound, spans = lower_bound(buffers), _spans(buffers)
    large = [i for i, b in enumerate(buffers) if b.nbytes * SMALL >= bound]
    if len(large) > FEW:
        return _searched(buffers)[0]
    small = sorted(set(range(len(buffers))) - set(large), key=lambda i: (-buffers[i].nbytes, i))
    _, order = _searched([buffers[i] for i in large])
    found = min(islice(_repairs(spans, [*(large[i] for i in order), *small]), REPAIRS // 8), key=_peak_of)
    return found[0] if found[0].peak_bytes == bound else min(found, _searched(buffers), key=_peak_of)[0]


def _peak_of(found: tuple[Placement, list[int]]) -> int:
    return found[0].peak_bytes


def _searched(buffers: Sequence[Buffer]) -> tuple[Placement, list[int]]:
    """The best placement found, and the order of placing that leads to it."""
    bound, spans = lower_bound(buffers), _spans(buffers)
    tries = PLACED // max(1, len(buffers))
    best: tuple[Placement, list[int]] | None = None
    for order in _orders(buffers):
        for found in _repairs(spans, order):
            tries -= 1
            best = found if best is None else min(best, found, key=_peak_of)
            if best[0].peak_bytes == bound or tries <= 0:
                return best
    assert best is not None
    return best


def _orders(buffers: Sequence[Buffer]) -> Iterator[list[int]]:
    """Orders to place buffers in, those that are good most often first."""
    numbers = range(len(buffers))
    for key in _KEYS:
        yield sorted(numbers, key=lambda i, key=key: (key(buffers[i]), i))  # type: ignore[misc]
    for seed in range(SHUFFLES):
        draw = random.Random(seed)  # noqa: S311 - an order to try, not a secret
        weights = [b.nbytes * draw.uniform(0.5, 1.5) for b in buffers]
        yield sorted(numbers, key=lambda i, weights=weights: (-weights[i], i))  # type: ignore[misc]


_KEYS: tuple[Callable[[Buffer], tuple[int, ...]], ...] = (
    lambda b: (-b.nbytes, b.first),
    lambda b: (-b.nbytes * (b.last - b.first + 1),),
    lambda b: (b.first - b.last, -b.nbytes),
    lambda b: (b.first, -b.nbytes),
)

_Spans = NDArray[np.int64]  # a row each: aligned size, first step, last step


def _spans(buffers: Sequence[Buffer]) -> _Spans:
    return np.array([(aligned(b.nbytes), b.first, b.last) for b in buffers], np.int64).reshape(-1, 3)


def _repairs(spans: _Spans, order: list[int]) -> Iterator[tuple[Placement, list[int]]]:
    """Place in order; then again and again with the buffer that made the peak placed first."""
    for _ in range(1 + REPAIRS):
        found = _best_fit(spans, order)
        yield found, order
        top = max(order, key=lambda i: found.offsets[i] + int(spans[i, 0]), default=None)
        if top is None or order[0] == top:
            return
        order = [top, *(i for i in order if i != top)]


def _best_fit(spans: _Spans, order: Sequence[int]) -> Placement:
    """Each buffer in turn into the smallest hole that holds it among those it lives with, else on top of them."""
    done = spans[list(order)]  # in the order of placing, so that those placed are always the first rows
    begins = np.zeros(len(order), np.int64)
    for k, (nbytes, first, last) in enumerate(done.tolist()):
        meets = np.flatnonzero((done[:k, 1] <= last) & (done[:k, 2] >= first))
        begins[k] = _hole(begins[meets], begins[meets] + done[meets, 0], nbytes)
    offsets = np.zeros(len(order), np.int64)
    offsets[list(order)] = begins
    return Placement(tuple(offsets.tolist()), int((begins + done[:, 0]).max(initial=0)))


def _hole(begins: NDArray[np.int64], ends: NDArray[np.int64], nbytes: int) -> int:
    """Offset of the smallest sufficient gap between the taken ranges, or their end."""
    by_begin = np.argsort(begins, kind="stable")
    reached = np.maximum.accumulate(np.concatenate([[0], ends[by_begin]]))
    rooms = begins[by_begin] - reached[:-1]
    fitting = np.flatnonzero(rooms >= nbytes)
    return int(reached[fitting[np.argmin(rooms[fitting])]] if fitting.size else reached[-1])
