"""Offsets for buffers that live at different times, in one block of memory as small as can be found.

Placing intervals optimally is NP-hard (it is dynamic storage allocation); first-fit by decreasing size is near the
lower bound on the graphs of networks, and a few more orders with a short repair loop close most of what is left.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

ALIGNMENT = 64  # a cache line, and the widest vector register
REPAIRS = 64  # tries to move the buffer that sticks out to the front; each costs one placement
COMPARISONS = 2_000_000  # of two buffers, in the repairs of one order: about a second; large programs get fewer tries


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

    Deterministic: ties are broken by the buffers' order.
    """
    bound = lower_bound(buffers)
    best: Placement | None = None
    for key in _KEYS:
        order = sorted(range(len(buffers)), key=lambda i, key=key: (key(buffers[i]), i))  # type: ignore[misc]
        found = _repaired(buffers, order, bound)
        if best is None or found.peak_bytes < best.peak_bytes:
            best = found
        if best.peak_bytes == bound:
            break
    assert best is not None
    return best


_KEYS: tuple[Callable[[Buffer], tuple[int, ...]], ...] = (
    lambda b: (-b.nbytes, b.first),
    lambda b: (-b.nbytes * (b.last - b.first + 1),),
    lambda b: (b.first - b.last, -b.nbytes),
    lambda b: (b.first, -b.nbytes),
)


def _repaired(buffers: Sequence[Buffer], order: list[int], bound: int) -> Placement:
    """Place in order; while the peak is above the bound, place the buffer that makes it first, and try again."""
    best = _best_fit(buffers, order)
    current = best
    for _ in range(min(REPAIRS, COMPARISONS // max(1, len(buffers) ** 2))):
        if best.peak_bytes <= bound:
            break
        top = max(order, key=lambda i: current.offsets[i] + aligned(buffers[i].nbytes))
        if order[0] == top:
            break
        order = [top, *(i for i in order if i != top)]
        current = _best_fit(buffers, order)
        if current.peak_bytes < best.peak_bytes:
            best = current
    return best


def _best_fit(buffers: Sequence[Buffer], order: Sequence[int]) -> Placement:
    """Each buffer in turn into the smallest hole that holds it among those it lives with, else on top of them."""
    offsets: dict[int, int] = {}
    for i in order:
        taken = sorted(
            (offsets[j], offsets[j] + aligned(buffers[j].nbytes)) for j in offsets if buffers[i].meets(buffers[j])
        )
        offsets[i] = _hole(taken, aligned(buffers[i].nbytes))
    peak = max((offsets[i] + aligned(b.nbytes) for i, b in enumerate(buffers)), default=0)
    return Placement(tuple(offsets[i] for i in range(len(buffers))), peak)


def _hole(taken: Sequence[tuple[int, int]], nbytes: int) -> int:
    """Offset of the smallest sufficient gap between the taken ranges (sorted by begin), or their end."""
    end, best, best_room = 0, None, 0
    for begin, stop in taken:
        room = begin - end
        if room >= nbytes and (best is None or room < best_room):
            best, best_room = end, room
        end = max(end, stop)
    return end if best is None else best
