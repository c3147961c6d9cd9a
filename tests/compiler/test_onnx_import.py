"""ONNX in: every operator against ONNX Runtime, and an error for each thing that is not read."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper
import onnx.shape_inference
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.compiler import (
    ModelError,
    UnsupportedOp,
    compile_training,
    import_onnx,
    onnx_import,
    weights_of,
    with_weights,
)
from models.compiler.evaluate import evaluate
from models.compiler.simplify import simplify
from models.zoo import build

FLOAT = onnx.TensorProto.FLOAT
Array = NDArray[Any]


def model(
    nodes: Sequence[onnx.NodeProto],
    stored: dict[str, Array],
    shape: Sequence[int | str | None],
    *,
    opset: int = 17,
    output: str = "out",
    elem_type: int = FLOAT,
) -> bytes:
    x = oh.make_tensor_value_info("in", elem_type, shape)
    out = oh.make_tensor_value_info(output, FLOAT, None)
    tensors = [onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in stored.items()]
    graph = oh.make_graph(nodes, "test", [x], [out], tensors)
    proto = oh.make_model(graph, opset_imports=[oh.make_opsetid("", opset)], ir_version=8)
    inferred = onnx.shape_inference.infer_shapes(proto)
    kind = inferred.graph.output[0].type.tensor_type
    if not kind.HasField("shape"):
        kind.shape.dim.add().dim_param = "unknown"
    return bytes(inferred.SerializeToString())


def assert_equals_onnxruntime(data: bytes, shape: tuple[int, ...]) -> None:
    """The imported graph and its simplified form compute what ONNX Runtime does."""
    x = np.random.default_rng(11).normal(size=shape).astype(np.float32)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"in": x})
    graph = import_onnx(data, batch=shape[0])
    given_ = {"x": x, **weights_of(data)}
    for output in (graph.outputs[0], simplify(graph.outputs)[0]):
        (ours,) = evaluate([output], given_)
        assert ours.shape == expected.shape
        np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6 * max(1.0, float(np.abs(expected).max())))


def weights(*shape: int) -> Array:
    return np.random.default_rng(math.prod(shape)).normal(size=shape).astype(np.float32)


NODE_CASES: dict[str, tuple[str, dict[str, Any], list[Array], tuple[int, ...]]] = {
    "gemm": ("Gemm", {"alpha": 0.7, "beta": 1.6, "transB": 1}, [weights(5, 4), weights(5)], (3, 4)),
    "gemm-column": ("Gemm", {"transA": 1}, [weights(3, 5), weights(4, 1)], (3, 4)),
    "gemm-row": ("Gemm", {}, [weights(4, 5), weights(1, 5)], (3, 4)),
    "gemm-full": ("Gemm", {"beta": 0.5}, [weights(4, 5), weights(3, 5)], (3, 4)),
    "gemm-without-c": ("Gemm", {"alpha": 2.5}, [weights(4, 5)], (3, 4)),
    "matmul-stack": ("MatMul", {}, [weights(4, 5)], (2, 3, 4)),
    "add": ("Add", {}, [weights(4, 1)], (3, 4, 5)),
    "sub": ("Sub", {}, [weights(3, 1, 5)], (3, 4, 5)),
    "mul": ("Mul", {}, [weights(5)], (3, 4, 5)),
    "relu": ("Relu", {}, [], (3, 4)),
    "identity": ("Identity", {}, [], (3, 4)),
    "dropout": ("Dropout", {}, [], (3, 4)),
    "flatten": ("Flatten", {}, [], (2, 3, 4)),
    "flatten-axis": ("Flatten", {"axis": -1}, [], (2, 3, 4)),
    "flatten-0": ("Flatten", {"axis": 0}, [], (2, 3, 4)),
    "transpose": ("Transpose", {"perm": [0, 2, 1]}, [], (2, 3, 4)),
    "transpose-reversed": ("Transpose", {}, [], (2, 3, 4)),
    "global-average": ("GlobalAveragePool", {}, [], (2, 3, 4, 5)),
    "global-average-1d": ("GlobalAveragePool", {}, [], (2, 3, 7)),
    "global-max": ("GlobalMaxPool", {}, [], (2, 3, 4, 5)),
    "reduce-mean": ("ReduceMean", {"axes": [2, -1], "keepdims": 0}, [], (2, 3, 4, 5)),
    "reduce-mean-all": ("ReduceMean", {}, [], (2, 3, 4)),
    "reshape": ("Reshape", {}, [np.array([0, -1, 2], np.int64)], (2, 3, 4)),
    "reduce-sum": ("ReduceSum", {"keepdims": 0}, [np.array([1], np.int64)], (2, 3, 4)),
    "reduce-sum-nothing": ("ReduceSum", {"noop_with_empty_axes": 1}, [], (2, 3, 4)),
    "squeeze": ("Squeeze", {}, [np.array([-2], np.int64)], (2, 3, 1, 4)),
    "squeeze-all": ("Squeeze", {}, [], (2, 1, 3, 1)),
    "unsqueeze": ("Unsqueeze", {}, [np.array([1, -1], np.int64)], (2, 3)),
    "conv": (
        "Conv",
        {"pads": [1, 0, 2, 1], "strides": [2, 3], "dilations": [2, 1]},
        [weights(4, 3, 2, 3), weights(4)],
        (2, 3, 7, 8),
    ),
    "conv-groups": ("Conv", {"group": 2, "kernel_shape": [3, 2]}, [weights(6, 2, 3, 2)], (2, 4, 6, 5)),
    "conv-1d": ("Conv", {"pads": [2, 0], "strides": [2], "dilations": [2]}, [weights(4, 3, 3), weights(4)], (2, 3, 11)),
    "max-pool": ("MaxPool", {"kernel_shape": [3, 2], "strides": [2, 3], "pads": [1, 0, 0, 1]}, [], (2, 2, 7, 8)),
    "max-pool-1d": ("MaxPool", {"kernel_shape": [3], "ceil_mode": 1, "strides": [2]}, [], (2, 2, 8)),
    "max-pool-dilated": ("MaxPool", {"kernel_shape": [2, 2], "dilations": [2, 3]}, [], (2, 2, 7, 8)),
    "average-pool-1d": ("AveragePool", {"kernel_shape": [3], "pads": [1, 1], "strides": [2]}, [], (2, 2, 8)),
}


@pytest.mark.parametrize("case", NODE_CASES)
def test_operator_equals_onnxruntime(case: str) -> None:
    op, attributes, arrays, shape = NODE_CASES[case]
    stored = {f"w{i}": a for i, a in enumerate(arrays)}
    node = oh.make_node(op, ["in", *stored], ["out"], name="node", **attributes)
    assert_equals_onnxruntime(model([node], stored, shape), shape)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(["MaxPool", "AveragePool", "Conv"]),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    extent=st.tuples(st.integers(4, 9), st.integers(4, 9)),
    pads=st.tuples(*[st.integers(0, 1)] * 4),
    auto_pad=st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]),
    ceil_mode=st.integers(0, 1),
    counted=st.integers(0, 1),
)
def test_windows_equal_onnxruntime(  # noqa: PLR0917 - one draw for each setting of a window
    kind: str,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    extent: tuple[int, int],
    pads: tuple[int, ...],
    auto_pad: str,
    ceil_mode: int,
    counted: int,
) -> None:
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "auto_pad": auto_pad}
    if auto_pad == "NOTSET":
        attributes["pads"] = [min(p, k - 1) for p, k in zip(pads, kernel * 2, strict=True)]
    if auto_pad.startswith("SAME"):  # ONNX Runtime refuses strides that step over elements here
        attributes["strides"] = [min(s, k) for s, k in zip(strides, kernel, strict=True)]
    stored = {"w": weights(2, 3, *kernel)} if kind == "Conv" else {}
    if kind != "Conv" and auto_pad == "NOTSET":
        attributes["ceil_mode"] = ceil_mode
    if kind == "AveragePool":
        attributes["count_include_pad"] = counted
    node = oh.make_node(kind, ["in", *stored], ["out"], **attributes)
    assert_equals_onnxruntime(model([node], stored, ["N", 3, *extent], opset=19), (2, 3, *extent))


def test_flattening_by_shape_arithmetic_is_folded() -> None:
    nodes = [
        oh.make_node("Shape", ["in"], ["shape"]),
        oh.make_node("Gather", ["shape", "zero"], ["n"], axis=0),
        oh.make_node("Constant", [], ["rest"], value=onnx.numpy_helper.from_array(np.array([-1], np.int64))),
        oh.make_node("Unsqueeze", ["n", "axes"], ["n1"]),
        oh.make_node("Concat", ["n1", "rest"], ["target"], axis=0),
        oh.make_node("Reshape", ["in", "target"], ["out"]),
    ]
    stored = {"zero": np.array(0, np.int64), "axes": np.array([0], np.int64)}
    assert_equals_onnxruntime(model(nodes, stored, ["N", 3, 4]), (5, 3, 4))


def test_slice_cast_and_arithmetic_on_shapes_are_folded() -> None:
    nodes = [
        oh.make_node("Shape", ["in"], ["shape"]),
        oh.make_node("Slice", ["shape", "one", "three"], ["tail"]),
        oh.make_node("ReduceProd", ["tail"], ["product"], keepdims=1),
        oh.make_node("Cast", ["product"], ["wide"], to=FLOAT),
        oh.make_node("Mul", ["wide", "half"], ["halved"]),
        oh.make_node("Cast", ["halved"], ["size"], to=onnx.TensorProto.INT64),
        oh.make_node("Concat", ["minus", "size"], ["target"], axis=0),
        oh.make_node("Reshape", ["in", "target"], ["out"]),
    ]
    stored = {
        "one": np.array([1], np.int64),
        "three": np.array([3], np.int64),
        "minus": np.array([-1], np.int64),
        "half": np.array(0.5, np.float32),
    }
    assert_equals_onnxruntime(model(nodes, stored, ["N", 3, 4]), (5, 3, 4))


def test_old_opsets_are_read() -> None:
    nodes = [
        oh.make_node("Unsqueeze", ["in"], ["a"], axes=[1]),
        oh.make_node("Squeeze", ["a"], ["b"], axes=[1]),
        oh.make_node("Dropout", ["b"], ["c"], ratio=0.3),
        oh.make_node("Gemm", ["c", "w", "b0"], ["out"]),
    ]
    stored = {"w": weights(4, 3), "b0": weights(3)}
    assert_equals_onnxruntime(model(nodes, stored, ["N", 4], opset=7), (5, 4))


@pytest.mark.parametrize(("first", "hint"), [(2, True), ("N", False), (3, False)])
def test_what_fails_in_a_model_of_another_batch_is_told_with_both(first: int | str, *, hint: bool) -> None:
    node = oh.make_node("Add", ["in", "state"], ["out"])
    data = model([node], {"state": weights(2, 4)}, [first, 4])
    with pytest.raises(ModelError) as caught:
        import_onnx(data, batch=3)
    assert ("exported for batches of 2 and is read for 3" in str(caught.value)) == hint


def test_whole_numbers_made_of_float32_are_transposed_as_a_one_hot_of_labels_is() -> None:
    nodes = [
        oh.make_node("Cast", ["in"], ["whole"], to=onnx.TensorProto.INT64),
        oh.make_node("Transpose", ["whole"], ["turned"], perm=[0, 2, 1]),
        oh.make_node("Cast", ["turned"], ["out"], to=FLOAT),
    ]
    assert_equals_onnxruntime(model(nodes, {}, ["N", 3, 4]), (2, 3, 4))


def test_empty_settings_of_an_older_resize_are_none() -> None:
    none, sizes = np.zeros(0, np.float32), np.array([2, 3, 7, 8], np.int64)
    node = oh.make_node(
        "Resize",
        ["in", "roi", "scales", "sizes"],
        ["out"],
        mode="linear",
        coordinate_transformation_mode="align_corners",
    )
    stored = {"roi": none, "scales": none, "sizes": sizes}
    assert_equals_onnxruntime(model([node], stored, ["N", 3, 4, 5], opset=11), (2, 3, 4, 5))


def test_a_shared_initializer_is_one_parameter() -> None:
    nodes = [
        oh.make_node("Identity", ["w"], ["same"]),
        oh.make_node("MatMul", ["in", "w"], ["h"]),
        oh.make_node("MatMul", ["h", "same"], ["out"]),
    ]
    graph = import_onnx(model(nodes, {"w": weights(4, 4)}, ["N", 4]), batch=2)
    assert [p.name for p in graph.parameters] == ["w"]


def test_dropout_is_noted() -> None:
    data = model([oh.make_node("Dropout", ["in"], ["out"], name="drop")], {}, ["N", 4])
    assert import_onnx(data, batch=2).notes == ("Dropout 'drop' is left out: the model does not say that it trains",)


def test_a_number_in_a_formula_is_a_constant_and_noted() -> None:
    nodes = [oh.make_node("Mul", ["in", "half"], ["h"]), oh.make_node("MatMul", ["h", "w"], ["out"])]
    data = model(nodes, {"half": np.array(0.5, np.float32), "w": weights(4, 3)}, ["N", 4])
    graph = import_onnx(data, batch=2)
    assert [p.name for p in graph.parameters] == ["w"]
    assert graph.notes == ("initializer 'half' has no dimensions and is taken as a constant",)
    assert list(weights_of(data)) == ["w"]


def test_tensors_that_the_first_output_does_not_need_are_no_parameters() -> None:
    nodes = [oh.make_node("MatMul", ["in", "w"], ["out"]), oh.make_node("MatMul", ["in", "aside"], ["other"])]
    data = model(nodes, {"w": weights(4, 3), "aside": weights(4, 2)}, ["N", 4])
    assert list(weights_of(data)) == ["w"]


LINEAR = [oh.make_node("MatMul", ["in", "w"], ["out"], name="mm")]


def test_unsupported_operator_is_named_with_its_node_and_what_is_supported() -> None:
    nodes = [
        oh.make_node("MatMul", ["in", "w"], ["h"]),
        oh.make_node("GridSample", ["h", "w"], ["out"], name="sample_3"),
    ]
    with pytest.raises(
        UnsupportedOp, match=r"operator GridSample of node 'sample_3' is not supported.*Conv, .*Gemm"
    ) as caught:
        import_onnx(model(nodes, {"w": weights(4, 4)}, ["N", 4]), batch=2)
    assert caught.value.op == "GridSample"
    assert "MaxPool" in caught.value.supported


def test_operator_of_another_domain_is_named_with_it() -> None:
    node = oh.make_node("FancyConv", ["in"], ["out"], domain="com.example", name="f")
    proto = onnx.load_model_from_string(model(LINEAR, {"w": weights(4, 3)}, ["N", 4]))
    proto.graph.node[0].CopyFrom(node)
    proto.opset_import.append(oh.make_opsetid("com.example", 1))
    with pytest.raises(UnsupportedOp, match=r"com\.example\.FancyConv"):
        import_onnx(proto.SerializeToString(), batch=2)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_an_ending_softmax_says_to_give_logits(op: str) -> None:
    nodes = [oh.make_node("MatMul", ["in", "w"], ["h"]), oh.make_node(op, ["h"], ["out"])]
    graph = import_onnx(model(nodes, {"w": weights(4, 3)}, ["N", 4]), batch=2)
    with pytest.raises(ModelError, match="end with its logits"):
        compile_training(graph)


def node_model(op: str, shape: Sequence[int | str], *arrays: Array, **attributes: Any) -> bytes:
    stored = {f"w{i}": a for i, a in enumerate(arrays)}
    return model([oh.make_node(op, ["in", *stored], ["out"], name="n1", **attributes)], stored, shape)


REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not an ONNX model|checker"),
    "text": (b'{"a": 1}', "not an ONNX model|checker"),
    "half weights": (model(LINEAR, {"w": weights(4, 3).astype(np.float16)}, ["N", 4]), "'w' is FLOAT16"),
    "double weights": (model(LINEAR, {"w": weights(4, 3).astype(np.float64)}, ["N", 4]), "'w' is DOUBLE"),
    "integer weights": (model(LINEAR, {"w": weights(4, 3).astype(np.int64)}, ["N", 4]), "'mm'.*int64"),
    "double input": (model(LINEAR, {"w": weights(4, 3)}, ["N", 4], elem_type=onnx.TensorProto.DOUBLE), "is DOUBLE"),
    "symbolic size": (model(LINEAR, {"w": weights(4, 3)}, ["N", "width"]), "dimension 1 .*'width'"),
    "scalar input": (model(LINEAR, {"w": weights(4, 3)}, []), "known rank"),
    "opset 6": (model(LINEAR, {"w": weights(4, 3)}, ["N", 4], opset=6), "opset"),
    "wrong shapes": (model(LINEAR, {"w": weights(5, 3)}, ["N", 4]), "node 'mm'.*inner dimensions 4 and 5"),
    "product with a scalar": (node_model("MatMul", ["N", 4], weights(1).reshape(())), "no scalars"),
    "4-D convolution": (node_model("Conv", ["N", 2, 4, 4, 4, 4], weights(3, 2, 2, 2, 2, 2)), "n1.*data must be"),
    "long kernel of a 3-D convolution": (
        node_model("Conv", ["N", 2, 4, 4, 4], weights(3, 2, 5, 2, 2)),
        "than 4 frames",
    ),
    "auto_pad of a 3-D convolution": (
        node_model("Conv", ["N", 2, 4, 4, 4], weights(3, 2, 2, 2, 2), auto_pad="SAME_UPPER"),
        "give its pads",
    ),
    "groups": (node_model("Conv", ["N", 4, 4, 4], weights(3, 2, 2, 2), group=2), "groups"),
    "groups of nothing": (node_model("Conv", ["N", 4, 4, 4], weights(3, 4, 2, 2), group=0), "groups"),
    "stride 0": (node_model("Conv", ["N", 4, 4, 4], weights(3, 4, 2, 2), strides=[0, 1]), "strides"),
    "negative pads": (node_model("Conv", ["N", 4, 4, 4], weights(3, 4, 2, 2), pads=[-1, 0, 0, 0]), "pads"),
    "pads of another rank": (node_model("Conv", ["N", 4, 4, 4], weights(3, 4, 2, 2), pads=[1, 1]), "4 numbers"),
    "kernel larger than data": (node_model("Conv", ["N", 4, 4, 4], weights(3, 4, 5, 5)), "too small"),
    "kernel_shape of another weight": (
        node_model("Conv", ["N", 4, 4, 4], weights(3, 4, 2, 2), kernel_shape=[3, 3]),
        "kernel_shape",
    ),
    "pool of padding": (node_model("MaxPool", ["N", 1, 4, 4], kernel_shape=[2, 2], pads=[2, 0, 0, 0]), "padding alone"),
    "pool with a kernel of 0": (node_model("MaxPool", ["N", 1, 4, 4], kernel_shape=[0, 2]), "kernel"),
    "flatten axis": (node_model("Flatten", ["N", 4], axis=7), "axis 7"),
    "reshape": (node_model("Reshape", ["N", 4], np.array([3, 5], np.int64)), "do not fit"),
    "reshape to nothing": (node_model("Reshape", ["N", 4], np.array([-1, 0, 0, 0], np.int64)), "n1"),
    "two unknowns": (node_model("Reshape", ["N", 4], np.array([-1, -1], np.int64)), "cannot be reshaped"),
    "transpose": (node_model("Transpose", ["N", 4], perm=[0, 0]), "permutation"),
    "squeeze": (node_model("Squeeze", ["N", 4], np.array([1], np.int64)), "not all of size 1"),
    "too many dimensions": (node_model("Unsqueeze", ["N", 4], np.arange(2, 9)), "at most 6"),
    "huge": (
        node_model("Add", ["N", 1 << 20], weights(1)[:, None, None] * np.ones((1, 3, 1), np.float32)),
        "n1|dimension",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_that_is_not_read_says_why(case: str) -> None:
    data, message = REFUSED[case]
    with pytest.raises(ModelError, match=message):
        compile_training(import_onnx(data, batch=2))


def test_several_inputs_are_refused() -> None:
    proto = onnx.load_model_from_string(model(LINEAR, {"w": weights(4, 3)}, ["N", 4]))
    proto.graph.input.append(oh.make_tensor_value_info("second", FLOAT, ["N", 2]))
    with pytest.raises(ModelError, match=r"one input, it has 2: \['in', 'second'\]"):
        import_onnx(proto.SerializeToString(), batch=2)


def test_an_unknown_element_type_is_refused() -> None:
    proto = onnx.load_model_from_string(model(LINEAR, {"w": weights(4, 3)}, ["N", 4]))
    proto.graph.input[0].type.tensor_type.elem_type = 127
    with pytest.raises(ModelError, match=r"unknown type 127|checker"):
        import_onnx(proto.SerializeToString(), batch=2)


def test_a_name_that_is_not_text_is_refused() -> None:
    data = model([oh.make_node("MatMul", ["in", "www"], ["out"])], {"www": weights(4, 3)}, ["N", 4])
    with pytest.raises(ModelError, match=r"UTF-8|checker"):
        import_onnx(data.replace(b"www", b"w\xffw"), batch=2)


def test_initializers_listed_as_inputs_are_no_inputs() -> None:
    proto = onnx.load_model_from_string(model(LINEAR, {"w": weights(4, 3)}, ["N", 4]))
    proto.graph.input.append(oh.make_tensor_value_info("w", FLOAT, [4, 3]))
    assert import_onnx(proto.SerializeToString(), batch=2).outputs[0].shape == (2, 3)


def test_external_data_are_refused() -> None:
    proto = onnx.load_model_from_string(model(LINEAR, {"w": weights(4, 3)}, ["N", 4]))
    proto.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    proto.graph.initializer[0].external_data.add(key="location", value="../../etc/passwd")
    with pytest.raises(ModelError, match="another file"):
        import_onnx(proto.SerializeToString(), batch=2)


def test_logits_must_have_a_row_for_each_example() -> None:
    with pytest.raises(ModelError, match=r"logits \(2, classes\), got \[2, 3, 4\]"):
        compile_training(import_onnx(model([oh.make_node("Relu", ["in"], ["out"])], {}, ["N", 3, 4]), batch=2))


def test_a_model_over_the_cap_is_refused_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    data = model(LINEAR, {"w": weights(4, 3)}, ["N", 4])
    monkeypatch.setattr(onnx_import, "MAX_MODEL_BYTES", len(data))
    assert import_onnx(data, batch=2).outputs[0].shape == (2, 3)
    monkeypatch.setattr(onnx_import, "MAX_MODEL_BYTES", len(data) - 1)
    with pytest.raises(ModelError, match=f"takes {len(data)} bytes, at most {len(data) - 1}"):
        import_onnx(data, batch=2)


def test_folding_is_capped() -> None:
    """Whole numbers beyond shape arithmetic are no values of the graph: only a few of them are computed with."""
    nodes = [oh.make_node("Add", ["many", "many"], ["sums"]), oh.make_node("Gather", ["in", "sums"], ["out"])]
    assert import_onnx(model(nodes, {"many": np.ones(512, np.int64)}, ["N", 4]), batch=4).outputs[0].shape == (512, 4)
    with pytest.raises(ModelError, match="operand 0 is int64"):
        import_onnx(model(nodes, {"many": np.ones(513, np.int64)}, ["N", 4]), batch=4)


@pytest.mark.parametrize("kind", [np.float32, np.int64])
def test_a_constant_of_a_shape_is_filled_up_to_what_a_tensor_may_hold(kind: type[np.generic]) -> None:
    fill = onnx.numpy_helper.from_array(np.array([3], kind))
    nodes = [
        oh.make_node("ConstantOfShape", ["size"], ["filled"], value=fill),
        oh.make_node("Cast", ["filled"], ["whole"], to=onnx.TensorProto.FLOAT),
        oh.make_node("Add", ["in", "whole"], ["out"]),
    ]
    size = np.array([2, 3000], np.int64)
    (out,) = import_onnx(model(nodes, {"size": size}, ["N", 3000]), batch=2).outputs
    np.testing.assert_array_equal(evaluate([out], {"x": np.ones((2, 3000), np.float32)})[0], 4.0)
    with pytest.raises(ModelError, match="more than"):
        import_onnx(model(nodes, {"size": size * (1 << 20)}, ["N", 3000]), batch=2)


def test_batch_must_be_positive() -> None:
    with pytest.raises(ModelError, match="batch"):
        import_onnx(build("mlp", (4,), 3, 0), batch=0)


def test_weights_that_are_not_finite_are_refused() -> None:
    data = model(LINEAR, {"w": np.full((4, 3), np.nan, np.float32)}, ["N", 4])
    with pytest.raises(ModelError, match="'w' holds NaN"):
        weights_of(data)


def test_new_weights_replace_the_old_by_name_and_leave_the_rest() -> None:
    data = build("lenet", (8, 8), 4, 1)
    new = {n: a + np.float32(0.5) for n, a in weights_of(data).items() if n.startswith("conv1")}
    changed = with_weights(data, new)
    before, after = weights_of(data), weights_of(changed)
    for name, value in after.items():
        np.testing.assert_array_equal(value, new.get(name, before[name]))
    assert with_weights(changed, before) == with_weights(data, before)


@pytest.mark.parametrize(
    ("weights_", "message"),
    [
        ({"nope": np.zeros(3, np.float32)}, "no initializer 'nope'"),
        ({"conv1.bias": np.zeros(3, np.float32)}, r"float32 \[16\], got float32 \[3\]"),
        ({"conv1.bias": np.zeros(16, np.float64)}, "got float64"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights_: dict[str, Array], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        with_weights(build("lenet", (8, 8), 4, 1), weights_)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_model_error(data: bytes) -> None:
    with pytest.raises(ModelError):
        import_onnx(data, batch=2)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    edits=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.integers(0, 40),
)
def test_a_damaged_model_is_read_or_refused(edits: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(build("lenet", (8, 8), 2, 1))
    head = 2000  # nodes and the first weights; the rest is numbers
    for place, byte in edits:
        data[-1 - place % head if place % 2 else place % head] = byte
    try:
        compile_training(import_onnx(bytes(data[: len(data) - cut]), batch=2))
    except ModelError:
        return
