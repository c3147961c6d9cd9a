"""Boxes: which places of one tensor go to which places of another, and whether two of them are apart."""

from collections.abc import Sequence
from dataclasses import dataclass

MAX_TRIED = 3  # numbers of steps along one axis of two boxes; boxes of slices need one or two


@dataclass(frozen=True)
class Box:
    """Which places of x go to which places of y.

    Attributes:
        x_offset: the first place in x, in elements; y_offset likewise.
        axes: for each axis of the box (size, stride in x, stride in y), in elements.
    """

    x_offset: int
    y_offset: int
    axes: tuple[tuple[int, int, int], ...]

    def turned(self) -> "Box":
        """The same pairs of places, the other way round."""
        return Box(self.y_offset, self.x_offset, tuple((n, y, x) for n, x, y in self.axes))


def apart(a: Box, b: Box) -> bool:
    """Whether it is sure that no place of y is in both boxes.

    A common place is a difference of the offsets made of whole steps along the axes of either box.
    """
    if any(y <= 0 for box in (a, b) for n, _, y in box.axes if n > 1):
        return False
    steps: dict[int, list[int]] = {}
    for side, box in enumerate((a, b)):
        for n, _, y in box.axes:
            steps.setdefault(y, [0, 0])[side] += n - 1
    ordered = [(y, -back, ahead) for y, (ahead, back) in sorted(steps.items(), reverse=True) if y > 0]
    return not _reached(b.y_offset - a.y_offset, ordered)


def _reached(distance: int, steps: Sequence[tuple[int, int, int]]) -> bool:
    """Whether a distance is a sum of steps (size, fewest, most); also where that would take long to find out."""
    if not steps:
        return distance == 0
    (size, fewest, most), rest = steps[0], steps[1:]
    low, high = (_total(rest, i) for i in (1, 2))
    counts = range(max(fewest, -((high - distance) // size)), min(most, (distance - low) // size) + 1)
    return len(counts) > MAX_TRIED or any(_reached(distance - count * size, rest) for count in counts)


def _total(steps: Sequence[tuple[int, int, int]], which: int) -> int:
    return sum(step[0] * step[which] for step in steps)


def merged(axes: Sequence[tuple[int, int, int]]) -> tuple[tuple[int, int, int], ...]:
    """Axes of size 1 dropped, neighbours joined that both sides walk through as one."""
    merged: list[tuple[int, int, int]] = []
    for n, x, y in axes:
        if n == 1:
            continue
        if merged and merged[-1][1:] == (x * n, y * n):
            merged[-1] = (merged[-1][0] * n, x, y)
        else:
            merged.append((n, x, y))
    return tuple(merged) or ((1, 1, 1),)
