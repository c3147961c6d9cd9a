"""The order in which the kernels of a graph run.

An order keeps producers before readers, and an update after the last reader of the parameter it overwrites. Among those
the ones tried here are: the order of the graph itself, and one that always runs the kernel that frees most memory. In
both an update runs as soon as it may, so that a gradient is consumed as soon as it is produced.
"""

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache

from models.compiler.ir import Node, Value, topological
from models.compiler.ops import OPS, overwritable

CACHED = 8192  # answers kept of what is asked again for every order that is tried
Order = tuple[Node, ...]


ROWS, STACKED = "rows", "stacked"  # views that peak_slices.py makes: a range of rows, and values one below the other
VIEWS = frozenset({"reshape", ROWS})


def base(value: Value) -> Value:
    """The value some or all of whose bytes a chain of views shows."""
    while value.node.op in VIEWS and value.node.inputs[0] is not None:
        value = value.node.inputs[0]
    return value


@lru_cache(CACHED)
def read_by(node: Node) -> tuple[Value, ...]:
    """The values whose bytes a kernel reads."""
    return tuple(base(v) for v in node.inputs if v is not None)


@lru_cache(CACHED)
def overwritten(node: Node) -> tuple[Value, ...]:
    """The slots that an update writes in place, one for each of its outputs; none for any other kernel."""
    slots = [node.inputs[j] for j in OPS[node.op].overwrites[: len(node.types)]]
    return tuple(base(v) for v in slots if v is not None)


@lru_cache(CACHED)
def replaceable(node: Node) -> tuple[tuple[Value, ...], ...]:
    """For each output of a kernel the operands whose bytes it may take where nobody reads them later."""
    found = ([node.inputs[j] for j in overwritable(node, k)] for k in range(len(node.types)))
    return tuple(tuple(v for v in values if v is not None) for values in found)


def part_shown(value: Value) -> tuple[Value, int] | None:
    """The value of which a chain of views shows some rows, and which of its parts they are; None where it shows all."""
    while value.node.op == "reshape" and value.node.inputs[0] is not None:
        value = value.node.inputs[0]
    return (base(value), value.node.attrs["part"]) if value.node.op == ROWS else None


def is_kernel(node: Node) -> bool:
    """Whether the node becomes an operation of the plan."""
    return node.op in OPS and OPS[node.op].opcode is not None


def orders(outputs: Sequence[Value], stages: Mapping[Node, int]) -> Iterator[Order]:
    """Candidate orders, the graph's own first; nodes of smaller stages before those of larger ones."""
    nodes = [n for n in topological(outputs) if is_kernel(n)]
    after = _dependencies(nodes)
    last = max(stages.values(), default=0)
    # Nodes of no stage are the updates; they run along with the last one, as soon as they may.
    stage = {n: stages.get(n, last) for n in nodes}
    place = {n: (stage[n], i) for i, n in enumerate(nodes)}
    yield _by_priority(nodes, after, lambda n: (stage[n], not OPS[n.op].overwrites, place[n]))
    yield _freeing_first(nodes, after, place)
    yield _freeing_first(nodes, after, {n: (stage[n], -i) for i, n in enumerate(nodes)})


def _dependencies(nodes: Sequence[Node]) -> dict[Node, set[Node]]:
    """What must have run before each node."""
    kernels = set(nodes)
    after: dict[Node, set[Node]] = {n: {v.node for v in read_by(n)} & kernels for n in nodes}
    readers = _readers(nodes)
    for node in nodes:
        after[node] |= {r for v in overwritten(node) for r in readers[v]} - {node}
    return after


def _readers(nodes: Sequence[Node]) -> dict[Value, list[Node]]:
    readers: dict[Value, list[Node]] = {}
    for node in nodes:
        for value in set(read_by(node)):
            readers.setdefault(value, []).append(node)
    return readers


def _by_priority(
    nodes: Sequence[Node],
    after: Mapping[Node, set[Node]],
    priority: Callable[[Node], tuple[int, bool, tuple[int, int]]],
) -> Order:
    """Of the nodes that may run, always the one of the smallest priority."""
    waiting = {n: len(after[n]) for n in nodes}
    unlocks = _inverse(after)
    ready = [(priority(n), i, n) for i, n in enumerate(nodes) if not waiting[n]]
    heapq.heapify(ready)
    order: list[Node] = []
    while ready:
        node = heapq.heappop(ready)[-1]
        order.append(node)
        for reader in unlocks[node]:
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, (priority(reader), len(order) * len(nodes), reader))
    assert len(order) == len(nodes), "the graph has no cycles, and an update follows only readers of the old value"
    return tuple(order)


def _inverse(after: Mapping[Node, set[Node]]) -> dict[Node, list[Node]]:
    unlocks: dict[Node, list[Node]] = {n: [] for n in after}
    for node, befores in after.items():
        for before in befores:
            unlocks[before].append(node)
    return unlocks


def _freeing_first(
    nodes: Sequence[Node], after: Mapping[Node, set[Node]], place: Mapping[Node, tuple[int, int]]
) -> Order:
    """Of the nodes of the smallest stage that may run, always the one after which least is live; ties by `place`."""
    readers_left = {v: len(r) for v, r in _readers(nodes).items()}
    unlocks, waiting = _inverse(after), {n: len(after[n]) for n in nodes}
    ready = [n for n in nodes if not waiting[n]]
    order: list[Node] = []
    while ready:
        node = min(ready, key=lambda n: (place[n][0], _growth(n, readers_left), place[n]))
        ready.remove(node)
        order.append(node)
        for value in set(read_by(node)):
            readers_left[value] -= 1
        for reader in unlocks[node]:
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    return tuple(order)


def _growth(node: Node, readers_left: Mapping[Value, int]) -> int:
    """Bytes that come alive by running a node, less those that die; leaves and constants never die."""
    born = 0 if OPS[node.op].overwrites else sum(t.nbytes for t in node.types)
    read = {v for v in read_by(node) if is_kernel(v.node)}
    return born - sum(v.type.nbytes for v in read if readers_left[v] == 1)
