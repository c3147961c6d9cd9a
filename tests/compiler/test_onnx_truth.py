"""Operators whose node tests begin with truth values or whole numbers: inside a model, against ONNX Runtime."""

from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper
import onnx.shape_inference
import onnxruntime
import pytest
from forward import run_on_engine
from numpy.typing import NDArray

from models.compiler import ModelError, import_onnx, weights_of, with_weights

SHAPE = (3, 4)
RNG = np.random.default_rng(21)
STORED: dict[str, NDArray[Any]] = {
    "other": RNG.normal(size=(3, 4)).astype(np.float32),
    "row": RNG.normal(size=(4,)).astype(np.float32),
    "axis": np.array(1, np.int64),
    "places": np.array([[3, 0], [1, -1], [2, 2]], np.int64),
    "rows": np.array([[2, 0], [-1, 1]], np.int64),
    "pads": np.array([2, 1, 1, 0], np.int64),
    "crop": np.array([-1, 0, 0, -2], np.int64),
    "table": RNG.normal(size=(5, 2)).astype(np.float32),
    "low": np.array(-0.4, np.float32),
    "repeats": np.array([2, 3], np.int64),
    "wide": np.array([2, 3, 4], np.int64),
    "k": np.array([2], np.int64),
    "second": np.array([1], np.int64),
}
FLOAT, INT64, BOOL = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.BOOL
Step = tuple[str, list[str], dict[str, Any]]
LESS: Step = ("Less", ["in", "other"], {})
GREATER: Step = ("GreaterOrEqual", ["in", "row"], {})
# Each step's result is named after its number; the last is the model's output.
CASES: dict[str, list[Step]] = {
    "where": [LESS, ("Where", ["0", "in", "row"], {})],
    "not": [LESS, ("Not", ["0"], {}), ("Cast", ["1"], {"to": FLOAT})],
    "and": [LESS, GREATER, ("And", ["0", "1"], {}), ("Cast", ["2"], {"to": FLOAT})],
    "or": [LESS, GREATER, ("Or", ["0", "1"], {}), ("Cast", ["2"], {"to": FLOAT})],
    "xor": [LESS, GREATER, ("Xor", ["0", "1"], {}), ("Where", ["2", "other", "in"], {})],
    "equal": [("Round", ["in"], {}), ("Equal", ["0", "0"], {}), ("Cast", ["1"], {"to": FLOAT})],
    "cast": [("Mul", ["in", "row"], {}), ("Cast", ["0"], {"to": INT64}), ("Cast", ["1"], {"to": FLOAT})],
    "cast-bool": [("Relu", ["in"], {}), ("Cast", ["0"], {"to": BOOL}), ("Cast", ["1"], {"to": FLOAT})],
    "cumsum": [("CumSum", ["in", "axis"], {"exclusive": 1, "reverse": 1})],
    "gather-elements": [("GatherElements", ["in", "places"], {"axis": 1})],
    "gather": [("Gather", ["in", "rows"], {"axis": 0})],
    "gather-computed": [("ArgMax", ["in"], {"axis": 1, "keepdims": 0}), ("Gather", ["table", "0"], {})],
    "pad-reflect": [("Pad", ["in", "pads"], {"mode": "reflect"})],
    "pad-edge": [("Pad", ["in", "pads"], {"mode": "edge"})],
    "pad-value": [("Pad", ["in", "pads", "low"], {})],
    "pad-crop": [("Pad", ["in", "crop"], {})],
    "clip": [("Clip", ["in", "low"], {})],
    "clip-high": [("Clip", ["in", "", "low"], {})],
    "tile": [("Tile", ["in", "repeats"], {})],
    "expand": [("Unsqueeze", ["in", "second"], {}), ("Expand", ["0", "repeats_in"], {})],
    "topk": [("TopK", ["in", "k"], {"axis": 1, "largest": 0})],
    "xor-not": [LESS, ("Not", ["0"], {}), ("Xor", ["0", "1"], {}), ("Cast", ["2"], {"to": FLOAT})],
}
STORED["repeats_in"] = np.array([3, 5, 4], np.int64)


def model(steps: list[Step]) -> bytes:
    nodes = [oh.make_node(op, inputs, [str(i)], **attrs) for i, (op, inputs, attrs) in enumerate(steps)]
    if nodes[-1].op_type == "TopK":
        nodes[-1].output.append("index")
    names = {name for node in nodes for name in node.input}
    tensors = [onnx.numpy_helper.from_array(a, n) for n, a in STORED.items() if n in names]
    x = oh.make_tensor_value_info("in", FLOAT, SHAPE)
    out = oh.make_tensor_value_info(nodes[-1].output[0], FLOAT, None)
    graph = oh.make_graph(nodes, "test", [x], [out], tensors)
    proto = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 18)], ir_version=8)
    return bytes(onnx.shape_inference.infer_shapes(proto).SerializeToString())


@pytest.mark.parametrize("case", CASES)
def test_operator_equals_onnx_runtime(case: str) -> None:
    data = model(CASES[case])
    x = (RNG.normal(size=SHAPE) * 2).astype(np.float32)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (want,) = session.run(None, {"in": x})
    graph = import_onnx(data, batch=SHAPE[0])
    (got,) = run_on_engine(graph.outputs, {**STORED, "x": x})
    np.testing.assert_allclose(got, want, rtol=1e-6)


def batch_norm_twice(*, shared: bool) -> bytes:
    """Two layers in training mode, with running statistics of their own or the same ones."""
    nodes, tensors = [], []
    for i in range(2):
        names = [f"{n}{0 if shared and n in ('mean', 'var') else i}" for n in ("gain", "bias", "mean", "var")]
        outputs = [f"y{i}", f"new_mean{i}", f"new_var{i}"]
        nodes.append(oh.make_node("BatchNormalization", [f"y{i - 1}" if i else "in", *names], outputs, training_mode=1))
        tensors += [onnx.numpy_helper.from_array(np.full(4, 0.5 + i, np.float32), n) for n in names]
    unique = {t.name: t for t in tensors}
    x = oh.make_tensor_value_info("in", FLOAT, ["N", 4])
    out = oh.make_tensor_value_info("y1", FLOAT, ["N", 4])
    graph = oh.make_graph(nodes, "test", [x], [out], list(unique.values()))
    return bytes(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 18)], ir_version=8).SerializeToString())


def test_running_statistics_of_two_layers_must_not_be_one_tensor() -> None:
    with pytest.raises(ModelError, match="'mean0' are another layer's too: export the model in training mode"):
        import_onnx(batch_norm_twice(shared=True), batch=3)
    assert len(import_onnx(batch_norm_twice(shared=False), batch=3).updates) == 4


def test_a_trained_model_comes_back_in_inference_form() -> None:
    data = batch_norm_twice(shared=False)
    back = with_weights(data, weights_of(data))
    x = RNG.normal(size=(3, 4)).astype(np.float32)
    (got,) = onnxruntime.InferenceSession(back, providers=["CPUExecutionProvider"]).run(None, {"in": x})
    first = (x - 0.5) / np.sqrt(0.5 + 1e-5) * 0.5 + 0.5
    np.testing.assert_allclose(got, (first - 1.5) / np.sqrt(1.5 + 1e-5) * 1.5 + 1.5, rtol=1e-5)
