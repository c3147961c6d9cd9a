"""The compiled core: plan reader, interpreter, kernels."""

from typing import Any, TypedDict

from numpy.typing import NDArray

class PlanError(ValueError):
    """A plan broke a rule of docs/plan-format.md; `args` are (rule, message)."""

class TensorInfo(TypedDict):
    """One tensor of a plan."""

    name: str
    dtype: str
    shape: list[int]
    role: int
    offset: int
    bytes: int

class OpInfo(TypedDict):
    """One operation of a plan; None stands for an absent operand."""

    op: str
    inputs: list[int | None]
    outputs: list[int | None]
    attrs: list[int]

class PlanInfo(TypedDict):
    """What a plan holds."""

    tensors: list[TensorInfo]
    ops: list[OpInfo]
    arena_bytes: int
    constants_bytes: int
    workspace_bytes: int

class BuildInfo(TypedDict):
    """The instruction set in use, those that can run here (slowest first), and the compiler."""

    isa: str
    available: list[str]
    compiler: str

def describe(plan: bytes) -> PlanInfo:
    """Check a plan, all but its SHA-256, and say what is in it; PlanError names the broken rule."""

def workspace_bytes(opcode: int, shapes: list[list[int] | None], attrs: list[int]) -> int:
    """Scratch that one operation needs per thread, on any instruction set.

    `shapes` are those of the inputs, then the outputs; None for an absent operand.
    """

def info() -> BuildInfo:
    """Say which kernels are used; ValueError where EDGE_ISA asks for one that cannot run here."""

class Engine:
    """One plan bound to one zeroed block of memory."""

    def __init__(self, plan: bytes, threads: int = 1, isa: str = "auto") -> None: ...
    def view(self, name: str) -> NDArray[Any]:
        """A writable array over a named tensor (read-only for a constant); keeps the engine alive."""

    def step(self) -> None:
        """Run the plan once without the GIL; ValueError (LabelOutOfRange) before anything is written."""

    def poison(self) -> None:
        """Fill temporaries and scratch with NaN; a step must not notice."""

    @property
    def arena_bytes(self) -> int: ...
    @property
    def workspace_bytes(self) -> int: ...
    @property
    def isa(self) -> str: ...
    @property
    def threads(self) -> int: ...
