"""Where everything lies in the arena: owners first, then the buffers that share the rest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from models.compiler.ir import Node, Value
from models.compiler.memory import Buffer, aligned, lower_bound, place
from models.compiler.peak import Program, lowered, program
from models.compiler.schedule import Order, base, orders
from models.compiler.sharing import Owner, Owners, share_bytes

__all__ = ["Layout", "Owner", "Owners", "lay_out"]


@dataclass(frozen=True)
class Layout:
    """A program with a place for every value.

    Attributes:
        order: the kernels as they run.
        owners: the values that own their bytes, with roles and names.
        offsets: where each owner and each buffer begins in the arena, in bytes.
        shares: for a value that lies in the bytes of another, that other.
        owned_bytes: the arena's first part, for owners.
        arena_bytes: all of it.
        lower_bound_bytes: what no placement of this order could go below.
    """

    order: Order
    owners: Owners
    offsets: Mapping[Value, int]
    shares: Mapping[Value, Value]
    owned_bytes: int
    arena_bytes: int
    lower_bound_bytes: int

    def offset(self, value: Value) -> int:
        """Where the bytes of any value but a constant begin."""
        return self.offsets[self.root(value)]

    def root(self, value: Value) -> Value:
        """The owner, buffer or constant in whose bytes a value lies."""
        return self.shares.get(base(value), base(value))


def lay_out(
    outputs: Sequence[Value], owners: Owners, *, repeat: bool = False, stages: Mapping[Node, int] | None = None
) -> Layout:
    """The layout with the smallest arena among the candidate orders; the first one wins a tie.

    With `repeat`, cheap kernels may run twice where that lowers the peak. `stages` numbers nodes that run only after
    those of smaller numbers.
    """
    found = [program(order, owners) for order in orders(outputs, stages or {})]
    if not stages:  # slices make the same peak again and again: to lower one of them would change nothing
        found.append(lowered(min(found, key=_height), repeat=repeat))
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
    return Layout(order, owners, offsets, shares, owned, owned + placement.peak_bytes, owned + lower_bound(buffers))
