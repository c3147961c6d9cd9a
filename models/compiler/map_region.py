"""Whether some elementwise operations and reductions are one map, and which.

A *frame* is the box they work on, as axes so fine that every shape among them is a row of whole axes: (N, C, H, W) and
(N, G, C/G, H, W) have the frame (N, G, C/G, H, W). A reshape leaves the order of elements alone, so a value keeps its
axes under any shape; a value that is repeated along an axis does not have it. From the axes of every value follows
whether all reductions run over the same ones, and what is one number for a whole group.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from models.compiler.ir import Node, Value
from models.compiler.map_program import (
    MAX_AXES,
    MAX_CONSTANTS,
    MAX_OPERANDS,
    MAX_RESULTS,
    MapProgram,
    Step,
)

ELEMENTWISE = frozenset({"add", "sub", "mul", "unary", "binary", "where", "relu", "relu_grad"})
REDUCTIONS = frozenset({"reduce_sum", "minmax"})
CACHED = 8192  # answers kept of what is asked again for every map that is tried
STEPS = 128  # more would crowd the registers out of the first cache
Axes = tuple[int, ...]
Planned = tuple[MapProgram, tuple[Value, ...]]  # and the operands


def mappable(node: Node) -> bool:
    """Whether a map can compute the node."""
    floats = all(v is None or v.type.dtype == "float32" for v in node.inputs)
    return floats and (node.op in ELEMENTWISE or node.op in REDUCTIONS)


def read(value: Value) -> tuple[tuple[int, ...], Value]:
    """What a map reads for an operand: its shape before repetition, and the value whose elements it shows."""
    while value.node.op == "broadcast" and value.node.inputs[0] is not None:
        value = value.node.inputs[0]
    shape = value.shape
    while value.node.op == "reshape" and value.node.inputs[0] is not None:
        value = value.node.inputs[0]
    return shape, value


@lru_cache(CACHED)
def inputs_of(node: Node) -> tuple[tuple[tuple[int, ...], Value], ...]:
    """What a map reads for each operand of a node."""
    return tuple(read(v) for v in node.inputs if v is not None)


@dataclass(frozen=True)
class Frame:
    """The axes of a box, outermost first, each longer than 1."""

    sizes: tuple[int, ...]

    @property
    def axes(self) -> Axes:
        """All of them."""
        return tuple(range(len(self.sizes)))

    def places(self, axes: Axes) -> int:
        """Elements of a value with these axes."""
        return math.prod(self.sizes[a] for a in axes)


@lru_cache(CACHED)
def split(frame: Frame, shape: tuple[int, ...], axes: Axes) -> tuple[Axes, ...] | None:
    """The axes that each dimension of a shape covers, None where a dimension ends inside an axis."""
    rest, parts = list(axes), []
    for size in reversed(shape):
        part: list[int] = []
        while frame.places(tuple(part)) < size and rest:
            part.insert(0, rest.pop())
        if frame.places(tuple(part)) != size:
            return None
        parts.append(tuple(part))
    return None if rest else tuple(parts[::-1])


@lru_cache(CACHED)
def repeated(frame: Frame, small: tuple[int, ...], shape: tuple[int, ...], axes: Axes) -> Axes | None:
    """The axes of an operand that broadcasts to `shape`, which has `axes`."""
    parts = split(frame, shape, axes)
    if parts is None:
        return None
    aligned = zip(small, parts[len(parts) - len(small) :], strict=True)
    return tuple(a for size, part in aligned if size != 1 for a in part)


def frame_of(nodes: Collection[Node]) -> Frame | None:
    """The coarsest frame in which every shape of full size is a row of whole axes; None where there is none."""
    shapes = [n.types[0].shape for n in nodes if n.op in ELEMENTWISE]
    shapes += [shape for n in nodes if n.op in REDUCTIONS for shape, _ in inputs_of(n)]
    size = max(math.prod(s) for s in shapes)
    ends = {1, size}
    for shape in shapes:
        if math.prod(shape) == size:
            ends |= {math.prod(shape[a:]) for a in range(len(shape))}
    order = sorted(ends)
    if any(big % small for small, big in pairwise(order)):
        return None
    return Frame(tuple(big // small for small, big in reversed(list(pairwise(order)))))


@dataclass(frozen=True)
class Region:
    """Nodes that are one map.

    Attributes:
        nodes: producers first.
        frame: their box.
        varying: the axes along which the result of each node is not just repeated.
        axes: of the shape of each node's result.
        operands: the axes of each operand of each node, as it is read.
        reduced: the axes that the reductions run over, empty where there is none.
    """

    nodes: tuple[Node, ...]
    frame: Frame
    varying: Mapping[Node, Axes]
    axes: Mapping[Node, Axes]
    operands: Mapping[Node, tuple[Axes, ...]]
    reduced: Axes

    def storable(self, node: Node) -> bool:
        """Whether what a node makes can be stored: a box, or a number for each group."""
        kept = tuple(a for a in self.frame.axes if a not in self.reduced)
        return self.varying[node] == self.axes[node] and self.axes[node] in (self.frame.axes, kept)


def region_of(nodes: Sequence[Node]) -> Region | None:
    """The region of these nodes, given producers first, or None where they are not one map."""
    frame = frame_of(nodes) if len(nodes) <= STEPS else None
    axes = None if frame is None else _node_axes(nodes, frame)
    if frame is None or axes is None:
        return None
    reduced = {tuple(a for a in frame.axes if a not in axes[n]) for n in nodes if n.op in REDUCTIONS}
    operands = {n: _operand_axes(n, frame, axes[n]) for n in nodes}
    known = {n: o for n, o in operands.items() if o is not None and _agrees(n, o, axes, frame)}
    if len(reduced) > 1 or any(not r for r in reduced) or len(known) < len(nodes):
        return None
    varying = _varying(known, axes)
    if any(
        varying[v.node] != frame.axes for n in nodes if n.op in REDUCTIONS for _, v in inputs_of(n) if v.node in known
    ):
        return None
    return Region(tuple(nodes), frame, varying, axes, known, next(iter(reduced), ()))


def _agrees(node: Node, operands: tuple[Axes, ...], axes: Mapping[Node, Axes], frame: Frame) -> bool:
    """Whether a node's operands have the axes that their producers give them."""
    if node.op in REDUCTIONS and _kept_axes(node, frame) != axes[node]:
        return False
    made = (axes.get(value.node) for _, value in inputs_of(node))
    return all(m is None or m == o for m, o in zip(made, operands, strict=True))


def _varying(operands: Mapping[Node, tuple[Axes, ...]], axes: Mapping[Node, Axes]) -> dict[Node, Axes]:
    """The axes along which each node's result is not just repeated."""
    varying: dict[Node, Axes] = {}
    for node, given in operands.items():
        sources = zip(inputs_of(node), given, strict=True)
        inward = {a for (_, v), own in sources for a in varying.get(v.node, own)}
        varying[node] = axes[node] if node.op in REDUCTIONS else tuple(a for a in axes[node] if a in inward)
    return varying


def _node_axes(nodes: Sequence[Node], frame: Frame) -> dict[Node, Axes] | None:
    """The axes of every node, from those whose size or operands say it, both ways; None if some stay open."""
    known: dict[Node, Axes] = {}
    inside = set(nodes)
    while len(known) < len(nodes):
        before = len(known)
        for node in nodes:
            found = known.get(node) or _own_axes(node, frame, known)
            if found is not None:
                known[node] = found
        for node in reversed(nodes):
            operands = _operand_axes(node, frame, known[node]) if node in known else None
            for (_, value), axes in zip(inputs_of(node), operands or (), strict=False):
                if value.node in inside:
                    known.setdefault(value.node, axes)
        if len(known) == before:
            return None
    return known


def _own_axes(node: Node, frame: Frame, known: Mapping[Node, Axes]) -> Axes | None:
    if node.op in REDUCTIONS:
        return _kept_axes(node, frame)
    size = node.types[0].size
    if size == frame.places(frame.axes):
        return frame.axes
    if size == 1:
        return ()
    for shape, value in inputs_of(node):
        if value.node in known and math.prod(shape) == size:
            return known[value.node]
    return None


def _kept_axes(node: Node, frame: Frame) -> Axes | None:
    """What a reduction of a value of full size leaves."""
    ((shape, _),) = inputs_of(node)
    parts = split(frame, shape, frame.axes) if shape == _shape_read(node) else None
    if parts is None:
        return None
    gone = {a for d in node.attrs["axes"] for a in parts[d]}
    return tuple(a for a in frame.axes if a not in gone)


def _shape_read(node: Node) -> tuple[int, ...]:
    x = node.inputs[0]
    assert x is not None
    return x.shape


def _operand_axes(node: Node, frame: Frame, axes: Axes) -> tuple[Axes, ...] | None:
    if node.op in REDUCTIONS:
        return (frame.axes,)
    found = [repeated(frame, shape, node.types[0].shape, axes) for shape, _ in inputs_of(node)]
    known = [f for f in found if f is not None]
    return tuple(known) if len(known) == len(found) else None


@lru_cache(CACHED)
def number_of(value: Value) -> float | None:
    """The number that a constant holds everywhere, if it is one."""
    if value.node.op != "constant":
        return None
    array = value.node.attrs["value"]
    first = float(array.flat[0])
    # -0.0 equals 0.0 and a NaN nothing, so neither can stand in a table of numbers.
    plain = math.isfinite(first) and math.copysign(1.0, first) == (1.0 if first >= 0 else -1.0)
    return first if plain and bool(np.all(array == first)) else None


def program_of(region: Region, stored: Sequence[Node]) -> Planned | None:
    """The program of a region that stores what some of its nodes make, and its operands; None beyond a limit."""
    operands: dict[tuple[Value, Axes], None] = {}
    constants: dict[float, None] = {}
    for value, axes in _outside(region):
        number = number_of(value)
        if number is None:
            operands.setdefault((value, axes))
        else:
            constants.setdefault(number)
    constants |= dict.fromkeys(n.attrs["scale"] for n in region.nodes if _scaled(n))
    numbers: dict[object, int] = {key: i for i, key in enumerate((*operands, *constants))}
    steps = _steps(region, numbers)
    merged = _merge(region, [axes for _, axes in operands])
    whole = any(
        len(axes) == len(region.frame.axes) for axes in (*(a for _, a in operands), *(region.axes[n] for n in stored))
    )
    too_large = len(operands) > MAX_OPERANDS or len(stored) > MAX_RESULTS or len(constants) > MAX_CONSTANTS
    if merged is None or too_large or not operands or not whole:
        return None
    dims, reduced, laid = merged
    results = tuple(numbers[n] for n in stored)
    return MapProgram(dims, reduced, laid, tuple(constants), steps, results), tuple(v for v, _ in operands)


def _outside(region: Region) -> Iterator[tuple[Value, Axes]]:
    """What the region reads but does not make, each time it is read."""
    inside = set(region.nodes)
    for node in region.nodes:
        for (_, value), axes in zip(inputs_of(node), region.operands[node], strict=True):
            if value.node not in inside:
                yield value, axes


def _scaled(node: Node) -> bool:
    return node.op == "reduce_sum" and node.attrs["scale"] != 1


def _steps(region: Region, numbers: dict[object, int]) -> tuple[Step, ...]:
    """One step a node, two for a scaled sum; `numbers` grows by every node."""
    inside = set(region.nodes)
    steps: list[Step] = []

    def add(function: str, *operands: int) -> int:
        steps.append(Step(function, operands))
        return first + len(steps) - 1

    first = len(numbers)
    for node in region.nodes:
        given = []
        for (_, value), axes in zip(inputs_of(node), region.operands[node], strict=True):
            key: object = value.node if value.node in inside else (value, axes)
            given.append(numbers[key] if key in numbers else numbers[number_of(value)])
        made = add(_function(node), *given)
        numbers[node] = add("mul", made, numbers[node.attrs["scale"]]) if _scaled(node) else made
    return tuple(steps)


def _function(node: Node) -> str:
    match node.op:
        case "unary" | "binary":
            return str(node.attrs["function"])
        case "reduce_sum":
            return "sum"
        case "minmax":
            return "minimum" if node.attrs["smallest"] else "maximum"
        case _:
            return node.op


def _merge(region: Region, operands: Sequence[Axes]) -> tuple[tuple[int, ...], Axes, tuple[Axes, ...]] | None:
    """The frame with neighbouring axes merged that all operands and reductions treat alike; None if too many stay."""
    groups: list[list[int]] = []
    for axis in region.frame.axes:
        before = axis - 1
        alike = groups and all((axis in part) == (before in part) for part in (region.reduced, *operands))
        if alike:
            groups[-1].append(axis)
        else:
            groups.append([axis])
    if len(groups) > MAX_AXES:
        return None
    dims = tuple(math.prod(region.frame.sizes[a] for a in group) for group in groups) or (1,)

    def merged(axes: Axes) -> Axes:
        return tuple(i for i, group in enumerate(groups) if group[0] in axes)

    return dims, merged(region.reduced), tuple(merged(axes) for axes in operands)
