# The compiled core: plan reader, interpreter, kernels.

from collections.abc import Sequence
from typing import Any, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

# A plan broke a rule of docs/plan-format.md; `args` are (rule, message).
class PlanError(ValueError): ...

# A coded stream broke a rule of its format; `args` are (rule, message).
class StreamError(ValueError): ...

# One tensor of a plan.
class TensorInfo(TypedDict):
    name: str
    dtype: str
    shape: list[int]
    role: int
    offset: int
    bytes: int

# One operation of a plan; None stands for an absent operand.
class OpInfo(TypedDict):
    op: str
    inputs: list[int | None]
    outputs: list[int | None]
    attrs: list[int]

# What a plan holds.
class PlanInfo(TypedDict):
    tensors: list[TensorInfo]
    ops: list[OpInfo]
    arena_bytes: int
    constants_bytes: int
    workspace_bytes: int

# The instruction set in use, those that can run here (slowest first), and the compiler.
class BuildInfo(TypedDict):
    isa: str
    available: list[str]
    compiler: str

# Check a plan, all but its SHA-256, and say what is in it; PlanError names the broken rule. Unless `whole`, temporaries
# and operations are left out: they take much memory beside the plan.
def describe(plan: bytes, whole: bool = True) -> PlanInfo: ...

# Scratch that one operation needs per thread, on any instruction set. `shapes` are those of the inputs, then of the
# outputs; None for an absent operand.
def workspace_bytes(opcode: int, shapes: list[list[int] | None], attrs: list[int]) -> int: ...

# The number of every operation in the plan format, by name.
def opcodes() -> dict[str, int]: ...

# Say which kernels are used; ValueError where EDGE_ISA asks for one that cannot run here.
def info() -> BuildInfo: ...

# One plan bound to one zeroed block of memory.
class Engine:
    def __init__(self, plan: bytes, threads: int = 1, isa: str = "auto") -> None: ...
    # A writable array over a named tensor (read-only for a constant); keeps the engine alive.
    def view(self, name: str) -> NDArray[Any]: ...

    # Run the plan once without the GIL; ValueError (LabelOutOfRange) before anything is written.
    def step(self) -> None: ...

    # Seconds of every operation in every one of 1 to 100,000 steps, (steps, operations); trains as step() does.
    def timings(self, steps: int) -> NDArray[np.float64]: ...

    # Give the memory of temporaries and scratch back to the system until the next step.
    def release(self) -> None: ...

    # Fill temporaries and scratch with NaN; a step must not notice.
    def poison(self) -> None: ...
    @property
    def arena_bytes(self) -> int: ...
    @property
    def workspace_bytes(self) -> int: ...
    @property
    def isa(self) -> str: ...
    @property
    def threads(self) -> int: ...

# Instruction set, threads and memory of kernels outside plans; one caller at a time (RuntimeError otherwise).
class Workspace:
    def __init__(self, threads: int = 1, isa: str = "auto") -> None: ...
    # Give the memory back to the system.
    def release(self) -> None: ...
    @property
    def held_bytes(self) -> int: ...
    @property
    def peak_bytes(self) -> int: ...
    @property
    def threads(self) -> int: ...
    @property
    def isa(self) -> str: ...

# Selection by magnitude (edge_runtime/kernels/selection.py): (indices, values, least key selected), None where there is
# a NaN. `infinity` is the bits of infinity; 16-bit arrays are uint16 and their keys the upper half of 32 bits.
Selected: TypeAlias = tuple[NDArray[np.int32], NDArray[Any], int]

def top_k(workspace: Workspace, xs: Sequence[NDArray[Any]], infinity: int, k: int) -> Selected | None: ...
def top_k_residual(
    workspace: Workspace, gradients: Sequence[NDArray[Any]], residuals: Sequence[NDArray[Any]], k: int
) -> Selected | None: ...
def dgc(
    workspace: Workspace,
    gradients: Sequence[NDArray[Any]],
    momenta: Sequence[NDArray[Any]],
    residuals: Sequence[NDArray[Any]],
    k: int,
    momentum_factor: float,
    nesterov: bool,
    masking: bool,
) -> Selected | None: ...
def above(workspace: Workspace, x: NDArray[Any], infinity: int, key: int) -> Selected | None: ...
def sampled(
    workspace: Workspace,
    x: NDArray[Any],
    infinity: int,
    k: int,
    seed: int,
    sample: int,
    least: int,
    most: int,
    attempts: int,
) -> Selected | None: ...

# (u, s, vt, error, passes) of a float32 matrix; see edge_runtime.kernels.low_rank. `energy` 0: exactly `rank`.
def truncated_svd(
    workspace: Workspace,
    a: NDArray[np.float32],
    rank: int,
    energy: float,
    warm: NDArray[np.float32] | None,
    seed: int,
    tolerance: float,
    iterations: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], float, int]: ...

# (p, q) of a warm-started step of subspace iteration.
def power_step(
    workspace: Workspace, a: NDArray[np.float32], q: NDArray[np.float32], seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...

# Loss of linear logits over `classes` (all rows where None); see edge_runtime.kernels.sampled_softmax. `scale` 0 is the
# dot product. Writes the gradients that have an array; with `lr` moves the rows themselves.
def sampled_softmax(
    workspace: Workspace,
    features: NDArray[np.float32],
    rows: NDArray[np.float32],
    labels: NDArray[np.int32],
    classes: NDArray[np.int32] | None = None,
    positives: int = 0,
    correction: float | NDArray[np.float32] = 0.0,
    scale: float = 0.0,
    own_positives: bool = False,
    lr: float | None = None,
    d_features: NDArray[np.float32] | None = None,
    d_rows: NDArray[np.float32] | None = None,
) -> float: ...

# What edge_runtime.kernels.fold documents; a piece is (begin, values, places, scales, block), `first_bad` a place or
# -1.
class CodedUpdate:
    def __init__(
        self,
        workspace: Workspace,
        pieces: list[tuple[int, NDArray[Any], NDArray[np.int32] | None, NDArray[np.float32] | None, int]],
        total: int,
    ) -> None: ...
    @property
    def first_bad(self) -> int: ...
    @property
    def peak(self) -> float: ...
    @property
    def total(self) -> int: ...

class Accumulator:
    def __init__(self, sizes: list[int]) -> None: ...
    def add(self, workspace: Workspace, update: CodedUpdate, weights: NDArray[np.float64]) -> None: ...
    def sums(self, tensor: int) -> NDArray[np.float64]: ...
    @property
    def terms(self) -> int: ...
    @property
    def bytes(self) -> int: ...

# What edge_runtime.kernels.coders documents.
def encode_indices(indices: NDArray[np.int32], n: int) -> bytes: ...
def decode_indices(data: bytes | bytearray | memoryview, n: int, max_count: int) -> NDArray[np.int32]: ...

# Distributions of integers in counts of 65536, checked; ValueError names the row that is none.
class RansTables:
    def __init__(self, cdfs: NDArray[np.int32], lengths: NDArray[np.int32], offsets: NDArray[np.int32]) -> None: ...
    @property
    def rows(self) -> int: ...

def rans_encode(
    symbols: NDArray[np.int32], tables: RansTables, indexes: NDArray[np.int32], state_bits: int, ways: int
) -> bytes: ...
def rans_decode(
    data: bytes | bytearray | memoryview, tables: RansTables, indexes: NDArray[np.int32], state_bits: int, ways: int
) -> NDArray[np.int32]: ...

# What edge_runtime.kernels.quantizers documents; float16 arrives and leaves as its bits.
def to_float16(workspace: Workspace, x: NDArray[np.float32]) -> NDArray[np.uint16]: ...
def from_float16(workspace: Workspace, h: NDArray[np.uint16]) -> NDArray[np.float32]: ...
def to_bfloat16(workspace: Workspace, x: NDArray[np.float32]) -> NDArray[np.uint16]: ...
def from_bfloat16(workspace: Workspace, h: NDArray[np.uint16]) -> NDArray[np.float32]: ...
def quantize_int8(
    workspace: Workspace, x: NDArray[np.float32], block: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]: ...
def quantize_qsgd(
    workspace: Workspace, x: NDArray[np.float32], levels: int, block: int, seed: int, l2: bool
) -> tuple[NDArray[np.int8], NDArray[np.float32]]: ...
def quantize_sign(
    workspace: Workspace, x: NDArray[np.float32], block: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]: ...
def dequantize_int8(
    workspace: Workspace, q: NDArray[np.int8], scales: NDArray[np.float32], block: int
) -> NDArray[np.float32]: ...
def dequantize_sign(
    workspace: Workspace, bits: NDArray[np.uint8], scales: NDArray[np.float32], n: int, block: int
) -> NDArray[np.float32]: ...
