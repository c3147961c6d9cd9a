"""Judging a version on the gateway's held-out data, with ONNX Runtime on the very model that would be exported."""

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.data import Dataset, fill_batch

# Official builds of ONNX Runtime from 1.29 on report models and runs to their maker over the Internet. What a gateway
# trains is its owner's business, so that is off unless the environment says otherwise; it is read at the import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort

BATCH_ROWS = 256
INPUT_TYPES = {"tensor(float)": np.float32, "tensor(int32)": np.int32, "tensor(int64)": np.int64}


class EvaluationError(ValueError):
    """The model and the held-out data do not fit, or the model gives no finite numbers; the message says which."""


@dataclass(frozen=True)
class Evaluation:
    """Share of the examples whose largest logit is their label, and mean cross-entropy in nats."""

    accuracy: float
    loss: float
    examples: int


def evaluate(model: bytes, dataset: Dataset, batch_rows: int = BATCH_ROWS) -> Evaluation:
    """Runs the model over the data set.

    Args:
        model: ONNX with one float32 or integer input (N, ...) and logits (N, classes) as its first output. N may be a
            fixed number; then that many rows are run at a time.
        dataset: Rows are read and shaped as on the board (edge_runtime.data.fill_batch): uint8 as x / 255.
        batch_rows: Rows a run when N is free.

    Raises:
        EvaluationError: The model's input is not as above, a label is not one of its classes, or its logits are not
            finite.
        edge_runtime.data.ShapeMismatch: An example does not fit the model's input.
    """
    session = _session(model)
    name, shape, dtype = _input(session, batch_rows)
    x, y = np.empty(shape, np.float32 if dtype == np.float32 else np.int32), np.empty(shape[0], np.int32)
    right, loss = 0, 0.0
    for first in range(0, len(dataset), shape[0]):
        rows = np.arange(first, min(first + shape[0], len(dataset)))
        fill_batch(dataset, rows, x, y)
        logits = session.run(None, {name: x.astype(dtype, copy=False)})[0][: len(rows)]
        _check_logits(logits, y[: len(rows)], first)
        right += int((logits.argmax(axis=1) == y[: len(rows)]).sum())
        loss += float(cross_entropy(logits, y[: len(rows)]).sum())
    return Evaluation(right / len(dataset), loss / len(dataset), len(dataset))


def check_held_out(model: bytes, dataset: Dataset) -> None:
    """Refuses held-out data that the model cannot be judged on, before any device is asked to train.

    Raises:
        EvaluationError, edge_runtime.data.ShapeMismatch: As evaluate.
    """
    _check_labels(dataset.y, classes_of(model), 0)
    evaluate(model, Dataset(dataset.x[:1], dataset.y[:1]))


def classes_of(model: bytes) -> int:
    """The number of classes a model tells apart: the last axis of its first output.

    Raises:
        EvaluationError: The model does not say.
    """
    output = _session(model).get_outputs()[0]
    if len(output.shape) != 2 or not isinstance(output.shape[1], int):
        raise EvaluationError(
            f"the model's output {output.name!r} has shape {output.shape}; it must be (N, classes) with a fixed number"
        )
    return int(output.shape[1])


def cross_entropy(logits: NDArray[np.float32], labels: NDArray[np.int32]) -> NDArray[np.float64]:
    """Cross-entropy of every row in nats: log(sum(exp(logits))) - logits[label], in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_sum: NDArray[np.float64] = np.log(np.exp(shifted).sum(axis=1))
    chosen: NDArray[np.float64] = shifted[np.arange(len(labels)), labels]
    return log_sum - chosen


def _session(model: bytes) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # leaves the other cores to the broker, and sums in one order
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no public base class
        raise EvaluationError(f"ONNX Runtime cannot load the model: {error}") from error


def _input(session: Any, batch_rows: int) -> tuple[str, tuple[int, ...], Any]:
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type not in INPUT_TYPES or len(inputs[0].shape) < 2:
        shown = ", ".join(f"{each.name} {each.type} {each.shape}" for each in inputs)
        raise EvaluationError(f"the model must have one float32 or integer input (N, ...), not {shown}")
    rows, *axes = inputs[0].shape
    if not all(isinstance(axis, int) for axis in axes):
        raise EvaluationError(f"only the first axis of the model's input may be free, not {inputs[0].shape}")
    return inputs[0].name, (rows if isinstance(rows, int) else batch_rows, *axes), INPUT_TYPES[inputs[0].type]


def _check_labels(labels: NDArray[np.int32], classes: int, first: int) -> None:
    if labels.max() >= classes:
        row = int(labels.argmax())
        raise EvaluationError(
            f"row {first + row} of the held-out data has label {labels[row]}, the model has classes 0 .. {classes - 1}"
        )


def _check_logits(logits: NDArray[np.float32], labels: NDArray[np.int32], first: int) -> None:
    _check_labels(labels, logits.shape[1], first)
    if not math.isfinite(float(logits.sum(dtype=np.float64))):
        raise EvaluationError(
            "the model gives NaN or infinity on the held-out data: training diverged; start again with a smaller "
            "learning rate and another --state directory"
        )
