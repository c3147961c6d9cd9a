"""A small writer of plan files for tests: every field can be wrong on purpose."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field

import numpy as np

from edge_runtime import _core

TEMPORARY, TRAINED, FROZEN, STATE, BATCH, SCALAR, OUTPUT, CONSTANT = range(8)
DTYPES = {"float32": 1, "int32": 2, "uint8": 3}
OPCODES = _core.opcodes()
ABSENT = 0xFFFFFFFF
HEADER = struct.Struct("<8sIIIIIIQQQQ")
TENSOR = struct.Struct("<BBBBIIIQ6I")
OP = struct.Struct("<HBBIIHH")


def round_up(number: int) -> int:
    """The next multiple of 64."""
    return -(-number // 64) * 64


def bits(value: float) -> int:
    """The int32 whose bits are this float32."""
    return int(np.float32(value).view(np.int32))


@dataclass
class TensorRecord:
    name: str
    shape: tuple[int, ...]
    dtype: str
    role: int
    offset: int
    nbytes: int


@dataclass
class PlanWriter:
    """Tensors get fresh bytes of the arena unless an offset is given; `seal` gives the file."""

    tensors: list[TensorRecord] = field(default_factory=list)
    ops: list[tuple[str, list[int], list[int], list[int]]] = field(default_factory=list)
    arena_bytes: int = 0
    constants: bytearray = field(default_factory=bytearray)
    workspace_bytes: int = 4 << 20

    def tensor(
        self,
        name: str,
        shape: tuple[int, ...],
        role: int = TEMPORARY,
        dtype: str = "float32",
        offset: int | None = None,
    ) -> int:
        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        at = self.arena_bytes if offset is None else offset
        self.arena_bytes = max(self.arena_bytes, at + round_up(nbytes))
        self.tensors.append(TensorRecord(name, shape, dtype, role, at, nbytes))
        return len(self.tensors) - 1

    def constant(self, name: str, value: np.ndarray) -> int:
        at = round_up(len(self.constants))
        self.constants.extend(bytes(at - len(self.constants)) + value.tobytes())
        self.tensors.append(TensorRecord(name, value.shape, value.dtype.name, CONSTANT, at, value.nbytes))
        return len(self.tensors) - 1

    def op(
        self, name: str, inputs: list[int | None], outputs: list[int | None], attrs: list[int] | None = None
    ) -> None:
        numbers = [[ABSENT if t is None else t for t in side] for side in (inputs, outputs)]
        self.ops.append((name, numbers[0], numbers[1], attrs or []))

    def seal(self) -> bytes:
        """The bytes of the file, check sum included."""
        names, records = bytearray(), bytearray()
        for t in self.tensors:
            encoded = t.name.encode()
            dims = list(t.shape) + [0] * (6 - len(t.shape))
            head = (DTYPES[t.dtype], len(t.shape), t.role, 0, len(names), len(encoded), 0)
            records += TENSOR.pack(*head, t.offset, *dims)
            names += encoded
        ops, operands, attrs = bytearray(), bytearray(), bytearray()
        for name, inputs, outputs, values in self.ops:
            head = (OPCODES[name], len(inputs), len(outputs), len(operands) // 4, len(attrs) // 4, len(values))
            ops += OP.pack(*head, 0)
            operands += struct.pack(f"<{len(inputs) + len(outputs)}I", *inputs, *outputs)
            attrs += struct.pack(f"<{len(values)}i", *values)
        body = bytes(records + ops + operands + attrs + names)
        body += bytes(round_up(64 + len(body)) - 64 - len(body)) + bytes(self.constants)
        header = HEADER.pack(
            b"EDGEPLAN",
            1,
            len(self.tensors),
            len(self.ops),
            len(operands) // 4,
            len(attrs) // 4,
            len(names),
            self.arena_bytes,
            len(self.constants),
            self.workspace_bytes,
            64 + len(body) + 32,
        )
        return with_checksum(header + body)


def with_checksum(body: bytes) -> bytes:
    """The file whose content before the check sum is this."""
    return body + hashlib.sha256(body).digest()


def patched(plan: bytes, at: int, replacement: bytes) -> bytes:
    """The plan with some bytes replaced and the check sum made right again."""
    body = plan[:-32]
    return with_checksum(body[:at] + replacement + body[at + len(replacement) :])
