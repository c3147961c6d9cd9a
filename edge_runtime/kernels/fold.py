"""Many updates into one: weighted sums straight from the form in which values travel, alike in any order.

A term weight * value is rounded to a multiple of 2**-64 and added to whole numbers, so that sums have the same bits in
whatever order updates come and whatever threads and instruction set add them. Formulas are in csrc/kernels/fold.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING, Any

from edge_runtime import _core

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Accumulator", "CodedUpdate", "Layout", "Piece"]


@dataclass(frozen=True)
class Piece:
    """Values of an update as they travelled.

    The tensors of an update lie one behind the other, in the order of their names; a place counts through all of them.

    Attributes:
        values: (k,) float32, float16, uint16 (the bits of bfloat16), or int8 of which every block has a scale.
        begin: Place of the first value; the others follow. Not looked at where there are places.
        places: (k,) int32, ascending: a place for each value; or None.
        scales: (ceil(k / block),) float32, of int8.
        block: Values that share a scale.
    """

    values: NDArray[Any]
    begin: int = 0
    places: NDArray[np.int32] | None = None
    scales: NDArray[np.float32] | None = None
    block: int = 1


class Layout:
    """How tensors lie one behind the other in an update: in the order of their names. Made once, used for many.

    Attributes:
        shapes: By name, in that order.
        ends: Places after the last of each.
        total: Their values.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Lay out tensors of these shapes."""
        self.shapes = {name: shapes[name] for name in sorted(shapes)}
        self.sizes = [prod(shape) for shape in self.shapes.values()]
        self.ends = list(accumulate(self.sizes))
        self.total = sum(self.sizes)

    def name_at(self, place: int) -> str:
        """The tensor that a place belongs to."""
        return next(name for name, end in zip(self.shapes, self.ends, strict=True) if place < end)

    def pieces(self, tensors: Mapping[str, NDArray[np.float32]]) -> list[Piece]:
        """Dense tensors of this layout as pieces; not copied."""
        begins = [end - size for end, size in zip(self.ends, self.sizes, strict=True)]
        return [Piece(tensors[name].reshape(-1), begin) for name, begin in zip(self.shapes, begins, strict=True)]


class CodedUpdate:
    """An update that was looked through once and can be added to sums without being made dense."""

    def __init__(self, pieces: Sequence[Piece], layout: Layout, *, workspace: _core.Workspace | None = None) -> None:
        """Look through an update; its arrays are kept, and must not change.

        Args:
            pieces: Its values. Places that no piece has are zero; those of two pieces are added up.
            layout: Of its tensors.
            workspace: Its instruction set; None stands for the machine's.

        Raises:
            StreamError: OutOfRange, NotAscending: places that are not within the tensors.
            TypeError, ValueError: A piece is none of those that `Piece` describes.
        """
        self.layout = layout
        rows = [(each.begin, each.values, each.places, each.scales, each.block) for each in pieces]
        self.coded = _core.CodedUpdate(workspace or _core.Workspace(), rows, layout.total)

    @property
    def first_bad(self) -> str | None:
        """The name of a tensor that holds NaN or infinity, or None."""
        place = self.coded.first_bad
        return None if place < 0 else self.layout.name_at(place)

    @property
    def peak(self) -> float:
        """The largest magnitude, if all values are finite."""
        return self.coded.peak


class Accumulator:
    """Weighted sums of updates of one layout, for one thread at a time.

    Memory: 16 bytes a value, 24 once a term reached 2**27, however many updates there are.
    """

    def __init__(self, layout: Layout, *, workspace: _core.Workspace | None = None) -> None:
        """Begin with zeros; the workspace's threads share each update's values."""
        self.layout = layout
        self._numbers = {name: number for number, name in enumerate(layout.shapes)}
        self._sums = _core.Accumulator(layout.sizes)
        self._workspace = workspace or _core.Workspace()

    def add(self, update: CodedUpdate, weights: NDArray[np.float64]) -> None:
        """Add weight times value for every value of an update, or nothing.

        Args:
            update: Of these tensors.
            weights: (tensors,), finite. A term is exact in float64 where its weight has at most 29 significant bits;
                it is then rounded by at most 2**-65.

        Raises:
            ValueError: The tensors are others, a value is not finite, weight times value may reach 2**72, or there are
                131072 updates in the sums. Nothing was added.
        """
        if update.layout is not self.layout and update.layout.shapes != self.layout.shapes:
            raise ValueError("an update of other tensors")
        self._sums.add(self._workspace, update.coded, weights)

    def sum(self, name: str) -> NDArray[np.float64]:
        """The sum of one tensor, in its shape: that of the rounded terms, itself rounded to float64."""
        return self._sums.sums(self._numbers[name]).reshape(self.layout.shapes[name])

    @property
    def terms(self) -> int:
        """How many updates are in the sums."""
        return self._sums.terms

    @property
    def nbytes(self) -> int:
        """Memory of the sums."""
        return self._sums.bytes
