"""A fused map that makes fewer of its results."""

from collections.abc import Collection

from models.compiler.ir import Node
from models.compiler.map_program import MapProgram, Step


def part_of(node: Node, outputs: Collection[int]) -> Node:
    """The map with some of its outputs, in their order; what only the others need is left out.

    The whole map where no operand or result of the part would fill its box, which the plan format asks for.
    """
    if len(outputs) == len(node.types):
        return node
    kept = sorted(outputs)
    program, operands = _without(node.attrs["program"], kept)
    types = tuple(node.types[i] for i in kept)
    if not any(t.size == program.size for t in types) and not any(map(program.whole, range(len(operands)))):
        return node
    attrs = {**node.attrs, "program": program, "types": types}
    return Node(node.op, tuple(node.inputs[i] for i in operands), types, attrs)


def _without(program: MapProgram, kept: list[int]) -> tuple[MapProgram, list[int]]:
    """The program of some results, and the operands that are left."""
    steps_from = len(program.operands) + len(program.constants)
    results = [program.results[i] for i in kept]
    needed = set(results)
    for number in range(steps_from + len(program.steps) - 1, steps_from - 1, -1):
        if number in needed:
            needed.update(program.steps[number - steps_from].operands)
    number_of = {old: new for new, old in enumerate(sorted(needed))}
    operands = [i for i in range(len(program.operands)) if i in needed]
    less = MapProgram(
        program.dims,
        program.reduced,
        tuple(program.operands[i] for i in operands),
        tuple(c for i, c in enumerate(program.constants, len(program.operands)) if i in needed),
        tuple(
            Step(step.function, tuple(number_of[v] for v in step.operands))
            for i, step in enumerate(program.steps, steps_from)
            if i in needed
        ),
        tuple(number_of[v] for v in results),
    )
    return less, operands
