"""The program of a fused map: what one "map" operation computes, and how the plan format writes it."""

import math
from dataclasses import dataclass

from models.compiler.elementary import BINARY, UNARY
from models.compiler.encode import float_bits

MAX_AXES, MAX_OPERANDS, MAX_RESULTS, MAX_CONSTANTS, MAX_STEPS = 4, 16, 8, 64, 256

# The numbers of the plan format.
FUNCTIONS: dict[str, int] = {
    **{name: number for number, name in enumerate(UNARY)},
    **{name: 32 + number for number, name in enumerate(BINARY)},
    "add": 48,
    "sub": 49,
    "mul": 50,
    "relu": 51,
    "relu_grad": 52,
    "where": 53,
    "sum": 64,
    "maximum": 65,
    "minimum": 66,
}


@dataclass(frozen=True)
class Step:
    """One value: a function of earlier ones."""

    function: str
    operands: tuple[int, ...]


@dataclass(frozen=True)
class MapProgram:
    """Functions and reductions over a box.

    Values are numbered: operands first, then constants, then one for each step.

    Attributes:
        dims: the box, at most MAX_AXES axes.
        reduced: the axes that sums, maxima and minima run over.
        operands: for each operand the axes it has, in order; it is repeated along the others.
        constants: numbers, rounded to float32.
        steps: in an order in which each follows its operands.
        results: values to store; each has all axes, or all that are not reduced.
    """

    dims: tuple[int, ...]
    reduced: tuple[int, ...]
    operands: tuple[tuple[int, ...], ...]
    constants: tuple[float, ...]
    steps: tuple[Step, ...]
    results: tuple[int, ...]

    @property
    def size(self) -> int:
        """Places in the box."""
        return math.prod(self.dims)

    def whole(self, operand: int) -> bool:
        """Whether an operand has the size of the box."""
        return math.prod(self.dims[a] for a in self.operands[operand]) == self.size


def encode(program: MapProgram) -> list[int]:
    """The attributes of a map."""
    counts = [len(part) for part in (program.operands, program.results, program.constants, program.steps)]
    masks = [sum(1 << a for a in axes) for axes in (program.reduced, *program.operands)]
    steps = [word for step in program.steps for word in (FUNCTIONS[step.function], *step.operands)]
    constants = [float_bits(c) for c in program.constants]
    return [*counts, len(program.dims), *program.dims, *masks, *constants, *steps, *program.results]
