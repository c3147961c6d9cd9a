"""Merging elementwise operations and reductions into maps, each one kernel over blocks that stay in the first cache.

Works from the results back to their operands. An operation goes into the map that reads it: then its result never gets
to memory. What several maps read is computed in each of them where it follows from at most one large tensor, so nothing
more is read; otherwise the first of them stores it for the others. A reduction is computed once. At the end, maps are
merged along what one stores for the other, and beside each other where one only reduces what both read.

No merge may close a cycle: `down` holds for every kernel-to-be (a map, or an operation of another kind) all that must
run after it.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from models.compiler.ir import Node, Value, apply, rewrite, topological
from models.compiler.map_region import (
    ELEMENTWISE,
    REDUCTIONS,
    Planned,
    inputs_of,
    mappable,
    number_of,
    program_of,
    read,
    region_of,
)
from models.compiler.recompute import AGAIN
from models.compiler.schedule import base
from models.compiler.tensor_shapes import fused

LARGE = 4  # a tensor is large beside a result if it has at least a quarter of its elements
VIEWS = frozenset({"reshape", "broadcast"})


@dataclass(eq=False)
class Unit:
    """A map in the making, or one operation of another kind: it grows while the pass runs.

    Attributes:
        bit: its place in `down`.
        nodes: what it computes.
        fusible: whether it is a map.
        stored: those of its nodes whose results others read.
        down: the bits of all units that must run after it, and its own.
    """

    bit: int
    nodes: set[Node]
    fusible: bool
    stored: set[Node]
    down: int


@dataclass(frozen=True, eq=False)
class Survey:
    """Who computes what, while the pass runs.

    Attributes:
        order: every operation but the views that cost nothing, producers first.
        place: the position of each in it.
        readers: the operations that read a node's results, seen through those views.
        kept: nodes whose results something else than a map needs.
        ahead: what output 0 follows from; in a step of training, the forward part.
        leaves: the tensors each elementwise node follows from.
        units: the maps and other operations, as far as they are known.
        member: the units that compute a node.
    """

    order: Sequence[Node]
    place: Mapping[Node, int]
    readers: Mapping[Node, Sequence[Node]]
    kept: frozenset[Node]
    ahead: frozenset[Node]
    leaves: Mapping[Node, frozenset[Value]]
    units: list[Unit]
    member: dict[Node, list[Unit]]

    def sorted(self, nodes: Iterable[Node]) -> list[Node]:
        """Nodes, producers first."""
        return sorted(nodes, key=self.place.__getitem__)

    def reading(self, node: Node) -> list[Unit]:
        """The units that need a node's results and do not compute them, in order of their bits."""
        units = {u for r in self.readers[node] for u in self.member[r] if node not in u.nodes}
        return sorted(units, key=lambda u: u.bit)


def fuse_maps(outputs: Sequence[Value]) -> tuple[Value, ...]:
    """The same results with fewer, larger kernels; runs after everything that looks for single operations."""
    plain = rewrite(outputs, lambda node, inputs: [_present(inputs[0])] if node.op == "detach" else None)
    survey = _survey(plain)
    for node in reversed(survey.order):
        if not mappable(node) or not _join(survey, node):
            _open(survey, node)
    while _merge_chains(survey) or _merge_siblings(survey):
        pass
    return _rebuilt(plain, survey)


def _present(value: Value | None) -> Value:
    assert value is not None
    return value


def _source(reader: Node, value: Value) -> Value:
    """The value that an operation reads when its operand is `value`: maps repeat their operands themselves."""
    return read(value)[1] if mappable(reader) else base(value)


def _survey(outputs: Sequence[Value]) -> Survey:
    everything = topological(outputs)
    kept = {base(v).node for v in outputs}
    readers: dict[Node, list[Node]] = {n: [] for n in kept}
    for node in reversed(everything):
        if node in readers:
            for source in dict.fromkeys(_source(node, v).node for v in node.inputs if v is not None):
                readers.setdefault(source, []).append(node)
    order = [n for n in everything if n in readers and n.inputs]
    kept |= {n for n in order if any(not mappable(r) for r in readers[n])}
    place = {n: i for i, n in enumerate(order)}
    ahead = frozenset(topological(outputs[:1]))
    return Survey(order, place, readers, frozenset(kept), ahead, _leaves(order, kept), [], {})


def _leaves(order: Sequence[Node], kept: Collection[Node]) -> dict[Node, frozenset[Value]]:
    """For each elementwise node the stored tensors that it follows from."""
    leaves: dict[Node, frozenset[Value]] = {}
    for node in order:
        if mappable(node) and node.op in ELEMENTWISE:
            sources = (source for _, source in inputs_of(node) if number_of(source) is None)
            inward = (leaves[s.node] if s.node in leaves and s.node not in kept else frozenset((s,)) for s in sources)
            leaves[node] = frozenset().union(*inward)
    return leaves


def _open(survey: Survey, node: Node) -> None:
    """A unit of its own."""
    bit = survey.place[node]
    unit = Unit(bit, {node}, mappable(node), {node}, 1 << bit)
    survey.units.append(unit)
    for reader in survey.reading(node):
        unit.down |= reader.down
    survey.member[node] = [unit]


def _join(survey: Survey, node: Node) -> bool:
    """Put a node into the maps that read it, if it can be."""
    units = survey.reading(node)
    maps = [u for u in units if u.fusible]
    free = node not in survey.kept and (len(maps) == 1 or _free_to_repeat(survey, node))
    if free and all(_program(survey, u.nodes | {node}, u.stored) for u in maps):
        for unit in maps:
            unit.nodes.add(node)
        survey.member[node] = maps
        return bool(maps)
    home = next((u for u in maps if _may_store(survey, u, node, units)), None)
    if home is None:
        return False
    home.nodes.add(node)
    home.stored.add(node)
    survey.member[node] = [home]
    _lead_to(survey, home, units)
    return True


def _free_to_repeat(survey: Survey, node: Node) -> bool:
    """Whether computing a node in each of its readers reads no more large tensors than storing it would."""
    large = [v for v in survey.leaves.get(node, ()) if v.type.size * LARGE >= node.types[0].size]
    return node.op in ELEMENTWISE and len(large) <= 1


def _may_store(survey: Survey, home: Unit, node: Node, readers: Sequence[Unit]) -> bool:
    """Whether a map can compute a node for its other readers: none of them may lead back to it."""
    if any(u.down >> home.bit & 1 for u in readers if u is not home):
        return False
    return _program(survey, home.nodes | {node}, home.stored | {node}) is not None


def _program(survey: Survey, nodes: Collection[Node], stored: Collection[Node]) -> Planned | None:
    """What a map of these nodes would be, None if they are not one."""
    if any(AGAIN in n.attrs for n in nodes) and any(n in survey.ahead for n in nodes):
        return None  # what is computed again late would be stored early, and be kept after all
    region = region_of(survey.sorted(nodes))
    if region is None or not all(region.storable(n) for n in stored):
        return None
    return program_of(region, survey.sorted(stored))


def _lead_to(survey: Survey, unit: Unit, readers: Sequence[Unit]) -> None:
    """Note that `unit` runs before `readers`."""
    for reader in readers:
        unit.down |= reader.down
    for other in survey.units:
        if other.down >> unit.bit & 1:
            other.down |= unit.down


def _after(survey: Survey, unit: Unit) -> list[Unit]:
    """The units that read what a unit stores."""
    found = {u for n in unit.stored for u in survey.reading(n) if u is not unit}
    return sorted(found, key=lambda u: u.bit)


def _merge_chains(survey: Survey) -> bool:
    """Merge maps with those that read what they store; answer whether there were any."""
    merged = False
    for unit in list(survey.units):
        while unit.fusible and unit in survey.units:
            after = _after(survey, unit)
            if not any(_merge_into(survey, unit, u) for u in after if u.fusible and _direct(u, after)):
                break
            merged = True
    return merged


def _direct(unit: Unit, after: Sequence[Unit]) -> bool:
    """Whether no other of the units that follow leads to this one."""
    return not any(u.down >> unit.bit & 1 for u in after if u is not unit)


def _merge_siblings(survey: Survey) -> bool:
    """Merge a map that only reduces into one that reads the same tensors anyway; answer whether there were any."""
    reducers = [u for u in survey.units if u.fusible and _reduces_only(u)]
    return any(_merge_into(survey, other, u) for u in reducers for other in _beside(survey, u))


def _reduces_only(unit: Unit) -> bool:
    return all(n.op in REDUCTIONS for n in unit.stored)


def _beside(survey: Survey, unit: Unit) -> list[Unit]:
    """The maps that neither lead to a unit nor follow it, and read all of the large tensors that it reads."""
    large = _large_operands(unit)
    readers = {u for v in large if v.node in survey.readers for r in survey.readers[v.node] for u in survey.member[r]}
    apart = (u for u in readers if u.fusible and not u.down >> unit.bit & 1 and not unit.down >> u.bit & 1)
    return sorted((u for u in apart if large <= _large_operands(u)), key=lambda u: u.bit)


def _large_operands(unit: Unit) -> set[Value]:
    outside = {v for n in unit.nodes for _, v in inputs_of(n) if v.node not in unit.nodes}
    size = max((v.type.size for v in outside), default=0)
    return {v for v in outside if v.type.size * LARGE >= size}


def _merge_into(survey: Survey, unit: Unit, other: Unit) -> bool:
    """Make two maps one, if they are one; the first stays."""
    nodes, both = unit.nodes | other.nodes, (unit, other)
    stored = {
        n for n in unit.stored | other.stored if n in survey.kept or any(u not in both for u in survey.reading(n))
    }
    if not _program(survey, nodes, stored):
        return False
    unit.nodes, unit.stored = nodes, stored
    survey.units.remove(other)
    for node in other.nodes:
        survey.member[node] = list(dict.fromkeys(unit if u is other else u for u in survey.member[node]))
    unit.down |= other.down
    for before in survey.units:
        if before.down >> unit.bit & 1 or before.down >> other.bit & 1:
            before.down |= unit.down
    return True


def _rebuilt(outputs: Sequence[Value], survey: Survey) -> tuple[Value, ...]:
    """The graph with every unit as one operation."""
    new: dict[Value, Value] = {}
    for unit in _in_order(survey):
        (first, *more) = survey.sorted(unit.nodes)
        if more:
            _add_map(survey, unit, new)
        else:
            inputs = tuple(None if v is None else _renewed(v, new) for v in first.inputs)
            kept = Node(first.op, inputs, first.types, first.attrs)
            new.update((Value(first, i), Value(kept, i)) for i in range(len(first.types)))
    return tuple(_renewed(v, new) for v in outputs)


def _in_order(survey: Survey) -> list[Unit]:
    """Units so that each follows those whose results it reads: what must run later has more to run after it."""
    return sorted(survey.units, key=lambda u: (-u.down.bit_count(), u.bit))


def _renewed(value: Value, new: dict[Value, Value]) -> Value:
    """What stands for a value in the new graph; views are made again."""
    if value not in new and value.node.op in VIEWS and value.node.inputs[0] is not None:
        inputs = (_renewed(value.node.inputs[0], new),)
        new[value] = Value(Node(value.node.op, inputs, value.node.types, value.node.attrs))
    return new.get(value, value)


def _add_map(survey: Survey, unit: Unit, new: dict[Value, Value]) -> None:
    stored = survey.sorted(unit.stored)
    planned = _program(survey, unit.nodes, stored)
    assert planned is not None, "every step of the pass left a program"
    program, operands = planned
    inputs = tuple(_renewed(v, new) for v in operands)
    attrs = {"program": program, "types": tuple(n.types[0] for n in stored)}
    made = apply("map", fused, inputs, attrs)
    new.update((n.out(), v) for n, v in zip(stored, made, strict=True))
