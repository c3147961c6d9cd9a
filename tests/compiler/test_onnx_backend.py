"""The onnx package's own node tests, through the importer and the engine.

Every test of an operator the compiler reads is run, or left out for a reason that is written here. `pytest -s` prints
the table of what was run.
"""

import re
import warnings
from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from forward import run_on_engine
from numpy.typing import NDArray

import models.compiler.graph as g
from models.compiler import import_onnx
from models.compiler.onnx_import import CONVERTERS, ROWS, Reading, convert_node
from models.compiler.onnx_nodes import Term, Training

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the cases compute overflows on purpose
    from onnx.backend.test.case.node import collect_testcases
    from onnx.backend.test.case.test_case import TestCase

Array = NDArray[Any]
FLOATS = (onnx.TensorProto.FLOAT,)
# Left out by name: what the compiler says no to, with its reason. A pattern that matches nothing fails.
EXCLUDED = {
    r"_expanded": "a function's expansion tests other operators on types of shape arithmetic",
    r"^test_(shape|size)": "a shape is known when the model is read: nothing is left to run",
    r"averagepool_2d_ceil_last_window_starts_on_pad": "a window of padding alone has no mean",
    r"mod_float_edge_cases": "remainders of infinities and by zero",
    r"NCd1d2d3d4d5": "more than six dimensions",
    r"scatter.*(mul|max|min)": "a scatter that multiplies or takes extremes",
    r"^test_bernoulli|training_dropout(_default)?(_mask)?$": "numbers that follow from another generator",
    r"^test_resize.*tf_crop": "Resize of a crop",
    r"empty_set_bool": "the greatest of no truth values is false, of no numbers it is -infinity",
}
# Operators of which only the first output is read: masks, indices, statistics that nothing in training needs.
FIRST_OUTPUT = ("LayerNormalization", "MaxPool")


# A plan computes in float32. Truth values, doubles and whole numbers that float32 holds are given to these as float32:
# what they do to numbers is the same. Division of whole numbers is something else.
OF_ANY_NUMBERS = frozenset(
    [
        "Add",
        "And",
        "Clip",
        "CumSum",
        "Einsum",
        "Equal",
        "GatherND",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "Max",
        "MaxPool",
        "Min",
        "Mod",
        "Mul",
        "Not",
        "OneHot",
        "Or",
        "Pad",
        "Pow",
        "ReduceLogSumExp",
        "ReduceMax",
        "ReduceMin",
        "Sub",
        "TopK",
        "Trilu",
        "Where",
        "Xor",
    ]
)
TOLD = ("CumSum", "GatherND", "Pad", "TopK", "Trilu")  # whose other operands are settings


def held_by_float32(array: Array) -> bool:
    """Doubles are rounded; whole numbers must be exact."""
    if array.dtype.kind in "iu":
        return array.size == 0 or max(int(array.max()), -int(array.min())) <= 1 << 24
    return array.dtype.kind in "bf"


def in_float32(case: TestCase) -> TestCase:
    """The same test with whatever has the type of the first input stated as float32; itself where that is its type."""
    graph, (inputs, outputs) = case.model.graph, case.data_sets[0]
    kind = graph.input[0].type.tensor_type.elem_type if graph.input else onnx.TensorProto.FLOAT
    if kind == onnx.TensorProto.FLOAT or graph.node[0].op_type not in OF_ANY_NUMBERS or inputs[0] is None:
        return case
    if not all(held_by_float32(np.asarray(a)) for a in (*inputs, *outputs) if isinstance(a, np.ndarray)):
        return case
    model = onnx.ModelProto.FromString(case.model.SerializeToString())
    wide: set[int] = set()
    if graph.node[0].op_type == "Where":
        wide |= {1, 2}  # what is chosen from has a type of its own
    for i, info in enumerate(model.graph.input):
        if info.type.tensor_type.elem_type == kind and (i == 0 or graph.node[0].op_type not in TOLD):
            info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
            wide.add(i)
    given = [a.astype(np.float32) if i in wide else a for i, a in enumerate(inputs)]
    results = [a if a.dtype == np.int64 and i else a.astype(np.float32) for i, a in enumerate(outputs)]
    return replace(case, model=model, data_sets=[(given, results)])


def floating(kind: onnx.TypeProto) -> bool:
    return kind.tensor_type.elem_type in FLOATS


def has_empty(case: TestCase) -> bool:
    """Whether what is read or made has no elements; empty settings, of whole numbers, do not count."""
    inputs, outputs = case.data_sets[0]
    return bool(inputs[0].size == 0 or any(a.size == 0 for a in outputs))


def reason_to_leave_out(case: TestCase) -> str:  # noqa: PLR0911 - a table of rules, one line each
    """Why a test is not run; empty where it is."""
    graph = case.model.graph
    inputs, outputs = case.data_sets[0]
    for pattern, why in EXCLUDED.items():
        if re.search(pattern, case.name):
            return why
    arrays = [a for a in (*inputs, *outputs) if a is not None]
    if not all(isinstance(a, np.ndarray | np.generic) for a in arrays):
        return "sequences, optionals, and casts of numbers of 8 bits or fewer"
    if case.model.opset_import[0].version < 7:
        return "an opset before 7"
    if not graph.input or not floating(graph.input[0].type) or inputs[0] is None:
        return "divisions of whole numbers, strings, 16-bit floats, and operators of shape arithmetic"
    if inputs[0].ndim == 0:
        return "the first input has no batch"
    if has_empty(case):
        return "empty tensors, which are known when a model is read: below"
    if any(a.dtype not in (np.float32, np.int64, np.int32, np.bool_) for a in outputs):
        return "results of other types"
    return ""


@cache
def cases() -> dict[str, TestCase]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [c for c in collect_testcases(None) if c.kind == "node" and len(c.model.graph.node) == 1]
    supported = [c for c in found if c.model.graph.node[0].op_type in CONVERTERS]
    return {c.name: in_float32(c) for c in supported if c.model.graph.node[0].domain in ("", "ai.onnx")}


def with_one_input(case: TestCase, output: int) -> bytes:
    """The model with all inputs but the first stored in it, and one output."""
    proto = onnx.ModelProto()
    proto.CopyFrom(case.model)
    values = case.data_sets[0][0]
    proto.ir_version = max(proto.ir_version, 4)  # the first in which an initializer is no input
    (node,) = proto.graph.node
    stored = {info.name: f"stored {i}" for i, info in enumerate(proto.graph.input) if i}
    for info, value in list(zip(proto.graph.input, values, strict=True))[1:]:
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), stored[info.name]))
    node.input[:] = [stored.get(name, name) for name in node.input]
    kept = [proto.graph.input[0]], [proto.graph.output[output]]
    if node.op_type in FIRST_OUTPUT:
        del node.output[1:]
    for field, items in zip((proto.graph.input, proto.graph.output), kept, strict=True):
        copies = [onnx.ValueInfoProto.FromString(i.SerializeToString()) for i in items]
        del field[:]
        field.extend(copies)
    return bytes(proto.SerializeToString())


RUN = [name for name, case in cases().items() if not reason_to_leave_out(case)]


@pytest.mark.parametrize("name", RUN)
def test_node_test_of_the_onnx_package(name: str) -> None:
    case = cases()[name]
    inputs, outputs = case.data_sets[0]
    x = inputs[0]
    first_alone = case.model.graph.node[0].op_type in FIRST_OUTPUT
    for i, want in enumerate(outputs[:1] if first_alone else outputs):
        data = with_one_input(case, i)
        graph = import_onnx(data, batch=x.shape[0], training=False)
        stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load_from_string(data).graph.initializer}
        given = {**stored, "x": x, ROWS: np.ones(x.shape[0], np.float32)}
        (got,) = run_on_engine(graph.outputs, given)
        assert got.shape == np.shape(want)
        np.testing.assert_allclose(got, want.astype(got.dtype), rtol=max(case.rtol, 1e-5), atol=max(case.atol, 2e-6))


EMPTY = [name for name, case in cases().items() if reason_to_leave_out(case).startswith("empty tensors")]


@pytest.mark.parametrize("name", EMPTY)
def test_node_test_without_elements_is_computed_when_a_model_is_read(name: str) -> None:
    case = cases()[name]
    (node,) = case.model.graph.node
    inputs, wanted = case.data_sets[0]
    terms: dict[str, Term] = dict(zip([i.name for i in case.model.graph.input], inputs, strict=True))
    if inputs[0].size:
        terms[node.input[0]] = g.leaf("x", "float32", inputs[0].shape)
    reading = Reading(
        case.model.opset_import[0].version,
        1,
        None,
        {},
        Training(batch_statistics=False, rows=g.leaf(ROWS, "float32", (1,))),
        frozenset(node.output),
    )
    convert_node(node, reading, terms, [])
    for output, want in zip(node.output, wanted, strict=True):
        np.testing.assert_array_equal(terms[output], want)


def test_every_reason_to_leave_a_test_out_applies_to_one() -> None:
    reasons = Counter(reason_to_leave_out(c) or "run" for c in cases().values())
    ran = Counter(cases()[name].model.graph.node[0].op_type for name in RUN)
    print("".join(f"\n{count:5} {reason}" for reason, count in reasons.most_common()))
    print(f"{len(ran)} operators: " + ", ".join(f"{op} {n}" for op, n in sorted(ran.items())))
    assert set(EXCLUDED.values()) <= set(reasons)
