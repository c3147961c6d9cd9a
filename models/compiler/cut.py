"""One kernel as several, each for an equal part of the rows: what of its operands a part takes, and what it makes.

Rows are the places along the first axis; a part of them is a range of bytes, so that no kernel has to copy any.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from models.compiler.boxes import Box
from models.compiler.ir import Node, Type, Value
from models.compiler.map_parts import part_of
from models.compiler.map_program import MapProgram, Step
from models.compiler.ops import OPS

NO_CHANGE: Mapping[str, object] = MappingProxyType({})


@dataclass(frozen=True)
class Cut:
    """How a kernel is cut.

    Attributes:
        rows: the inputs of which a part takes its rows; the others it takes whole.
        sums: the outputs of which a part makes a summand; of the others it makes its rows.
        attrs: of a part, where they are others than the whole's.
    """

    rows: frozenset[int]
    sums: frozenset[int] = frozenset()
    attrs: Mapping[str, object] = field(default_factory=lambda: NO_CHANGE)


def rows_type(whole: Type, count: int) -> Type:
    """The type of one part of the rows."""
    return Type(whole.dtype, (whole.shape[0] // count, *whole.shape[1:]))


def cut(node: Node, count: int) -> Cut | None:
    """How a kernel is cut into `count` parts; None where it cannot be."""
    made = _CUTS[node.op](node, count) if node.op in _CUTS else None
    if made is None:
        return None
    operands = [v for i, v in enumerate(node.inputs) if i in made.rows and v is not None]
    types = [*(v.type for v in operands), *(t for i, t in enumerate(node.types) if i not in made.sums)]
    return made if all(t.shape and t.shape[0] % count == 0 for t in types) else None


def part(node: Node, made: Cut, count: int, inputs: Sequence[Value | None]) -> Node:
    """The kernel of one part, with the operands that it takes."""
    types = tuple(t if i in made.sums else rows_type(t, count) for i, t in enumerate(node.types))
    attrs = {**node.attrs, **made.attrs}
    if "types" in attrs:
        attrs["types"] = types
    inferred = OPS[node.op].infer([None if v is None else v.type for v in inputs], attrs)
    assert tuple(inferred) == types, f"{node.op} makes {inferred} of its rows, not {types}"
    return Node(node.op, tuple(inputs), types, attrs)


def _fixed(rows: Sequence[int], sums: Sequence[int] = ()) -> Callable[[Node, int], Cut]:
    return lambda _node, _count: Cut(frozenset(rows), frozenset(sums))


def _shaped(rows: Sequence[int]) -> Callable[[Node, int], Cut]:
    """A gradient whose attribute `shape` is that of its result."""

    def cut_shape(node: Node, count: int) -> Cut:
        return Cut(frozenset(rows), attrs={"shape": rows_type(node.types[0], count).shape})

    return cut_shape


def _elementwise(node: Node, count: int) -> Cut:
    """Operands that are not repeated along the first axis are cut; a batched product is elementwise in that."""
    del count
    out = node.types[0].shape
    sized = ((i, v.shape) for i, v in enumerate(node.inputs) if v is not None)
    return Cut(frozenset(i for i, shape in sized if len(shape) == len(out) and shape[:1] == out[:1]))


def _gemm(node: Node, count: int) -> Cut | None:
    del count
    if node.attrs["trans_a"]:
        plain = not node.attrs["trans_b"] and not node.attrs["relu"] and all(v is None for v in node.inputs[2:])
        return Cut(frozenset({0, 1}), frozenset({0})) if plain else None
    return Cut(frozenset({0}))


def _transpose(node: Node, count: int) -> Cut | None:
    del count
    return Cut(frozenset({0})) if node.attrs["axes"][0] == 0 else None


def _reduce_sum(node: Node, count: int) -> Cut:
    del count
    return Cut(frozenset({0}), frozenset({0} if 0 in node.attrs["axes"] else ()))


def _strided_copy(node: Node, count: int) -> Cut | None:
    """Where the outermost axis of the box walks through equal parts of both tensors."""
    box, x = node.attrs["box"], node.inputs[0]
    if x is None or node.inputs[1] is not None or not box.axes:
        return None
    (size, x_step, y_step), *inner = box.axes
    parts = (x.type.size // count, node.types[0].size // count)
    if size % count or (size // count * x_step, size // count * y_step) != parts:
        return None
    less = Box(box.x_offset, box.y_offset, ((size // count, x_step, y_step), *inner))
    ends = [o + sum((n - 1) * steps[i] for n, *steps in less.axes) for i, o in enumerate((box.x_offset, box.y_offset))]
    forward = all(min(steps) > 0 for n, *steps in less.axes if n > 1)
    if not forward or ends[0] >= parts[0] or ends[1] >= parts[1]:
        return None
    return Cut(frozenset({0}), attrs={"box": less, "shape": rows_type(node.types[0], count).shape})


def _map(node: Node, count: int) -> Cut | None:
    """Where no number is needed before its reduction over the rows is complete."""
    program: MapProgram = node.attrs["program"]
    if program.dims[0] % count:
        return None
    rows = frozenset(i for i, axes in enumerate(program.operands) if 0 in axes)
    less = replace(program, dims=(program.dims[0] // count, *program.dims[1:]))
    if 0 not in program.reduced:
        return Cut(rows, attrs={"program": less})
    sums = _summed(program)
    if sums is None or any(
        (number in sums) == (t.size == program.size) for number, t in zip(program.results, node.types, strict=True)
    ):
        return None
    return Cut(rows, frozenset(i for i, number in enumerate(program.results) if number in sums), {"program": less})


def _summed(program: MapProgram) -> set[int] | None:
    """The values that are sums over the box, or such a sum times a constant; None if anything else reads one."""
    first = len(program.operands) + len(program.constants)
    fixed = range(len(program.operands), first)
    sums: set[int] = set()
    for number, step in enumerate(program.steps, first):
        if step.function == "sum":
            sums.add(number)
        elif step.function in {"maximum", "minimum"}:
            return None
        elif any(v in sums for v in step.operands):
            if step.function != "mul" or not any(v in fixed for v in step.operands):
                return None
            sums.add(number)
    return sums


_CUTS: dict[str, Callable[[Node, int], Cut | None]] = {
    "conv": _fixed([0]),
    "conv_grad_x": _shaped([0]),
    "conv_grad_w": _fixed([0, 1], [0]),
    "maxpool": _fixed([0]),
    "maxpool_grad": _shaped([0, 1]),
    "avgpool": _fixed([0]),
    "avgpool_grad": _shaped([0]),
    "gemm": _gemm,
    "matmul": _elementwise,
    "transpose": _transpose,
    "reduce_sum": _reduce_sum,
    "strided_copy": _strided_copy,
    "map": _map,
    **dict.fromkeys(("relu", "relu_grad", "add", "sub", "mul", "unary", "binary", "where"), _elementwise),
}


def apart(node: Node, output: int) -> tuple[Node, Node] | None:
    """A map as two: all results but one, and that one, elementwise of operands and of what the first has stored."""
    program: MapProgram = node.attrs["program"]
    others = [i for i in range(len(node.types)) if i != output]
    first = part_of(node, others) if others else node
    if first is node or node.types[output].size != program.size:
        return None
    stored = {program.results[i]: Value(first, place) for place, i in enumerate(others)}
    needed = _needed(program, program.results[output], stored)
    return None if needed is None else (first, _of(node, output, stored, needed))


def _needed(program: MapProgram, target: int, stored: Mapping[int, Value]) -> list[int] | None:
    """The values that lead to `target` from what is stored or read, these included; None where one is a reduction."""
    begin = len(program.operands) + len(program.constants)
    found, pending = {target}, [target]
    while pending:
        number = pending.pop()
        if number < begin or (number in stored and number != target):
            continue
        step = program.steps[number - begin]
        if step.function in {"sum", "maximum", "minimum"}:
            return None
        pending += [v for v in step.operands if v not in found]
        found.update(step.operands)
    return sorted(found)


def _of(node: Node, output: int, stored: Mapping[int, Value], needed: Sequence[int]) -> Node:
    """The map that makes one result of the needed values."""
    program: MapProgram = node.attrs["program"]
    target, operands = program.results[output], len(program.operands)
    begin = operands + len(program.constants)
    kept = tuple(a for a in range(len(program.dims)) if a not in program.reduced)
    everything = tuple(range(len(program.dims)))
    given: dict[int, tuple[Value | None, tuple[int, ...]]] = {}
    for number in needed:
        if number < operands:
            given[number] = (node.inputs[number], program.operands[number])
        elif number in stored and number != target:
            given[number] = (stored[number], everything if stored[number].type.size == program.size else kept)
    constants = [n for n in needed if operands <= n < begin]
    steps = [n for n in needed if n >= begin and n not in given]
    place = {number: i for i, number in enumerate((*given, *constants, *steps))}
    less = MapProgram(
        program.dims,
        (),
        tuple(axes for _, axes in given.values()),
        tuple(program.constants[n - operands] for n in constants),
        tuple(
            Step(program.steps[n - begin].function, tuple(place[v] for v in program.steps[n - begin].operands))
            for n in steps
        ),
        (place[target],),
    )
    types = (node.types[output],)
    return Node("map", tuple(v for v, _ in given.values()), types, {**node.attrs, "program": less, "types": types})
