"""Settings of operators that come from a model: what is too large, empty or not read is refused before it is built."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper
import pytest
from forward import run_on_engine

import models.compiler.graph as g
from models.compiler import ModelError, import_onnx
from models.compiler.autodiff import gradients
from models.compiler.onnx_import import SUPPORTED

HUGE = 10**12
INT, FLOAT = np.int64, np.float32


def one_node(op: str, shape: tuple[int, ...], stored: list[Any], attrs: dict[str, Any]) -> bytes:
    """A model of one operator of its input and stored operands; None leaves an operand out."""
    names = ["" if a is None else f"s{i}" for i, a in enumerate(stored)]
    tensors = [onnx.numpy_helper.from_array(np.asarray(a), n) for a, n in zip(stored, names, strict=True) if n]
    kind = onnx.TensorProto.FLOAT
    given = oh.make_tensor_value_info("in", kind, ["N", *shape[1:]])
    graph = oh.make_graph(
        [oh.make_node(op, ["in", *names], ["out"], **attrs)],
        "g",
        [given],
        [oh.make_tensor_value_info("out", kind, ["?"])],
    )
    graph.initializer.extend(tensors)
    return bytes(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 18)], ir_version=8).SerializeToString())


ROWS = np.zeros((2, 1), INT)
GRU = [np.zeros((1, 6, 3), FLOAT), np.zeros((1, 6, 2), FLOAT)]
# operator, shape of the input, stored operands, attributes, what the error says
REFUSED: list[tuple[str, tuple[int, ...], list[Any], dict[str, Any], str]] = [
    ("Tile", (2, 3), [np.array([1, HUGE], INT)], {}, "at most 16777216"),
    ("Tile", (2, 3), [np.array([1, 0], INT)], {}, "1 or more"),
    ("Expand", (2, 3), [np.array([HUGE, 2, 3], INT)], {}, "more than"),
    ("OneHot", (2, 3), [np.array([HUGE], INT), np.array([0, 1], FLOAT)], {}, "depth"),
    ("Resize", (2, 1, 3), [None, np.array([1, 1, 1e9], FLOAT)], {}, "1 to 1048576"),
    ("Resize", (2, 1, 3000), [None, np.array([1, 1, 9], FLOAT)], {"mode": "cubic"}, "more than 4194304"),
    ("Resize", (2, 1, 3), [None, np.array([1, 1, 0.1], FLOAT)], {}, "would have 0 places"),
    ("GRU", (5000, 1, 3), GRU, {"hidden_size": 2}, "longer than 2048"),
    ("GRU", (4, 1, 3), [*GRU, None, np.array([3], np.int32)], {"hidden_size": 2}, r"sequence_lens \[3\] .* pad them"),
    ("LSTM", (4, 1, 3), [g_[0] for g_ in GRU], {"hidden_size": 2}, "three dimensions"),
    ("RNN", (4, 1, 3), GRU, {"hidden_size": 2, "activations": ["Elu"]}, "'Elu'"),
    ("Einsum", (2, 3), [], {"equation": "ij,jk->ik"}, "not one for 1 operands"),
    ("Einsum", (2, 3), [], {"equation": "ij->ijk"}, "one that no operand has"),
    ("Einsum", (2, 3), [], {"equation": "ijk->i"}, "does not name 2 axes"),
    ("Einsum", (2, 3), [], {"equation": "i9->i"}, "malformed"),
    ("Einsum", (2, 3), [np.zeros((4, 2), FLOAT)], {"equation": "ij,jk->ik"}, "sizes"),
    ("GatherND", (2, 3), [np.zeros((2, 3), INT)], {}, "do not fit data"),
    ("GatherND", (2, 3), [ROWS], {"batch_dims": 2}, "do not fit data"),
    ("ScatterND", (2, 3), [ROWS, np.zeros((2, 2), FLOAT)], {}, "do not fit data"),
    ("ScatterND", (2, 3), [ROWS, np.zeros((2, 3), FLOAT)], {"reduction": "mul"}, "none and add are"),
    ("ScatterElements", (2, 3), [np.zeros((2, 4), INT), np.zeros((2, 4), FLOAT)], {"axis": 0}, "larger than the data"),
    ("ScatterElements", (2, 3), [np.zeros((2, 2), FLOAT), np.zeros((2, 2), FLOAT)], {}, "whole numbers are needed"),
    ("Concat", (2, 3), [np.zeros((4, 0), FLOAT)], {"axis": 1}, "cannot be joined"),
    ("Gemm", (2, 3), [np.zeros((3, 0), FLOAT)], {}, "without elements is read by"),
    ("MatMul", (2, 3), [np.zeros((0, 5), FLOAT)], {}, "Issues with types"),
    ("Where", (2, 3), [np.zeros((0, 1 << 21), FLOAT), np.zeros(1, FLOAT)], {}, "multiply to 1048576"),
    ("Split", (2, 3), [np.array([2, 0], INT)], {"axis": 1}, "do not make up"),
    ("Reshape", (2, 3), [np.array([0, 6], INT)], {"allowzero": 1}, "cannot be reshaped"),
    ("AveragePool", (2, 1, 2, 2, 2), [], {"kernel_shape": [9, 1, 1]}, "padding alone|empty"),
    ("NegativeLogLikelihoodLoss", (2, 3), [np.zeros((2, 3), INT)], {}, r"labels \[2, 3\] do not fit"),
    ("Trilu", (2, 3), [np.zeros(2, INT)], {}, "array of size 1"),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda c: f"{c[0]}-{c[4]}")
def test_a_setting_that_cannot_be_is_refused_with_its_node(case: tuple[Any, ...]) -> None:
    op, shape, stored, attrs, what = case
    data = one_node(op, shape, stored, attrs)
    with pytest.raises(ModelError, match=rf"node 'out' \({op}\): .*({what})|initializer .*({what})"):
        import_onnx(data, batch=shape[0])


def test_parts_without_elements_change_neither_result_nor_gradient() -> None:
    """Slices beyond the end, pieces of size 0 and what follows from them, joined to the rest."""
    nodes = [
        oh.make_node("Slice", ["in", "past", "end", "axis"], ["nothing"]),
        oh.make_node("Relu", ["nothing"], ["still nothing"]),
        oh.make_node("Concat", ["still nothing", "in", "nothing"], ["joined"], axis=1),
        oh.make_node("Split", ["joined", "sizes"], ["none", "left", "right"], axis=1),
        oh.make_node("ReduceSum", ["none"], ["zero"], keepdims=0),
        oh.make_node("Mul", ["left", "right"], ["product"]),
        oh.make_node("Add", ["product", "zero"], ["out"]),
    ]
    kind = onnx.TensorProto.FLOAT
    ends = [oh.make_tensor_value_info("in", kind, ["N", 6]), oh.make_tensor_value_info("out", kind, ["N", 3])]
    stored = {"past": [6], "end": [9], "axis": [1], "sizes": [0, 3, 3]}
    tensors = [onnx.numpy_helper.from_array(np.array(value, INT), name) for name, value in stored.items()]
    proto = oh.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    model = oh.make_model(proto, opset_imports=[oh.make_opsetid("", 18)], ir_version=8)
    graph = import_onnx(bytes(model.SerializeToString()), batch=2)
    x = np.arange(1.0, 13.0, dtype=FLOAT).reshape(2, 6)
    got, d_x = run_on_engine([graph.outputs[0], *gradients(g.sum(graph.outputs[0]), graph.inputs)], {"x": x})
    np.testing.assert_array_equal(got, x[:, :3] * x[:, 3:])
    np.testing.assert_array_equal(d_x, np.concatenate([x[:, 3:], x[:, :3]], 1))


def test_a_model_of_which_nothing_is_left_is_refused() -> None:
    data = one_node("Slice", (2, 3), [np.array([3], INT), np.array([9], INT), np.array([1], INT)], {})
    with pytest.raises(ModelError, match="output 'out' of the model does not depend on its input"):
        import_onnx(data, batch=2)


@pytest.mark.parametrize("op", ["ScatterElements", "ScatterND"])
def test_of_updates_of_one_known_place_the_last_one_counts(op: str) -> None:
    shape = (1, 5) if op == "ScatterElements" else (5, 1)
    index = np.array([3, 0, 3, -2], INT).reshape((1, 4) if op == "ScatterElements" else (4, 1))
    updates = np.arange(1.0, 5.0, dtype=FLOAT).reshape(index.shape)
    graph = import_onnx(one_node(op, shape, [index, updates], {"axis": 1} if shape[0] == 1 else {}), batch=shape[0])
    loss = g.sum(graph.outputs[0] * g.constant(np.arange(5.0).reshape(shape)))
    x = np.full(shape, 9.0, FLOAT)
    stored = {p.name: updates for p in graph.parameters}
    got = run_on_engine([graph.outputs[0], *gradients(loss, [*graph.inputs, *graph.parameters])], {"x": x, **stored})
    np.testing.assert_array_equal(got[0].ravel(), [2, 9, 9, 4, 9])
    np.testing.assert_array_equal(got[1].ravel(), [0, 1, 2, 0, 4])
    np.testing.assert_array_equal(got[2].ravel(), [0, 0, 0, 3])


def test_the_documentation_lists_the_operators_that_are_read() -> None:
    text = (Path(__file__).parents[2] / "docs" / "engine.md").read_text()
    section = text.split("## ONNX operators")[1].split("\n## ")[0]
    assert set(re.findall(r"`((?:edge_runtime\.)?[A-Z]\w*)`", section)) == SUPPORTED
