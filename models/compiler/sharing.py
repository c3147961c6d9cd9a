"""Which values share bytes.

A reshape shows its input's bytes. An elementwise result takes the bytes of an input that dies there. An
update writes its parameter and velocity in place. Slots, batch columns, scalars and outputs keep their own
bytes for the whole run; all other values are buffers with a lifetime.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from models.compiler.ir import Role, Value
from models.compiler.ops import OPS
from models.compiler.schedule import Order, overwritten, read_by, replaceable


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
        overwrites = OPS[node.op].overwrites
        for k, candidates in enumerate(replaceable(node)):
            out, root = Value(node, k), None
            if overwrites:
                slot = overwritten(node)[k]
                root = shares.get(slot, slot)
            elif out in owners:
                continue
            elif dying := [v for v in candidates if last_read[v] == i]:
                taken = {shares.get(Value(node, earlier)) for earlier in range(k)}
                roots = (shares.get(v, v) for v in dying)
                root = next((r for r in roots if r in lifetimes and r not in taken), None)
            if root is None:
                lifetimes[out] = (i, last_read.get(out, i))
            else:
                shares[out] = root
                if root in lifetimes:
                    lifetimes[root] = (lifetimes[root][0], last_read.get(out, i))
    return shares, lifetimes
