"""Where everything lies in the arena: owners first, then the buffers that share the rest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from models.compiler.ir import Node, Value
from models.compiler.memory import Buffer, aligned, lower_bound, place
from models.compiler.peak import Program, lowered, program
from models.compiler.peak_slices import rows_before, sliced
from models.compiler.schedule import STACKED, Order, base, orders
from models.compiler.sharing import Owner, Owners, parts_of, share_bytes

__all__ = ["Layout", "Owner", "Owners", "lay_out"]


@dataclass(frozen=True)
class Layout:
    """A program with a place for every value.

    Attributes:
        order: the kernels as they run.
        owners: the values that own their bytes, with roles and names.
        offsets: where each owner and each buffer begins in the arena, in bytes.
        shares: for a value that lies in the bytes of another, that other.
        within: for values that are stacked in another, how many bytes behind its begin.
        owned_bytes: the arena's first part, for owners.
        arena_bytes: all of it.
        lower_bound_bytes: what no placement of this order could go below.
    """

    order: Order
    owners: Owners
    offsets: Mapping[Value, int]
    shares: Mapping[Value, Value]
    within: Mapping[Value, int]
    owned_bytes: int
    arena_bytes: int
    lower_bound_bytes: int

    def offset(self, value: Value) -> int:
        """Where the bytes of any value but a constant begin."""
        return self.offsets[self.root(value)] + self.within.get(base(value), 0) + rows_before(value)

    def root(self, value: Value) -> Value:
        """The owner, buffer or constant in whose bytes a value lies."""
        return self.shares.get(base(value), base(value))


def lay_out(
    outputs: Sequence[Value],
    owners: Owners,
    *,
    repeat: bool = False,
    stages: Mapping[Node, int] | None = None,
    slice_peak: bool = False,
) -> Layout:
    """The layout with the smallest arena among the candidate orders; the first one wins a tie.

    With `repeat`, cheap kernels may run twice where that lowers the peak. `stages` numbers nodes that run only after
    those of smaller numbers. With `slice_peak`, kernels at the peak may run slice by slice.
    """
    found = [program(order, owners) for order in orders(outputs, stages or {})]
    if not stages:  # slices make the same peak again and again: to lower one of them would change nothing
        found.append(lowered(min(found, key=_height), repeat=repeat))
    if slice_peak:
        found.append(sliced(min(found, key=_height)))
    best: Layout | None = None
    for candidate in sorted(found, key=_height):
        if best is None or best.arena_bytes - best.owned_bytes > candidate.height[0]:
            placed = _placed(candidate)
            best = placed if best is None or placed.arena_bytes < best.arena_bytes else best
    assert best is not None
    return best


def _height(candidate: Program) -> tuple[int, int]:
    return candidate.height


def _placed(found: Program) -> Layout:
    order, owners = found.order, found.owners
    shares, lifetimes = share_bytes(order, owners)
    offsets: dict[Value, int] = {}
    owned = 0
    for value in sorted(owners, key=lambda v: (owners[v].role, owners[v].name)):
        offsets[value] = owned
        owned += aligned(value.type.nbytes)
    buffers = [Buffer(v.type.nbytes, first, last) for v, (first, last) in lifetimes.items()]
    placement = place(buffers)
    offsets.update((v, owned + o) for v, o in zip(lifetimes, placement.offsets, strict=True))
    within = {
        part: nbytes for whole in (*lifetimes, *shares) if whole.node.op == STACKED for part, nbytes in _places(whole)
    }
    return Layout(
        order, owners, offsets, shares, within, owned, owned + placement.peak_bytes, owned + lower_bound(buffers)
    )


def _places(whole: Value) -> list[tuple[Value, int]]:
    """What is stacked in a value, each with its first byte in it."""
    parts = parts_of(whole)
    begins = accumulate((v.type.nbytes for v in parts), initial=0)
    return [(base(v), begin) for v, begin in zip(parts, begins, strict=False)]
