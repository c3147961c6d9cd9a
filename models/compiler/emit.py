"""Writing a laid-out program as a plan file, byte for byte as docs/plan-format.md says.

Nothing here depends on anything but the layout: one layout gives one sequence of bytes.
"""

import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from models.compiler.errors import CompileError
from models.compiler.ir import Node, Role, Type, Value
from models.compiler.memory import ALIGNMENT, aligned
from models.compiler.ops import OPS
from models.compiler.storage import Layout

MAGIC = b"EDGEPLAN"
VERSION = 1
HEADER = struct.Struct("<8s6I4Q")
TENSOR = struct.Struct("<4B3IQ6I")
OPERATION = struct.Struct("<H2B2I2H")
ABSENT = 0xFFFFFFFF
DTYPES = {"float32": 1, "int32": 2, "uint8": 3}
CHECK_BYTES = 32
MAX_FILE_BYTES = 256 << 20
MAX_ARENA_BYTES = 4 << 30
MAX_RECORDS = 65536
MAX_WORDS = 1 << 20
MAX_NAMES_BYTES = 4 << 20


@dataclass(frozen=True)
class Record:
    """One tensor of the plan."""

    type: Type
    role: Role
    name: str
    offset: int


@dataclass(frozen=True)
class Operation:
    """One operation of the plan; operands are tensor numbers, inputs before outputs."""

    opcode: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    attrs: tuple[int, ...]


@dataclass(frozen=True)
class Program:
    """Everything the file holds, before it is bytes."""

    tensors: tuple[Record, ...]
    operations: tuple[Operation, ...]
    constants: bytes
    arena_bytes: int

    def shapes(self, operation: Operation) -> list[list[int] | None]:
        """Shapes of an operation's operands in order, None where one is absent."""
        numbers = (*operation.inputs, *operation.outputs)
        return [None if i == ABSENT else list(self.tensors[i].type.shape) for i in numbers]


def program(layout: Layout) -> Program:
    """Number the tensors (owners first, the others as they appear) and translate the kernels."""
    owners = layout.owners
    constants = _constants(layout)
    numbers: dict[Value, int] = {}
    records: list[Record] = []
    for value in sorted(owners, key=lambda v: (owners[v].role, owners[v].name)):
        numbers[value] = len(records)
        records.append(Record(value.type, owners[value].role, owners[value].name, layout.offset(value)))

    def number(value: Value | None) -> int:
        if value is None:
            return ABSENT
        root = layout.root(value)
        # An update's result is the slot itself; every other value has a record of its own, whatever bytes it shares.
        known = root if root in owners and value.type == root.type else value
        if known not in numbers:
            numbers[known] = len(records)
            records.append(_record(known, layout, constants))
        return numbers[known]

    operations = [_operation(node, number) for node in layout.order]
    return Program(tuple(records), tuple(operations), _constant_bytes(constants), layout.arena_bytes)


def _record(value: Value, layout: Layout, constants: Mapping[Value, int]) -> Record:
    root = layout.root(value)
    if root in constants:
        return Record(value.type, Role.CONSTANT, "", constants[root])
    return Record(value.type, Role.TEMPORARY, "", layout.offset(value))


def _operation(node: Node, number: Callable[[Value | None], int]) -> Operation:
    op = OPS[node.op]
    n_inputs, n_outputs = op.operands or (len(node.inputs), len(node.types))
    inputs = [number(v) for v in node.inputs]
    outputs = [number(Value(node, i)) for i in range(len(node.types))]
    assert op.opcode is not None
    return Operation(
        op.opcode,
        tuple(inputs + [ABSENT] * (n_inputs - len(inputs))),
        tuple(outputs + [ABSENT] * (n_outputs - len(outputs))),
        tuple(op.encode(node)),
    )


def _constants(layout: Layout) -> dict[Value, int]:
    """Offset of every constant a kernel reads; equal ones are stored once."""
    offsets: dict[Value, int] = {}
    stored: dict[tuple[str, bytes], int] = {}
    end = 0
    for value in (layout.root(v) for node in layout.order for v in node.inputs if v is not None):
        if value.node.op != "constant" or value in offsets:
            continue
        data = value.node.attrs["value"].tobytes()
        key = (value.type.dtype, data)
        if key not in stored:
            stored[key] = end
            end += aligned(len(data))
        offsets[value] = stored[key]
    return offsets


def _constant_bytes(offsets: Mapping[Value, int]) -> bytes:
    size = max((o + aligned(v.type.nbytes) for v, o in offsets.items()), default=0)
    data = bytearray(size)
    for value, offset in offsets.items():
        array = value.node.attrs["value"]
        data[offset : offset + array.nbytes] = array.astype(array.dtype.newbyteorder("<")).tobytes()
    return bytes(data)


def write(program: Program, workspace_bytes: int) -> bytes:
    """The bytes of the plan.

    Raises:
        CompileError: the plan would exceed a cap that every reader enforces.
    """
    names, spans = _names(program.tensors)
    tensors = b"".join(_tensor(t, span) for t, span in zip(program.tensors, spans, strict=True))
    operations, operands, attrs = _sections(program.operations)
    before_names = HEADER.size + len(tensors) + len(operations) + len(operands) + len(attrs)
    padding = bytes(-(before_names + len(names)) % ALIGNMENT)
    file_bytes = before_names + len(names) + len(padding) + len(program.constants) + CHECK_BYTES
    caps = {
        "file bytes": (file_bytes, MAX_FILE_BYTES),
        "arena bytes": (program.arena_bytes, MAX_ARENA_BYTES),
        "workspace bytes": (workspace_bytes, MAX_ARENA_BYTES),
        "tensors": (len(program.tensors), MAX_RECORDS),
        "operations": (len(program.operations), MAX_RECORDS),
        "operands": (len(operands) // 4, MAX_WORDS),
        "attributes": (len(attrs) // 4, MAX_WORDS),
        "bytes of names": (len(names), MAX_NAMES_BYTES),
    }
    for what, (count, cap) in caps.items():
        if count > cap:
            raise CompileError(
                f"the plan needs {count} {what}, at most {cap} are possible; take a smaller batch or model"
            )
    header = HEADER.pack(
        MAGIC,
        VERSION,
        len(program.tensors),
        len(program.operations),
        len(operands) // 4,
        len(attrs) // 4,
        len(names),
        program.arena_bytes,
        len(program.constants),
        workspace_bytes,
        file_bytes,
    )
    body = b"".join([header, tensors, operations, operands, attrs, names, padding, program.constants])
    return body + hashlib.sha256(body).digest()


def _names(tensors: Sequence[Record]) -> tuple[bytes, list[tuple[int, int]]]:
    """The names one after the other, and where each lies."""
    encoded = [t.name.encode() for t in tensors]
    spans, end = [], 0
    for name in encoded:
        spans.append((end if name else 0, len(name)))
        end += len(name)
    return b"".join(encoded), spans


def _tensor(tensor: Record, span: tuple[int, int]) -> bytes:
    shape = tensor.type.shape
    dims = [*shape, *[0] * (6 - len(shape))]
    return TENSOR.pack(DTYPES[tensor.type.dtype], len(shape), tensor.role, 0, *span, 0, tensor.offset, *dims)


def _sections(operations: Sequence[Operation]) -> tuple[bytes, bytes, bytes]:
    """The operations, their operands, their attributes."""
    records, operands, attrs = bytearray(), bytearray(), bytearray()
    for op in operations:
        first_operand, first_attr = len(operands) // 4, len(attrs) // 4
        counts = (len(op.inputs), len(op.outputs), first_operand, first_attr, len(op.attrs), 0)
        records += OPERATION.pack(op.opcode, *counts)
        operands += struct.pack(f"<{len(op.inputs) + len(op.outputs)}I", *op.inputs, *op.outputs)
        attrs += struct.pack(f"<{len(op.attrs)}i", *op.attrs)
    return bytes(records), bytes(operands), bytes(attrs)
