"""Lowering the peak of a program further: a kernel that makes a large value and those that read it, slice by slice.

What a convolution makes and a pool reads then is never whole: both run on a part of the rows, then on the next. The
same rows of what they make go to their place in the whole, and weight gradients are summed, so the work is the same.
Values keep their bytes: rows of a value are a range of it, and what is stacked is written where it belongs.
"""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import models.compiler.graph as g
from models.compiler.cut import Cut, apart, cut, part, rows_type
from models.compiler.ir import Node, Value, with_attrs
from models.compiler.memory import ALIGNMENT
from models.compiler.peak import WALKED, WORTH, Program, new_value, program, renewed
from models.compiler.schedule import ROWS, STACKED, VIEWS, base, overwritten, read_by
from models.compiler.sharing import Owners, parts_of

COUNTS = (2, 4, 8)
TRIALS = 512  # for each count; fewer for long programs
VALUES = 8  # that are alive at the peak, the largest, are looked at
NEXT = 8  # heights of a program that are compared with another's of the same peak
LEVELS = 6  # of readers, readers of what those make, and so on
SLICE = "slice"  # an attribute of kernels that have been cut: they are not cut again


def rows_before(value: Value) -> int:
    """Bytes between the begin of the value that views show and the first byte they show of it."""
    skipped = 0
    while value.node.op in VIEWS and value.node.inputs[0] is not None:
        skipped += value.type.nbytes * value.node.attrs.get("part", 0)
        value = value.node.inputs[0]
    return skipped


def sliced(given: Program) -> Program:
    """A program that does the same work in the same or less memory, some of it in slices."""
    return min([given, *(_lowered(given, count) for count in COUNTS)], key=_profile)


def _profile(changed: Program) -> tuple[tuple[int, int], list[int], int]:
    """What is to be small: the peak, then what would be the peak when others of it are gone, then the kernels."""
    return changed.height, heapq.nlargest(NEXT, set(changed.live)), len(changed.order)


def _lowered(best: Program, count: int) -> Program:
    """With so many slices at the peak, as long as that lowers it."""
    trials = iter(range(min(TRIALS, WALKED // max(1, len(best.order)))))
    while True:
        tried = [changed for changed, _ in zip(_alternatives(best, count), trials, strict=False)]
        better = min(tried, key=_profile, default=best)
        if better.height >= best.height:
            return best
        best = better


def _alternatives(given: Program, count: int) -> Iterator[Program]:
    """Programs in which one of the values that are alive at the first peak is never whole."""
    peak = given.height[0]
    at = given.live.index(peak) if peak else 0
    made = (v for v in given.reads if v.node in given.place and v not in given.owners and v.type.nbytes >= peak * WORTH)
    alive = [v for v in made if given.place[v.node] <= at <= given.reads[v][-1]]
    for value in sorted(alive, key=lambda v: -v.type.nbytes)[:VALUES]:
        yield from _in_slices(given, value, count)
        if value.node.op == "map" and (split := _split(given, value)) is not None:
            yield from _in_slices(*split, count)


def _in_slices(given: Program, value: Value, count: int) -> Iterator[Program]:
    """The program with a value made and read in slices, and more and more of what reads what is made of it."""
    members: dict[Node, Cut] = {}
    wanted = [value.node]
    for _ in range(LEVELS):
        cuts = {node: _cut(given, node, count) for node in wanted}
        members |= {node: made for node, made in cuts.items() if made is not None}
        if len(members) > 1 and (changed := _windowed(given, members, count)) is not None:
            yield changed
        wanted = [node for node in _readers(given, members) if node not in members]
        if not wanted:
            return


def _cut(given: Program, node: Node, count: int) -> Cut | None:
    """How a kernel is cut, None where it cannot be or updates something."""
    made = [Value(node, i) for i in range(len(node.types))]
    if SLICE in node.attrs or overwritten(node) or any(v in given.owners for v in made):
        return None
    return cut(node, count)


def _readers(given: Program, members: Mapping[Node, Cut]) -> list[Node]:
    """What reads rows that the members make."""
    made = (Value(n, i) for n, how in members.items() for i in range(len(n.types)) if i not in how.sums)
    return list(dict.fromkeys(given.order[step] for v in made for step in given.reads.get(v, ())))


def _split(given: Program, value: Value) -> tuple[Program, Value] | None:
    """The program with a map's result made by a map of its own, right before its first reader."""
    halves = apart(value.node, value.index)
    if halves is None or any(Value(value.node, i) in given.owners for i in range(len(value.node.types))):
        return None
    first, second = halves
    late = given.reads[value][0]
    if any(_changes_between(given, v, given.place[value.node], late) for v in read_by(second)):
        return None
    kept = [i for i in range(len(value.node.types)) if i != value.index]
    new = {Value(value.node, old): Value(first, i) for i, old in enumerate(kept)} | {value: second.out()}
    order: list[Node] = []
    for step, node in enumerate(given.order):
        order += [second] if step == late else []
        order.append(first if node is value.node else renewed(node, range(len(node.types)), new, {}))
    return program(tuple(order), _renamed(given.owners, new)), second.out()


def _renamed(owners: Owners, new: Mapping[Value, Value]) -> Owners:
    return {new.get(v, v): owner for v, owner in owners.items()}


def _windowed(given: Program, cuts: Mapping[Node, Cut], count: int) -> Program | None:
    """The program with some kernels run slice by slice, None where they cannot."""
    members = {node: cuts[node] for node in sorted(cuts, key=given.place.__getitem__)}
    at = given.place[next(iter(members))]
    before = _needed_before(given, list(members), at)
    if before is None:
        return None
    new: dict[Value, Value] = {}
    block = _block(given, members, count, new)
    if block is None:
        return None
    placed = {*members, *before}
    order: list[Node] = []
    for step, node in enumerate(given.order):
        order += [*before, *block] if step == at else []
        if node not in placed:
            order.append(renewed(node, range(len(node.types)), new, {}))
    return program(tuple(order), _renamed(given.owners, new))


def _needed_before(given: Program, members: Sequence[Node], at: int) -> list[Node] | None:
    """The later kernels that have to run before step `at` if the members do; None where that cannot be."""
    needed: set[Node] = set()
    pending = list(members)
    while pending:
        for value in read_by(node := pending.pop()):
            makers = [n for n in _makers(value) if given.place.get(n, -1) >= at and n not in needed]
            if node not in members and any(n in members for n in makers):
                return None
            fresh = [n for n in makers if n not in members]
            needed.update(fresh)
            pending += fresh
    moved = [*members, *needed]
    stale = any(_changes_between(given, v, given.place[node], at) for node in moved for v in read_by(node))
    return None if stale or any(overwritten(node) for node in needed) else sorted(needed, key=given.place.__getitem__)


def _changes_between(given: Program, slot: Value, place: int, other: int) -> bool:
    """Whether a kernel that reads a slot finds something else in it where it runs at the other step."""
    change = given.changes.get(slot)
    return change is not None and (change < place) != (change < other)


def _makers(value: Value) -> list[Node]:
    return [base(v).node for v in parts_of(value)] if value.node.op == STACKED else [value.node]


@dataclass
class _Block:
    """Kernels that run slice by slice, while they are written out.

    Attributes:
        order: the kernels so far.
        made: for each value of the whole the parts that are there, or their sum.
        own: what the slice that is being written has made of its own rows.
    """

    order: list[Node]
    made: dict[Value, list[Value]]
    own: dict[Value, Value]


def _block(given: Program, cuts: Mapping[Node, Cut], count: int, new: dict[Value, Value]) -> list[Node] | None:
    """The kernels of all slices, None where a slice's bytes cannot be named; notes in `new` what they make."""
    block = _Block([], {}, {})
    for number in range(count):
        block.own.clear()
        for node, how in cuts.items():
            if not _write(block, node, how, Slice(number, count), new, given.owners):
                return None
    for whole, parts in block.made.items():
        if any(given.order[step] not in cuts for step in given.reads.get(whole, ())):
            if len(parts) > 1 and parts[0].type.nbytes % ALIGNMENT:
                return None
            new[whole] = parts[0] if len(parts) == 1 else Value(Node(STACKED, tuple(parts), (whole.type,), {}))
    return block.order


@dataclass(frozen=True)
class Slice:
    """Which part of the rows."""

    number: int
    count: int


def _write(  # noqa: PLR0913, PLR0917 - a kernel, where it goes, and what stands for its operands
    block: _Block, node: Node, how: Cut, which: Slice, new: dict[Value, Value], owners: Owners
) -> bool:
    """Add a kernel of a slice; False where it has an operand that a slice cannot name."""
    inputs: list[Value | None] = []
    for i, v in enumerate(node.inputs):
        inputs.append(None if v is None else _operand(block, v, which if i in how.rows else None, new, owners))
        if v is not None and inputs[-1] is None:
            return False
    piece = part(node, how, which.count, inputs)
    piece = with_attrs(piece, piece.inputs, {SLICE: which.number})
    block.order.append(piece)
    for i in range(len(node.types)):
        parts = block.made.setdefault(Value(node, i), [])
        parts.append(Value(piece, i))
        if i not in how.sums:
            block.own[Value(node, i)] = Value(piece, i)
        elif which.number:
            total = g.add(*parts)
            parts[:] = [total]
            block.order.append(total.node)
    return True


def _operand(block: _Block, value: Value, which: Slice | None, new: dict[Value, Value], owners: Owners) -> Value | None:
    """What a kernel of a slice reads: rows where `which` says so, made in the slice itself where it makes them."""
    if base(value) in block.made:
        own = block.own.get(base(value))
        return None if own is None or which is None else _shown(value, own, which.count)
    there = new_value(value, new)
    return there if which is None else _rows(block, there, which, owners)


def _shown(value: Value, own: Value, count: int) -> Value:
    """A slice's rows of a value, in the shape that views give them."""
    shape = rows_type(value.type, count)
    return own if own.type == shape else Value(Node("reshape", (own,), (shape,), {"shape": shape.shape}))


def _rows(block: _Block, value: Value, which: Slice, owners: Owners) -> Value | None:
    """Rows of a value; copied where the plan format allows no view: of what owns its bytes, and of constants."""
    shape = rows_type(value.type, which.count)
    if base(value) not in owners and base(value).node.op != "constant" and shape.nbytes % ALIGNMENT == 0:
        return Value(Node(ROWS, (value,), (shape,), {"part": which.number}))
    if shape.dtype == "uint8":
        return None
    rest = len(shape.shape) - 1
    copied = g.slice(value, [which.number * shape.shape[0], *[0] * rest], shape.shape, [1] * (rest + 1))
    block.order.append(copied.node)
    return copied
