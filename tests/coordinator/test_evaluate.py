"""Evaluation against a forward pass written in NumPy, and what it refuses."""

import gzip
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from coordinator.evaluate import EvaluationError, check_held_out, classes_of, cross_entropy, evaluate
from edge_runtime.data import Dataset, ShapeMismatch, load_dataset

RNG = np.random.default_rng(11)
WEIGHT = RNG.normal(size=(5, 12)).astype(np.float32)
BIAS = RNG.normal(size=5).astype(np.float32)


def linear(batch: int | str = "N", bias: NDArray[np.float32] = BIAS) -> bytes:
    """Logits = flatten(x) W^T + b over x (batch, 1, 3, 4)."""
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"]),
            helper.make_node("Gemm", ["flat", "w", "b"], ["logits"], transB=1),
        ],
        "linear",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 1, 3, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 5])],
        [numpy_helper.from_array(WEIGHT, "w"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def images(rows: int) -> Dataset:
    x = RNG.integers(0, 256, size=(rows, 3, 4)).astype(np.uint8)
    return Dataset(x, RNG.integers(0, 5, size=rows).astype(np.int32))


def by_hand(dataset: Dataset) -> tuple[float, float]:
    x = dataset.x.reshape(len(dataset), 12) / (255.0 if dataset.x.dtype == np.uint8 else 1.0)
    logits = x @ WEIGHT.T.astype(np.float64) + BIAS
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    rows = np.arange(len(dataset))
    return float((logits.argmax(axis=1) == dataset.y).mean()), float(-log_p[rows, dataset.y].mean())


@pytest.mark.parametrize("batch", ["N", 1, 7, 64])
@pytest.mark.parametrize("rows", [1, 23])
def test_accuracy_and_loss_equal_a_forward_pass_in_numpy(batch: int | str, rows: int) -> None:
    dataset = images(rows)
    found = evaluate(linear(batch), dataset, batch_rows=10)
    accuracy, loss = by_hand(dataset)
    assert found.accuracy == accuracy
    assert found.loss == pytest.approx(loss, rel=1e-6)
    assert found.examples == rows


def test_float_rows_are_taken_as_they_are() -> None:
    dataset = Dataset(RNG.normal(size=(9, 12)).astype(np.float32), np.zeros(9, np.int32))
    assert evaluate(linear(), dataset).loss == pytest.approx(by_hand(dataset)[1], rel=1e-6)


def test_cross_entropy_is_right_where_exp_would_overflow() -> None:
    logits = np.array([[1000.0, 0.0], [0.0, 1000.0]], np.float32)
    np.testing.assert_array_equal(cross_entropy(logits, np.array([0, 0], np.int32)), [0.0, 1000.0])


def test_the_number_of_classes_is_read_from_the_model() -> None:
    assert classes_of(linear()) == 5


def test_a_label_out_of_range_is_named_with_its_row() -> None:
    dataset = Dataset(np.zeros((3, 12), np.float32), np.array([0, 5, 1], np.int32))
    for check in (evaluate, check_held_out):
        with pytest.raises(EvaluationError, match=r"row 1 .* label 5, the model has classes 0 .. 4"):
            check(linear(), dataset)


def test_examples_of_another_shape_are_refused() -> None:
    with pytest.raises(ShapeMismatch):
        check_held_out(linear(), Dataset(np.zeros((3, 4, 3, 2), np.float32), np.zeros(3, np.int32)))


def test_logits_that_are_not_finite_are_refused() -> None:
    broken = linear(bias=np.array([0, 0, np.inf, 0, 0], np.float32))
    with pytest.raises(EvaluationError, match="diverged"):
        evaluate(broken, images(2))


def test_bytes_that_are_no_model_are_refused() -> None:
    with pytest.raises(EvaluationError, match="cannot load"):
        evaluate(b"no model", images(1))


def test_held_out_idx_files_are_read(tmp_path: Path) -> None:
    dataset = images(4)
    header = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (4, 3, 4))
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + dataset.x.tobytes()))
    labels = b"\0\0\x08\x01" + (4).to_bytes(4, "big") + dataset.y.astype(np.uint8).tobytes()
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(labels)
    read = load_dataset(tmp_path, "test")
    assert evaluate(linear(), read).accuracy == by_hand(dataset)[0]
