"""ONNX in: a checked model becomes a graph, or an error that names the node.

The model comes from outside and is not trusted: sizes are capped before anything is allocated, and whatever
is wrong with it ends in ModelError. Float32 initializers become named parameters; everything known once the
batch size is fixed (shape arithmetic) is computed here, by the onnx package's own reference evaluator.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.defs
import onnx.inliner
import onnx.numpy_helper
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no types
from numpy.typing import NDArray

import models.compiler.graph as g
from models.compiler.errors import CompileError, ModelError, UnsupportedOp
from models.compiler.ir import Graph, Value, topological
from models.compiler.onnx_einsum import CONVERTERS as EINSUM
from models.compiler.onnx_empty import evaluate, is_empty, not_empty, with_empty
from models.compiler.onnx_formulas import CONVERTERS as FORMULAS
from models.compiler.onnx_indexing import CONVERTERS as INDEXING
from models.compiler.onnx_losses import CONVERTERS as LOSSES
from models.compiler.onnx_moves import CONVERTERS as MOVES
from models.compiler.onnx_nodes import ModelNode, Term, Training
from models.compiler.onnx_ops import CONVERTERS as LAYERS
from models.compiler.onnx_random import CONVERTERS as RANDOM
from models.compiler.onnx_recurrent import CONVERTERS as RECURRENT
from models.compiler.onnx_sequences import without_sequences
from models.compiler.onnx_stored import (
    NOTHING_TOLD,
    Origins,
    constant_because,
    folded_normalisations,
    origins_of,
    read_by_several,
)
from models.compiler.onnx_tensor_ops import CONVERTERS as TENSOR_OPS
from models.compiler.randomness import SEED, STEP

MAX_MODEL_BYTES = 256 << 20
MIN_OPSET = 7
MAX_FOLDED_ELEMENTS = 1024  # of all inputs together: shape arithmetic is about a few numbers
NUMBERS = (
    "Abs",
    "Add",
    "Cast",
    "Ceil",
    "Div",
    "Floor",
    "Max",
    "Min",
    "Mod",
    "Mul",
    "Neg",
    "Round",
    "Sign",
    "Sqrt",
    "Sub",
)
TRUTHS = ("And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or", "Where", "Xor")
MOVED = ("Concat", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
SIZED = ("ConstantOfShape", "Expand", "Pow", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Tile")
FOLDABLE = frozenset((*NUMBERS, *TRUTHS, *MOVED, *SIZED))
CONVERTERS = LAYERS | TENSOR_OPS | MOVES | RECURRENT | INDEXING | EINSUM | LOSSES | FORMULAS | RANDOM
SUPPORTED = frozenset(CONVERTERS)
# What the onnx package and NumPy raise on malformed attributes, tensors and shapes.
BROKEN = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
# Integers are indices: they travel as int32.
INPUT_TYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.INT64: "int32",
}
ROWS = "row weights"
ELSEWHERE = "lies in another file; save the model as one file, from torch with external_data=False"
KNOWN_OPERANDS = {"Resize": (1, 2)}  # float32 operands that are settings
Array = NDArray[Any]


@dataclass(frozen=True)
class Reading:
    """What the conversion of every node may need of the model."""

    opset: int
    batch: int
    fixed_batch: int | None
    initializers: Mapping[str, onnx.TensorProto]
    training: Training
    read: frozenset[str]  # what some node, or the caller of the model, reads
    origins: Origins = NOTHING_TOLD


def import_onnx(model: bytes, *, batch: int, training: bool = True) -> Graph:
    """Read a model for batches of `batch` examples.

    The input is named "x"; its first dimension is the batch, symbolic or of whatever size the model was
    exported with. Parameters keep the names of their initializers. What onnx_stored finds to be a constant
    (numbers of a formula, masks, buffers where the exporter tells) is none, which is noted.

    Args:
        model: a serialised ONNX ModelProto, opset 7 or later, without external data.
        batch: rows of a batch, at least 1.
        training: whether every BatchNormalization normalises by the batch and moves its running statistics, as a
            model does while it is trained; otherwise only those do that the model says it of.

    Raises:
        UnsupportedOp: an operator the compiler does not have; it names the node and lists what is supported.
        ModelError: anything else that is wrong with the model.
    """
    if batch < 1:
        raise ModelError(f"batch must be at least 1, got {batch}")
    proto = without_sequences(read_model(model))
    info = _single_input(proto)
    fixed = info.type.tensor_type.shape.dim[0].dim_value or None
    x = input_leaf(info, batch)
    shared = Training(training, g.leaf(ROWS, "float32", (batch,)))
    reading = reading_of(proto, batch, fixed, shared)
    terms: dict[str, Term] = {info.name: x}
    notes = [f"output {o.name!r} is left out: the loss is of the first output" for o in proto.graph.output[1:]]
    for node in proto.graph.node:
        convert_node(node, reading, terms, notes)
    output = first_output(proto, terms)
    # Updates nobody computes for the output are of branches that were cut off.
    reached = set(topological([output]))
    updates = tuple((slot, new) for slot, new in shared.updates if any(n in reached for n in topological([new])))
    leaves = [node.out() for node in topological([output, *(v for pair in updates for v in pair)]) if node.op == "leaf"]
    rows = shared.rows if shared.rows in leaves else None
    parameters = tuple(v for v in leaves if v not in (x, rows, SEED, STEP))
    notes += read_by_several(proto.graph, [p.name for p in parameters])
    notes += folded_normalisations(proto.graph)
    return Graph((x,), parameters, (output,), tuple(notes), rows, updates, _last_op(proto), tuple(shared.modes))


def reading_of(proto: onnx.ModelProto, batch: int, fixed_batch: int | None, shared: Training) -> Reading:
    """What the nodes of a model are read with."""
    graph = proto.graph
    stored = {t.name: t for t in graph.initializer}
    read = frozenset([name for node in graph.node for name in node.input] + [o.name for o in graph.output])
    return Reading(opset_of(proto), batch, fixed_batch, stored, shared, read, origins_of(graph))


def own_batch(model: bytes) -> int:
    """The batch size a model was exported with, 1 where it is symbolic."""
    return _single_input(read_model(model)).type.tensor_type.shape.dim[0].dim_value or 1


def read_model(data: bytes) -> onnx.ModelProto:
    """Parse and check a model.

    Raises:
        ModelError: too large, no ONNX model, external data, or refused by the onnx checker.
    """
    if len(data) > MAX_MODEL_BYTES:
        raise ModelError(f"the model takes {len(data)} bytes, at most {MAX_MODEL_BYTES} are read")
    try:
        proto = onnx.load_model_from_string(data)
    except (DecodeError, ValueError) as error:
        raise ModelError(f"not an ONNX model: {error}") from error
    for tensor in proto.graph.initializer:
        if not isinstance(tensor.name, str):  # protobuf hands out bytes where a text field is not UTF-8
            raise ModelError(f"initializer {tensor.name!r} has a name that is not UTF-8")
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ModelError(f"initializer {tensor.name!r} {ELSEWHERE}")
    try:
        onnx.checker.check_model(proto)
        return onnx.inliner.inline_local_functions(proto) if proto.functions else proto
    except (onnx.checker.ValidationError, *BROKEN) as error:
        raise ModelError(f"the onnx checker refuses the model: {error}") from error


def opset_of(proto: onnx.ModelProto) -> int:
    """The version of the default operator set, which must be one that is read."""
    versions = [o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")]
    latest = onnx.defs.onnx_opset_version()
    if len(versions) != 1 or not MIN_OPSET <= versions[0] <= latest:
        raise ModelError(f"the model has opset {versions or 'none'}; {MIN_OPSET} to {latest} are read, export it again")
    return int(versions[0])


def _single_input(proto: onnx.ModelProto) -> onnx.ValueInfoProto:
    inputs = inputs_of(proto)
    if len(inputs) != 1:
        raise ModelError(f"the model must have one input, it has {len(inputs)}: {[i.name for i in inputs]}")
    return inputs[0]


def inputs_of(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """What a caller gives: tensors (batch, ...) of types the compiler has, which are not stored in the model."""
    stored = {t.name for t in proto.graph.initializer}
    inputs = [i for i in proto.graph.input if i.name not in stored]
    for info in inputs:
        tensor = info.type.tensor_type
        if tensor.elem_type not in INPUT_TYPES or not tensor.HasField("shape") or not tensor.shape.dim:
            kind = _dtype_name(tensor.elem_type) if tensor.elem_type else "no tensor"
            raise ModelError(f"input {info.name!r} must be float32 or integer (batch, ...) of known rank, it is {kind}")
    return inputs


def _dtype_name(number: int) -> str:
    names = {v: k for k, v in onnx.TensorProto.DataType.items()}
    return str(names.get(number, f"of the unknown type {number}"))


def input_leaf(info: onnx.ValueInfoProto, batch: int, name: str = "x") -> Value:
    """A batch column for an input of a model."""
    dims = info.type.tensor_type.shape.dim
    for axis, dim in enumerate(dims):
        if axis and dim.dim_value < 1:
            raise ModelError(
                f"dimension {axis} of input {info.name!r} is {dim.dim_param or dim.dim_value!r}; only the batch may"
                " vary, export the model with the other sizes fixed"
            )
    try:
        return g.leaf(name, INPUT_TYPES[info.type.tensor_type.elem_type], (batch, *(d.dim_value for d in dims[1:])))
    except CompileError as error:
        raise ModelError(f"input {info.name!r}: {error}") from error


def first_output(proto: onnx.ModelProto, terms: Mapping[str, Term]) -> Value:
    """The value of output 0, which must not be known already."""
    name = proto.graph.output[0].name if proto.graph.output else ""
    found = terms.get(name)
    if not isinstance(found, Value):
        raise ModelError(f"output {name!r} of the model does not depend on its input")
    return found


def _last_op(proto: onnx.ModelProto) -> str:
    """Type of the node that makes output 0."""
    makers = {name: node.op_type for node in proto.graph.node for name in node.output}
    return str(makers.get(proto.graph.output[0].name, ""))


def convert_node(node: onnx.NodeProto, reading: Reading, terms: dict[str, Term], notes: list[str]) -> None:
    """Add the outputs of one node to `terms`."""
    label = node.name or (node.output[0] if node.output else "")
    op = _qualified(node)
    if op not in SUPPORTED:
        raise UnsupportedOp(op, label, SUPPORTED)
    try:
        told = KNOWN_OPERANDS.get(node.op_type, ())
        inputs = [_operand(name, reading, terms, notes, told=i in told) for i, name in enumerate(node.input)]
        made = _result(node, label, inputs, reading, notes)
        terms.update(zip(node.output, made if isinstance(made, Sequence) else [made], strict=False))
    except UnsupportedOp:
        raise
    except BROKEN as error:
        hint = _other_batch(reading)
        raise ModelError(f"node {label!r} ({op}): {str(error) or type(error).__name__}{hint}") from error


def _other_batch(reading: Reading) -> str:
    """What may be wrong where a model is read for other batches than it was exported for."""
    if reading.fixed_batch in (None, reading.batch):
        return ""
    return (
        f" (the model was exported for batches of {reading.fixed_batch} and is read for {reading.batch}: export it"
        " with a first dimension that may vary)"
    )


def _qualified(node: onnx.NodeProto) -> str:
    """The operator's type, with its domain where that is not the default one."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def _result(
    node: onnx.NodeProto, label: str, inputs: list[Term | None], reading: Reading, notes: list[str]
) -> Term | Sequence[Term]:
    if node.op_type == "Concat":
        inputs = not_empty(node, inputs)
    if node.op_type == "Resize":  # opset 11 says with an empty region or empty scales that there are none
        inputs = [t if i == 0 or not is_empty(t) else None for i, t in enumerate(inputs)]
    if any(is_empty(t) for t in inputs):
        return list(with_empty(node, inputs, reading.opset))
    arrays = [t for t in inputs if isinstance(t, np.ndarray)]
    small = _folded_elements(node, arrays) <= MAX_FOLDED_ELEMENTS
    if node.op_type in FOLDABLE and arrays and len(arrays) == sum(t is not None for t in inputs) and small:
        return evaluate(node, arrays, reading.opset)[0]
    attrs = {a.name: _attribute(a) for a in node.attribute}
    outputs = 1 + sum(name in reading.read for name in node.output[1:] if name)
    view = ModelNode(
        node.op_type,
        label,
        attrs,
        outputs,
        reading.opset,
        reading.batch,
        reading.fixed_batch,
        notes,
        reading.training,
        len(node.output),
    )
    return CONVERTERS[_qualified(node)](view, inputs)


def _attribute(attribute: onnx.AttributeProto) -> Any:
    """An attribute as a Python value: text decoded, tensors as arrays."""
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list) and value and isinstance(value[0], bytes):
        return [text.decode() for text in value]
    return _array(value) if isinstance(value, onnx.TensorProto) else value


def _term(name: str, reading: Reading, terms: dict[str, Term], notes: list[str]) -> Term | None:
    """What a name stands for; an initializer becomes a leaf or an array when it is first read."""
    if not name:
        return None
    if name not in terms:
        terms[name] = _initializer(name, reading, notes)
    return terms[name]


def _operand(name: str, reading: Reading, terms: dict[str, Term], notes: list[str], *, told: bool) -> Term | None:
    """As _term, but an initializer that tells the operator what to do is an array, not a parameter."""
    if told and name and name not in terms:
        return _array(reading.initializers[name])
    return _term(name, reading, terms, notes)


def _initializer(name: str, reading: Reading, notes: list[str]) -> Term:
    tensor = reading.initializers[name]
    if tensor.data_type in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE):
        kind = _dtype_name(tensor.data_type)
        raise ModelError(f"initializer {name!r} is {kind}; training is in float32, convert the model first")
    array = _array(tensor)
    if tensor.data_type != onnx.TensorProto.FLOAT or 0 in tensor.dims:
        return array
    reason = constant_because(name, array, reading.origins)
    if reason is None:
        return g.leaf(name, "float32", tensor.dims)
    if reason:
        notes.append(f"initializer {name!r} {reason} and is taken as a constant")
    return array


def _array(tensor: onnx.TensorProto) -> Array:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise ModelError(f"tensor {tensor.name!r} {ELSEWHERE}")
    return np.asarray(onnx.numpy_helper.to_array(tensor))


def _folded_elements(node: onnx.NodeProto, inputs: Sequence[Array]) -> int:
    """Elements that computing a node on known arrays would touch; some operators make many of few."""
    given = sum(a.size for a in inputs)
    if node.op_type == "ConstantOfShape":
        return given + math.prod(int(d) for d in inputs[0].ravel())
    if node.op_type in ("Expand", "Tile"):
        return given + inputs[0].size * math.prod(max(int(d), 1) for d in inputs[-1].ravel())
    return given
