"""Which values share bytes.

A reshape shows its input's bytes. Values that are stacked are written where they lie in the whole. An elementwise
result takes the bytes of an input that dies there. An update writes its parameter and velocity in place. Slots, batch
columns, scalars and outputs keep their own bytes for the whole run; all other values are buffers with a lifetime.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from models.compiler.ir import Role, Value
from models.compiler.ops import OPS
from models.compiler.schedule import STACKED, Order, base, overwritten, part_shown, read_by, replaceable


@dataclass(frozen=True)
class Owner:
    """Role and name of a value that owns its bytes for the whole run."""

    role: Role
    name: str


Owners = Mapping[Value, Owner]


def parts_of(whole: Value) -> list[Value]:
    """The values that are stacked in another, from the first rows to the last."""
    return [v for v in whole.node.inputs if v is not None]


@dataclass(frozen=True)
class _Walk:
    """Where the walk over the kernels is.

    Attributes:
        order: the kernels.
        last_read: the last step that reads each value.
        wholes: for each value that is stacked in another, that other.
        shares: what is decided so far.
        lifetimes: first and last step of the buffers so far.
    """

    order: Order
    last_read: Mapping[Value, int]
    wholes: Mapping[Value, Value]
    shares: dict[Value, Value]
    lifetimes: dict[Value, tuple[int, int]]


def share_bytes(order: Order, owners: Owners) -> tuple[dict[Value, Value], dict[Value, tuple[int, int]]]:
    """Decide what is computed in place; answer who shares whose bytes, and the lifetime of every buffer."""
    last_read = {v: i for i, node in enumerate(order) for v in read_by(node)}
    wholes = {base(part): whole for whole in last_read if whole.node.op == STACKED for part in parts_of(whole)}
    last_read |= {part: last_read[whole] for part, whole in wholes.items()}
    walk = _Walk(order, last_read, wholes, {}, {})
    for i, node in enumerate(order):
        updates = bool(OPS[node.op].overwrites)
        for k in range(len(node.types)):
            out = Value(node, k)
            if out in owners and not updates:
                continue
            root = _root(walk, out, i)
            if root != out:
                walk.shares[out] = root
            if root in walk.lifetimes or not updates:
                first, _ = walk.lifetimes.get(root, (i, i))
                walk.lifetimes[root] = (first, last_read.get(out, i))
    return walk.shares, walk.lifetimes


def _root(walk: _Walk, out: Value, step: int) -> Value:
    """The value in whose bytes a kernel writes an output: another's, or its own."""
    if OPS[out.node.op].overwrites:
        slot = overwritten(out.node)[out.index]
        return walk.shares.get(slot, slot)
    if out in walk.wholes:
        return _root_of_whole(walk, walk.wholes[out], step)
    dying = [v for v in replaceable(out.node)[out.index] if walk.last_read[base(v)] == step and part_shown(v) is None]
    if not dying:
        return out
    taken = {walk.shares.get(Value(out.node, earlier)) for earlier in range(out.index)}
    roots = (walk.shares.get(base(v), base(v)) for v in dying)
    return next((r for r in roots if r in walk.lifetimes and r not in taken), out)


def _root_of_whole(walk: _Walk, whole: Value, step: int) -> Value:
    """The value in whose bytes parts are stacked; decided when the first of them is made."""
    if whole not in walk.shares and whole not in walk.lifetimes:
        under = _replaced(walk.order, whole)
        root = None if under is None else walk.shares.get(under, under)
        # Its rows may have been given away already: to what another output, or another kernel of the slice, makes.
        given = {walk.shares.get(other) for other in walk.wholes.values() if walk.last_read[other] >= step}
        if root in walk.lifetimes and root not in given:
            walk.shares[whole] = root
    return walk.shares.get(whole, whole)


def _replaced(order: Order, whole: Value) -> Value | None:
    """The value whose rows what is stacked may overwrite part by part, each when nobody reads that part later."""
    parts = [base(v) for v in parts_of(whole)]
    made = {part: order.index(part.node) for part in parts}
    for operand in replaceable(parts[0].node)[parts[0].index]:
        shown = part_shown(operand)
        if shown is None or shown[0].type.nbytes != whole.type.nbytes:
            continue
        over = [{part_shown(v) for v in replaceable(part.node)[part.index]} for part in parts]
        steps = {number: made[part] for number, part in enumerate(parts)}
        if all((shown[0], number) in found for number, found in enumerate(over)) and _read_before(
            order, shown[0], steps
        ):
            return shown[0]
    return None


def _read_before(order: Order, value: Value, steps: Mapping[int, int]) -> bool:
    """Whether part n of a value is not read after step steps[n], nor all of it after the first of these steps."""
    for i in range(min(steps.values()), len(order)):
        for v in order[i].inputs:
            if v is not None and base(v) == value:
                shown = part_shown(v)
                if shown is None or steps[shown[1]] < i:
                    return False
    return True
