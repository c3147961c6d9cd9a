"""Lowering the peak of a program, the step where most bytes are alive, by small changes of its order.

A kernel whose result only waits at the peak runs later; one that frees bytes and could run already runs before it; one
of a map's results is made by itself, and used up, before the others; and a cheap value that waits at the peak is let go
and made a second time right before its late reader, together with what of its operands is gone by then. A change stays
if less is alive afterwards; the results are the same bits.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from models.compiler.ir import Node, Value, with_attrs
from models.compiler.map_parts import part_of
from models.compiler.memory import aligned
from models.compiler.recompute import AGAIN, CHEAP
from models.compiler.schedule import STACKED, VIEWS, Order, overwritten, read_by
from models.compiler.sharing import Owners, share_bytes

TRIALS = 256  # changes that are tried
WALKED = 200_000  # kernels in all tries together, since each try is a walk over the program: about a second
WORTH = 1 / 256  # of the peak: smaller values are left alone
Chain = Mapping[Node, Collection[int]]  # kernels in order, and the outputs of each that are made again
REPEATABLE = CHEAP | {"map"}
CHAIN = 12  # kernels that run again for one late reader, at most


@dataclass(frozen=True)
class Program:
    """An order of kernels, and the values that own their bytes for the whole run.

    Attributes:
        order: the kernels as they run.
        owners: as storage.lay_out takes them.
        place: the step at which each kernel runs.
        reads: the steps that read each value, ascending.
        changes: the first step that overwrites a slot.
        live: bytes of buffers alive at each step.
    """

    order: Order
    owners: Owners
    place: Mapping[Node, int]
    reads: Mapping[Value, Sequence[int]]
    changes: Mapping[Value, int]
    live: Sequence[int]

    @property
    def height(self) -> tuple[int, int]:
        """The most bytes alive at once, and at how many steps."""
        peak = max(self.live, default=0)
        return peak, self.live.count(peak)


def program(order: Order, owners: Owners) -> Program:
    """An order with what there is to know of it."""
    reads: dict[Value, list[int]] = {}
    changes: dict[Value, int] = {}
    for i, node in enumerate(order):
        for value in dict.fromkeys(read_by(node)):
            reads.setdefault(value, []).append(i)
        for slot in overwritten(node):
            changes.setdefault(slot, i)
    place = {node: i for i, node in enumerate(order)}
    return Program(order, owners, place, reads, changes, live_bytes(order, owners))


def live_bytes(order: Order, owners: Owners) -> list[int]:
    """Bytes of buffers alive at each step of an order."""
    changes = [0] * (len(order) + 1)
    for value, (first, last) in share_bytes(order, owners)[1].items():
        changes[first] += aligned(value.type.nbytes)
        changes[last + 1] -= aligned(value.type.nbytes)
    return list(accumulate(changes[:-1]))


def lowered(best: Program, *, repeat: bool) -> Program:
    """A program with the same results, whose most bytes alive at once are at most as many.

    Args:
        best: the program.
        repeat: whether kernels may run twice.
    """
    trials = iter(range(min(TRIALS, WALKED // max(1, len(best.order)))))
    while True:
        tried = (changed for changed, _ in zip(_alternatives(best, repeat=repeat), trials, strict=False))
        better = next((changed for changed in tried if changed.height < best.height), None)
        if better is None:
            return best
        best = better


def _alternatives(given: Program, *, repeat: bool) -> Iterator[Program]:
    """Programs with one change each at the first peak, those that cost no work first, larger values first."""
    peak = given.height[0]
    at = given.live.index(peak) if peak else 0
    waiting = [v for v, steps in given.reads.items() if v.type.nbytes >= peak * WORTH and _waits(given, v, steps, at)]
    waiting.sort(key=lambda v: -v.type.nbytes)
    for value in waiting:
        if _lasts(given, value.node) and _may_wait(given, value.node, reader := given.reads[value][0]):
            yield _moved(given, given.place[value.node], reader - 1)
    for step in range(at + 1, len(given.order)):
        if _frees_early(given, step, at) >= peak * WORTH:
            yield _moved(given, step, at)
    for value in _of_maps(given, at) if repeat else ():
        yield from _used_up(given, value)
    for value in waiting if repeat else ():
        reader = next(i for i in given.reads[value] if i > at)
        if chain := _chain(given, value, reader):
            yield _repeated(given, reader, chain)


def _waits(given: Program, value: Value, steps: Sequence[int], at: int) -> bool:
    """Whether a value made before step `at` is read after it, but not there."""
    made = value not in given.owners and value.node in given.place and given.place[value.node] < at
    return made and steps[-1] > at and at not in steps


def _lasts(given: Program, node: Node) -> bool:
    """Whether a kernel makes more than dies there: otherwise what it waits for would take as much until it runs."""
    dying = {v for v in read_by(node) if v.node in given.place and given.reads[v][-1] == given.place[node]}
    return sum(t.nbytes for t in node.types) > sum(v.type.nbytes for v in dying - given.owners.keys())


def _may_wait(given: Program, node: Node, reader: int) -> bool:
    """Whether a kernel may run right before step `reader`, its first one; it updates nothing and reads no update."""
    begin = given.place[node]
    first = min(given.reads[v][0] for i in range(len(node.types)) if (v := Value(node, i)) in given.reads)
    stale = any(begin < given.changes.get(v, -1) < reader for v in read_by(node))
    return begin < reader - 1 and first == reader and not stale and not overwritten(node)


def _frees_early(given: Program, step: int, at: int) -> int:
    """Bytes that go if the kernel of a later step runs at step `at`; 0 where it may not."""
    node = given.order[step]
    operands = set(read_by(node))
    ready = all(given.place.get(v.node, -1) < at for v in operands)
    free = all(i < at or i == step for slot in overwritten(node) for i in given.reads.get(slot, ()))
    if not ready or not free or any(at <= given.changes.get(v, -1) < step for v in operands):
        return 0
    born = 0 if overwritten(node) else sum(t.nbytes for t in node.types)
    return sum(v.type.nbytes for v in operands if v.node in given.place and given.reads[v][-1] == step) - born


def _moved(given: Program, step: int, to: int) -> Program:
    """The program with the kernel of one step at another."""
    rest = [*given.order[:step], *given.order[step + 1 :]]
    return program((*rest[:to], given.order[step], *rest[to:]), given.owners)


def _of_maps(given: Program, at: int) -> list[Value]:
    """The large values alive at step `at` that maps make beside others, largest first."""
    made = (v for v in given.reads if v.node in given.place and v.node.op == "map" and len(v.node.types) > 1)
    alive = (v for v in made if given.place[v.node] <= at <= given.reads[v][-1] and v not in given.owners)
    return sorted((v for v in alive if v.type.nbytes >= given.height[0] * WORTH), key=lambda v: -v.type.nbytes)


def _used_up(given: Program, value: Value) -> Iterator[Program]:
    """Programs in which one of a map's results is made by itself, and read, before the map, where least is alive."""
    node, users = value.node, _users(given, value)
    others = set(range(len(node.types))) - {value.index}
    halves = [part_of(node, some) for some in ({value.index}, others)]
    if not users or node in halves:
        return
    taken = [{v for n in some for v in read_by(n) if v.node not in users} for some in (users, (halves[0], *users))]
    begins = {1 + max((given.place.get(v.node, 0) for v in values - {value}), default=0) for values in taken}
    for begin in sorted(begins):
        to = min(range(begin, given.place[node] + 1), key=lambda step: given.live[step - 1], default=0)
        chain = _chain(given, value, to) if to else {}
        stale = any(to <= given.changes.get(v, -1) < given.place[n] for n in (*chain, *users) for v in read_by(n))
        if chain and not stale:
            yield _before(given, to, value, chain, users)


def _before(given: Program, to: int, value: Value, chain: Chain, users: Sequence[Node]) -> Program:
    """The program with `chain`, which makes the value, and its users before step `to`; all else as it was."""
    made: dict[Value, Value] = {}
    block = [renewed(n, outputs, made, {} if n is value.node else {AGAIN: True}) for n, outputs in chain.items()]
    block += [renewed(user, range(len(user.types)), made, {}) for user in users]
    new = {v: there for v, there in made.items() if v.node in users}
    order: list[Node] = []
    for step, node in enumerate(given.order):
        order += block if step == to else []
        outputs = set(range(len(node.types))) - ({value.index} if node is value.node else set())
        if node not in users:
            order.append(renewed(node, outputs, new, {}))
    return program(tuple(order), {new.get(v, v): owner for v, owner in given.owners.items()})


def _users(given: Program, value: Value) -> list[Node]:
    """What reads a value, and the large values made of it, in order; nothing where any of that cannot run earlier."""
    users: set[Node] = set()
    pending = [value]
    while pending:
        for reader in {given.order[step] for step in given.reads.get(pending.pop(), ())} - users:
            users.add(reader)
            made = [Value(reader, i) for i, t in enumerate(reader.types) if t.nbytes * 2 >= value.type.nbytes]
            if overwritten(reader) or len(users) > CHAIN or any(v in given.owners for v in made):
                return []
            pending += made
    return sorted(users, key=given.place.__getitem__)


def _chain(given: Program, value: Value, reader: int) -> Chain:
    """The kernels to run again before step `reader` to have `value` there, in order; empty where that cannot be.

    Of a map only the results that are needed then are made again.
    """
    wanted: dict[Node, set[int]] = {}
    pending = [value]
    while pending:
        needed = pending.pop()
        if needed.index in wanted.setdefault(needed.node, set()):
            continue
        wanted[needed.node].add(needed.index)
        operands = read_by(_making(needed.node, wanted[needed.node]))
        late = any(given.changes.get(v, reader) < reader for v in operands)
        if late or not _repeatable(needed.node) or len(wanted) > CHAIN:
            return {}
        absent = (v for v in operands if v.node in given.place)
        pending += [v for v in absent if given.reads[v][-1] < reader or given.place[v.node] >= reader]
    return {node: wanted[node] for node in sorted(wanted, key=given.place.__getitem__)}


def _repeatable(node: Node) -> bool:
    """Whether a kernel is cheap to run again, or a pass that knows what the step costs ran it again already."""
    return AGAIN in node.attrs or node.op in REPEATABLE


def _making(node: Node, outputs: Collection[int]) -> Node:
    """A kernel that makes at least some of the node's outputs."""
    return part_of(node, outputs) if node.op == "map" else node


def _repeated(given: Program, reader: int, chain: Chain) -> Program:
    """The program with `chain` run again right before step `reader`, for all who read its results from there on."""
    new: dict[Value, Value] = {}
    order: list[Node] = []
    for step, node in enumerate(given.order):
        if step == reader:
            order += [renewed(first, outputs, new, {AGAIN: True}) for first, outputs in chain.items()]
        left = _still_read(given, node, reader, chain[node]) if node in chain else range(len(node.types))
        if left:
            order.append(renewed(node, left, new, {}))
    return program(tuple(order), {new.get(v, v): owner for v, owner in given.owners.items()})


def _still_read(given: Program, node: Node, reader: int, repeated: Collection[int]) -> set[int]:
    """The outputs that a kernel still has to make where it first ran, if some are made again at step `reader`."""
    values = {i: Value(node, i) for i in range(len(node.types))}
    reads = {i: given.reads.get(v, ()) for i, v in values.items()}
    return {i for i, steps in reads.items() if (steps and (i not in repeated or steps[0] < reader))}


def renewed(node: Node, outputs: Collection[int], new: dict[Value, Value], marks: Mapping[str, bool]) -> Node:
    """The kernel for these outputs, with the new values of its inputs; notes the values that it makes."""
    less = _making(node, outputs)
    inputs = tuple(None if v is None else new_value(v, new) for v in less.inputs)
    if less is node and inputs == node.inputs and not marks:
        return node
    made = with_attrs(less, inputs, marks)
    kept = sorted(outputs) if less is not node else range(len(node.types))
    new.update((Value(node, old), Value(made, i)) for i, old in enumerate(kept))
    return made


def new_value(value: Value, new: dict[Value, Value]) -> Value:
    """What stands for a value now, seen through the views between it and its bytes."""
    if value not in new and value.node.op in {*VIEWS, STACKED}:
        inputs = tuple(None if v is None else new_value(v, new) for v in value.node.inputs)
        new[value] = value if inputs == value.node.inputs else Value(with_attrs(value.node, inputs, {}))
    return new.get(value, value)
