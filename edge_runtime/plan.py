"""The plan file as a board sees it: read, verify, describe. The format is docs/plan-format.md.

The compiled core checks every rule but two, which are checked here: the SHA-256 at the end of the file, and the name
the file goes by.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from edge_runtime import _core

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Content = TypeVar("Content")

ROLE_TEMPORARY = 0
ROLE_TRAINED = 1
ROLE_FROZEN = 2
ROLE_STATE = 3
ROLE_BATCH = 4
ROLE_SCALAR = 5
ROLE_OUTPUT = 6
ROLE_CONSTANT = 7

ANCHOR = "global/"  # a frozen tensor "global/NAME" holds NAME as the task received it
CONTROL = "control/"  # a frozen tensor "control/NAME" is added to the gradient of NAME
AVERAGE = "ema/"  # a trained tensor "ema/NAME" is the moving average of NAME and begins as NAME
SEED = "seed"  # a scalar of plans that draw random numbers; whole, below 2**24; the board sets it, not the task

CHECK_BYTES = 32
N_OPS_FIELD = slice(16, 20)  # of the header
FILE_BYTES_FIELD = slice(56, 64)


class PlanError(_core.PlanError):
    """A plan that cannot be used: `rule` is stable and for programs, `message` is for people."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(rule, message)
        self.rule = rule
        self.message = message

    def __str__(self) -> str:
        return f"{self.rule}: {self.message}"


class FileTooLargeError(PlanError):
    """The file is larger than 256 MiB."""


class TruncatedError(PlanError):
    """The file ends before its header says."""


class BadMagicError(PlanError):
    """The file is no plan."""


class BadVersionError(PlanError):
    """The plan was written for another reader."""


class FileSizeMismatchError(PlanError):
    """The file goes on after its header says it ends."""


class SectionsMismatchError(PlanError):
    """The sections do not fill the file."""


class TooManyTensorsError(PlanError):
    """More than 65,536 tensors."""


class TooManyOpsError(PlanError):
    """More than 65,536 operations."""


class TooManyOperandsError(PlanError):
    """More than 1,048,576 operands."""


class TooManyAttributesError(PlanError):
    """More than 1,048,576 attributes."""


class NamesTooLongError(PlanError):
    """Names of more than 4 MiB."""


class ArenaTooLargeError(PlanError):
    """An arena of more than 4 GiB."""


class ConstantsTooLargeError(PlanError):
    """Constants of more than 256 MiB."""


class WorkspaceTooLargeError(PlanError):
    """A workspace of more than 4 GiB."""


class WorkspaceTooSmallError(PlanError):
    """A kernel needs more scratch than the plan sets aside."""


class ChecksumMismatchError(PlanError):
    """The bytes are not those that were written."""


class NameMismatchError(PlanError):
    """The plan is not the one that was asked for."""


class BadPaddingError(PlanError):
    """Padding that is not zero."""


class BadReservedError(PlanError):
    """A reserved field that is not zero."""


class BadNameError(PlanError):
    """A name that is missing, outside its section, or not UTF-8."""


class DuplicateNameError(PlanError):
    """Two tensors of one name."""


class BadDtypeError(PlanError):
    """An unknown dtype, or one that does not fit its use."""


class BadRoleError(PlanError):
    """An unknown role."""


class BadShapeError(PlanError):
    """Dimensions that cannot be, or do not fit the operation."""


class BadOffsetError(PlanError):
    """A tensor outside its arena or constants."""


class MisalignedError(PlanError):
    """An offset that is no multiple of 64."""


class SlotsOverlapError(PlanError):
    """Bytes of a tensor that lives for the whole run, given to another."""


class BadOpcodeError(PlanError):
    """An unknown operation."""


class BadOperandError(PlanError):
    """Operands that are missing, too many, or no tensors of the plan."""


class BadAttributeError(PlanError):
    """Attributes that are missing, too many, or out of range."""


class WritesReadOnlyError(PlanError):
    """An operation that writes a constant, a batch, a scalar or a frozen tensor."""


class OverlapError(PlanError):
    """An operation whose output shares bytes with its input."""


RULES: dict[str, type[PlanError]] = {
    "FileTooLarge": FileTooLargeError,
    "Truncated": TruncatedError,
    "BadMagic": BadMagicError,
    "BadVersion": BadVersionError,
    "FileSizeMismatch": FileSizeMismatchError,
    "SectionsMismatch": SectionsMismatchError,
    "TooManyTensors": TooManyTensorsError,
    "TooManyOps": TooManyOpsError,
    "TooManyOperands": TooManyOperandsError,
    "TooManyAttributes": TooManyAttributesError,
    "NamesTooLong": NamesTooLongError,
    "ArenaTooLarge": ArenaTooLargeError,
    "ConstantsTooLarge": ConstantsTooLargeError,
    "WorkspaceTooLarge": WorkspaceTooLargeError,
    "WorkspaceTooSmall": WorkspaceTooSmallError,
    "ChecksumMismatch": ChecksumMismatchError,
    "NameMismatch": NameMismatchError,
    "BadPadding": BadPaddingError,
    "BadReserved": BadReservedError,
    "BadName": BadNameError,
    "DuplicateName": DuplicateNameError,
    "BadDtype": BadDtypeError,
    "BadRole": BadRoleError,
    "BadShape": BadShapeError,
    "BadOffset": BadOffsetError,
    "Misaligned": MisalignedError,
    "SlotsOverlap": SlotsOverlapError,
    "BadOpcode": BadOpcodeError,
    "BadOperand": BadOperandError,
    "BadAttribute": BadAttributeError,
    "WritesReadOnly": WritesReadOnlyError,
    "Overlap": OverlapError,
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a plan: `offset` counts bytes of the arena, or of the constants for ROLE_CONSTANT."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    role: int
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Plan:
    """A checked plan: its bytes, its name, the tensors that are not temporary, and what it needs."""

    data: bytes = field(repr=False)
    sha256: str
    tensors: tuple[Tensor, ...] = field(repr=False)
    arena_bytes: int
    constants_bytes: int
    workspace_bytes: int
    n_ops: int

    def named(self, role: int) -> dict[str, Tensor]:
        """The tensors of one role by name, in the order of the file."""
        return {tensor.name: tensor for tensor in self.tensors if tensor.role == role and tensor.name}

    def memory_bytes(self, threads: int) -> int:
        """What an engine of this plan allocates at most: arena, constants, and scratch for every thread."""
        parts = (self.arena_bytes, self.constants_bytes, *(threads * [self.workspace_bytes]))
        return sum(-(-part // 64) * 64 for part in parts)


def read_plan(data: bytes, *, expect_sha256: str | None = None) -> Plan:
    """Check the bytes of a plan file.

    Args:
        data: The whole file.
        expect_sha256: The name it was asked for by: 64 hex digits, the SHA-256 of all its bytes.

    Returns:
        The plan; it holds `data` itself, not a copy.

    Raises:
        PlanError: One subclass per broken rule, see `RULES`.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    if expect_sha256 is not None and sha256 != expect_sha256:
        raise NameMismatchError(
            "NameMismatch", f"asked for plan {expect_sha256}, these bytes are {sha256}; fetch the plan again"
        )
    _check_sum(data)
    info = _describe(data)
    tensors = tuple(
        Tensor(t["name"], t["dtype"], tuple(t["shape"]), t["role"], t["offset"], t["bytes"]) for t in info["tensors"]
    )
    memory = (info["arena_bytes"], info["constants_bytes"], info["workspace_bytes"])
    return Plan(data, sha256, tensors, *memory, int.from_bytes(data[N_OPS_FIELD], "little"))


def with_averages(weights: Mapping[str, Content], trained: Iterable[str]) -> dict[str, Content]:
    """Weights to start from where a plan trains averages: each "ema/NAME" of `trained` begins as its tensor NAME.

    One that `weights` already has goes on from there; one whose tensor it lacks stays missing.
    """
    begin = {name: name.removeprefix(AVERAGE) for name in trained if name.startswith(AVERAGE) and name not in weights}
    return {**weights, **{name: weights[tensor] for name, tensor in begin.items() if tensor in weights}}


def _check_sum(data: bytes) -> None:
    """Refuse a damaged file before its damage is taken for a broken rule of the format.

    Only a file of the size it announces is judged: one that was cut short is better told so.
    """
    announced_bytes = int.from_bytes(data[FILE_BYTES_FIELD], "little")
    if len(data) != announced_bytes or not data:
        return
    if hashlib.sha256(memoryview(data)[:-CHECK_BYTES]).digest() != data[-CHECK_BYTES:]:
        raise ChecksumMismatchError("ChecksumMismatch", "the plan's bytes changed on the way; fetch or build it again")


def _describe(data: bytes) -> _core.PlanInfo:
    try:
        return _core.describe(data, whole=False)
    except _core.PlanError as error:
        rule, message = error.args
        raise RULES[rule](rule, message) from None
