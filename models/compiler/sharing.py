"""Which values share bytes.

A reshape shows its input's bytes. An elementwise result takes the bytes of an input that dies there. An
update writes its parameter and velocity in place. Slots, batch columns, scalars and outputs keep their own
bytes for the whole run; all other values are buffers with a lifetime.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from models.compiler.ir import Node, Role, Value
from models.compiler.ops import OPS, overwritable
from models.compiler.schedule import Order, base, overwritten, read_by


@dataclass(frozen=True)
class Owner:
    """Role and name of a value that owns its bytes for the whole run."""

    role: Role
    name: str


Owners = Mapping[Value, Owner]


def share_bytes(order: Order, owners: Owners) -> tuple[dict[Value, Value], dict[Value, tuple[int, int]]]:
    """Decide what is computed in place; answer who shares whose bytes, and the lifetime of every buffer."""
    last_read = {v: i for i, node in enumerate(order) for v in read_by(node)}
    shares: dict[Value, Value] = {}
    lifetimes: dict[Value, tuple[int, int]] = {}
    for i, node in enumerate(order):
        for k in range(len(node.types)):
            out = Value(node, k)
            root = _shared_root(
                node, k, shares, lifetimes, owners, dying=[v for v in read_by(node) if last_read[v] == i]
            )
            if root is not None:
                shares[out] = root
            elif out in owners:
                continue
            first = lifetimes[root][0] if root in lifetimes else i
            if root is None or root in lifetimes:
                lifetimes[out if root is None else root] = (first, last_read.get(out, i))
    return shares, lifetimes


def _shared_root(  # noqa: PLR0913 - one step of the walk above, with its state
    node: Node,
    k: int,
    shares: Mapping[Value, Value],
    lifetimes: Mapping[Value, tuple[int, int]],
    owners: Owners,
    *,
    dying: Sequence[Value],
) -> Value | None:
    """The bytes output k of a node is written into, if they are another value's."""
    if OPS[node.op].overwrites:
        slot = overwritten(node)[k]
        return shares.get(slot, slot)
    if Value(node, k) in owners:
        return None
    taken = {shares.get(Value(node, earlier)) for earlier in range(k)}
    for j in overwritable(node, k):
        operand = node.inputs[j]
        if operand is None or base(operand) not in dying:
            continue
        root = shares.get(base(operand), base(operand))
        if root in lifetimes and root not in taken:
            return root
    return None
