"""Outputs that models have beside the one that is trained, and what is said where a model cannot be trained."""

from collections.abc import Sequence

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper
import pytest

from models.compiler import ModelError, compile_training, import_onnx
from models.compiler.evaluate import evaluate

FLOAT = onnx.TensorProto.FLOAT
INT64 = onnx.TensorProto.INT64


def model(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str], **stored: np.ndarray) -> bytes:
    """A model of input "in" (N, 1, 4, 4), opset 13."""
    x = oh.make_tensor_value_info("in", FLOAT, ["N", 1, 4, 4])
    results = [oh.make_tensor_value_info(name, FLOAT, ["N", None]) for name in outputs]
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = oh.make_graph(nodes, "test", [x], results, tensors)
    proto = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 13)], ir_version=8)
    return bytes(proto.SerializeToString())


def linear(source: str, target: str, weight: str) -> list[onnx.NodeProto]:
    return [
        oh.make_node("Flatten", [source], [f"{target}.rows"]),
        oh.make_node("Gemm", [f"{target}.rows", weight], [target]),
    ]


def test_a_dropout_that_does_not_train_passes_its_input_and_a_mask_of_ones() -> None:
    # torch writes the mask when it exports a model in training mode.
    nodes = [
        oh.make_node("Dropout", ["in"], ["kept", "mask"], name="drop"),
        oh.make_node("Cast", ["mask"], ["number"], to=FLOAT),
        oh.make_node("Mul", ["kept", "number"], ["both"]),
        *linear("both", "out", "w"),
    ]
    graph = import_onnx(model(nodes, ["out"], w=np.ones((16, 3), np.float32)), batch=2)
    assert graph.notes == ("Dropout 'drop' is left out: the model does not say that it trains",)
    x = np.arange(32, dtype=np.float32).reshape(2, 1, 4, 4)
    (out,) = evaluate(graph.outputs[:1], {graph.inputs[0].name: x, "w": np.ones((16, 3), np.float32)})
    np.testing.assert_array_equal(out, x.reshape(2, 16).sum(1, keepdims=True) * np.ones((2, 3)))


def test_pool_indices_that_the_caller_reads_are_refused() -> None:
    nodes = [
        oh.make_node("MaxPool", ["in"], ["pooled", "index"], name="pool", kernel_shape=[2, 2]),
        *linear("pooled", "out", "w"),
    ]
    data = model(nodes, ["out", "index"], w=np.ones((9, 3), np.float32))
    proto = onnx.load_model_from_string(data)
    proto.graph.output[1].CopyFrom(oh.make_tensor_value_info("index", INT64, ["N", 1, 3, 3]))
    with pytest.raises(ModelError, match=r"'pool' .*indices"):
        import_onnx(proto.SerializeToString(), batch=2)


def test_an_output_beside_the_first_is_noted_as_left_out() -> None:
    nodes = [*linear("in", "out", "w"), *linear("in", "other", "v")]
    data = model(nodes, ["out", "other"], w=np.ones((16, 3), np.float32), v=np.ones((16, 2), np.float32))
    report = compile_training(import_onnx(data, batch=2)).report
    assert report.trained == ("w",)
    assert report.notes == ("output 'other' is left out: the loss is of the first output",)


def test_one_logit_is_refused_with_what_to_do() -> None:
    data = model(linear("in", "out", "w"), ["out"], w=np.ones((16, 1), np.float32))
    with pytest.raises(ModelError, match="two classes need two outputs"):
        compile_training(import_onnx(data, batch=2))


def test_padding_as_torch_exports_it_is_read() -> None:
    # torch computes the pads with a Reshape and a Transpose of constants.
    nodes = [
        oh.make_node("Transpose", ["pads"], ["turned"], perm=[1, 0]),
        oh.make_node("Reshape", ["turned", "flat"], ["amounts"]),
        oh.make_node("Pad", ["in", "amounts"], ["padded"], name="border"),
        *linear("padded", "out", "w"),
    ]
    pads = np.array([[0, 0], [0, 0], [1, 1], [1, 1]], np.int64)
    data = model(nodes, ["out"], pads=pads, flat=np.array([-1], np.int64), w=np.ones((36, 3), np.float32))
    assert import_onnx(data, batch=2).outputs[0].shape == (2, 3)
