"""What can be read off a plan without running it: phases, lifetimes, multiply-adds and bytes of its operations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime.plan import ROLE_CONSTANT, ROLE_OUTPUT, ROLE_STATE, ROLE_TEMPORARY, ROLE_TRAINED

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edge_runtime._core import OpInfo, PlanInfo, TensorInfo

FORWARD, BACKWARD, UPDATE = PHASES = ("forward", "backward", "update")
LOSS, RUNNING_AVERAGE = "loss", "blend"


@dataclass(frozen=True)
class Operation:
    """One operation of a plan.

    Attributes:
        number: Its place in the order of execution.
        name: Of the kernel.
        phase: forward, backward or update; see `anatomy`.
        shape: Of its first output.
        multiply_adds: Products summed in matrix products and convolutions; 0 for all others.
        bytes_moved: Operands read and written once each; what any implementation has to move.
    """

    number: int
    name: str
    phase: str
    shape: tuple[int, ...]
    multiply_adds: int
    bytes_moved: int


@dataclass(frozen=True)
class Life:
    """Bytes of the arena that hold one temporary from the operation that writes it to the last that reads it."""

    offset: int
    nbytes: int
    first: int
    last: int
    phase: str


@dataclass(frozen=True)
class Anatomy:
    """The operations of a plan in their order, the lives of its temporaries, and what its other tensors own."""

    operations: tuple[Operation, ...]
    lives: tuple[Life, ...]
    owned: tuple[tuple[int, int], ...]  # (offset, bytes)
    arena_bytes: int

    @property
    def owned_bytes(self) -> int:
        """Bytes that belong to named tensors for the whole run, up to the next multiple of 64 each."""
        return sum(_aligned(nbytes) for _, nbytes in self.owned)

    def live_bytes(self) -> list[int]:
        """Bytes of temporaries alive during each operation, each up to the next multiple of 64."""
        changes = [0] * (len(self.operations) + 1)
        for life in self.lives:
            changes[life.first] += _aligned(life.nbytes)
            changes[life.last + 1] -= _aligned(life.nbytes)
        live, total = [], 0
        for change in changes[:-1]:
            total += change
            live.append(total)
        return live


def anatomy(info: PlanInfo) -> Anatomy:
    """Read phases, lives and costs off what `_core.describe` says of a plan.

    An operation that writes a trained tensor or optimiser state belongs to the update. Of the others, those that the
    loss (every output, where none is called so) depends on are forward, those that serve running averages alone belong
    to the update too, and the rest is backward: what is computed again for the gradient counts there.
    """
    flow = _Flow(info)
    operations = tuple(
        Operation(i, op["op"], flow.phases[i], _shape(info, op), multiply_adds(info, op), bytes_moved(info, op))
        for i, op in enumerate(info["ops"])
    )
    lives = tuple(Life(w.begin, w.end - w.begin, w.op, w.last, flow.phases[w.op]) for w in flow.temporaries)
    owned = tuple(
        (t["offset"], t["bytes"]) for t in info["tensors"] if t["role"] not in {ROLE_TEMPORARY, ROLE_CONSTANT}
    )
    return Anatomy(operations, lives, owned, info["arena_bytes"])


def multiply_adds(info: PlanInfo, op: OpInfo) -> int:
    """Products that one run of an operation sums, counted as the compiler counts them."""
    shapes = [info["tensors"][i]["shape"] for i in (*op["inputs"], *op["outputs"]) if i is not None]
    match op["op"]:
        case "gemm" | "gemm_sgd":
            return math.prod(shapes[-1]) * shapes[0][0 if op["attrs"][0] else 1]
        case "matmul":
            return math.prod(shapes[-1]) * shapes[0][-2 if op["attrs"][0] else -1]
        case "sampled_softmax":
            return 3 * math.prod(shapes[0]) * shapes[2][0]
        case "conv" | "conv_grad_x":
            y = shapes[-1] if op["op"] == "conv" else shapes[0]
            return math.prod(y) * math.prod(shapes[1][1:])
        case "conv_grad_w":
            return math.prod(shapes[0]) * math.prod(shapes[-1][1:])
    return 0


def bytes_moved(info: PlanInfo, op: OpInfo) -> int:
    """Bytes of the operands; a table that is only looked into counts for the rows that are looked at."""
    reads = [info["tensors"][i]["bytes"] for i in op["inputs"] if i is not None]
    writes = [info["tensors"][i]["bytes"] for i in op["outputs"] if i is not None]
    if op["op"] == "gather":
        reads[0] = writes[0]
    return sum(reads) + sum(writes)


@dataclass(eq=False)
class _Write:
    """What operation `op` wrote to arena bytes begin .. end, and the last operation that read any of it."""

    begin: int
    end: int
    op: int
    last: int
    temporary: bool


class _Flow:
    """One walk over the operations: who wrote the bytes that each of them reads.

    `_held` are ranges of bytes that do not overlap, each with the write that filled it last.
    """

    def __init__(self, info: PlanInfo) -> None:
        self._tensors = info["tensors"]
        self._held: list[tuple[int, int, _Write]] = []
        self.temporaries: list[_Write] = []
        producers = [self._pass(number, op) for number, op in enumerate(info["ops"])]
        self.phases = self._phases(info["ops"], producers)

    def _pass(self, number: int, op: OpInfo) -> set[int]:
        """Note what an operation reads and writes; the operations whose results it reads."""
        read = [write for tensor in self._operands(op["inputs"]) for write in self._written(tensor)]
        for write in read:
            write.last = number
        for tensor in self._operands(op["outputs"]):
            begin, end = tensor["offset"], tensor["offset"] + tensor["bytes"]
            write = _Write(begin, end, number, number, tensor["role"] == ROLE_TEMPORARY)
            self._overwrite(write)
            if write.temporary:
                self.temporaries.append(write)
        return {write.op for write in read}

    def _overwrite(self, write: _Write) -> None:
        kept = [(write.begin, write.end, write)]
        for begin, end, old in self._held:
            if (old.begin, old.end) == (write.begin, write.end):
                old.last = min(old.last, write.op - 1)  # what an operation reads and overwrites lives on in its result
            pieces = ((begin, min(end, write.begin)), (max(begin, write.end), end))
            kept += [(*piece, old) for piece in pieces if piece[0] < piece[1]]
        self._held = kept

    def _operands(self, numbers: Iterable[int | None]) -> list[TensorInfo]:
        tensors = [self._tensors[i] for i in numbers if i is not None]
        return [t for t in tensors if t["role"] != ROLE_CONSTANT]

    def _written(self, tensor: TensorInfo) -> list[_Write]:
        first, stop = tensor["offset"], tensor["offset"] + tensor["bytes"]
        return [write for begin, end, write in self._held if begin < stop and first < end]

    def _phases(self, ops: list[OpInfo], producers: list[set[int]]) -> list[str]:
        ahead, served = self._needed_for_loss(ops, producers), self._updates_served(ops, producers)

        def phase(i: int) -> str:
            if self._writes(ops[i]) or (i not in ahead and served[i] == {RUNNING_AVERAGE}):
                return UPDATE
            return FORWARD if i in ahead else BACKWARD

        return [phase(i) for i in range(len(ops))]

    def _updates_served(self, ops: list[OpInfo], producers: list[set[int]]) -> list[set[str]]:
        """For each operation, the names of the updates that read what it makes, or what is made of it."""
        served = [{op["op"]} if self._writes(op) else set[str]() for op in ops]
        for i in reversed(range(len(ops))):
            for producer in producers[i]:
                served[producer] |= served[i]
        return served

    def _needed_for_loss(self, ops: list[OpInfo], producers: list[set[int]]) -> set[int]:
        outputs = {t["name"] for t in self._tensors if t["role"] == ROLE_OUTPUT}
        wanted = {LOSS} & outputs or outputs
        needed: set[int] = set()
        for i in reversed(range(len(ops))):
            final = any(t["role"] == ROLE_OUTPUT and t["name"] in wanted for t in self._operands(ops[i]["outputs"]))
            if final or i in needed:
                needed |= {i, *producers[i]}
        return needed

    def _writes(self, op: OpInfo) -> bool:
        """Whether an operation updates a trained tensor or optimiser state."""
        return any(t["role"] in {ROLE_TRAINED, ROLE_STATE} for t in self._operands(op["outputs"]))


def _shape(info: PlanInfo, op: OpInfo) -> tuple[int, ...]:
    return next((tuple(info["tensors"][i]["shape"]) for i in op["outputs"] if i is not None), ())


def _aligned(nbytes: int) -> int:
    return -(-nbytes // 64) * 64
