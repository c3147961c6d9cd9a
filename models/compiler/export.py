"""The way out: reading the weights of an ONNX model, and writing new ones into the user's own graph."""

from collections.abc import Mapping

import numpy as np
import onnx.numpy_helper
from numpy.typing import NDArray

from models.compiler.errors import ModelError
from models.compiler.onnx_import import import_onnx, own_batch, read_model


def weights_of(model: bytes) -> dict[str, NDArray[np.float32]]:
    """The initial values of every parameter of a model, by the names its plan gives them.

    Raises:
        ModelError: as import_onnx, or an initializer holds values that are not finite.
    """
    names = [p.name for p in import_onnx(model, batch=own_batch(model)).parameters]
    stored = {t.name: t for t in read_model(model).graph.initializer}
    weights = {n: np.array(onnx.numpy_helper.to_array(stored[n]), np.float32) for n in names}
    for name, array in weights.items():
        if not np.isfinite(array).all():
            raise ModelError(
                f"initializer {name!r} holds NaN or infinity, with which nothing can be trained (of zeros and minus"
                " infinities alone it would be a mask): export the model with finite values"
            )
    return weights


def statistics_of(model: bytes) -> frozenset[str]:
    """The names of a model's running statistics: means and variances of its batch normalisations."""
    nodes = read_model(model).graph.node
    return frozenset(name for node in nodes if node.op_type == "BatchNormalization" for name in node.input[3:5])


def with_weights(model: bytes, weights: Mapping[str, NDArray[np.float32]]) -> bytes:
    """The same model with some initializers replaced; what only training does is turned off.

    Raises:
        ModelError: a name the model does not have, or another dtype or shape than its initializer's.
    """
    proto = read_model(model)
    stored = {t.name: t for t in proto.graph.initializer}
    for name, array in weights.items():
        if name not in stored:
            raise ModelError(f"the model has no initializer {name!r}; it has: {', '.join(sorted(stored))}")
        shape = tuple(stored[name].dims)
        if array.dtype != np.float32 or array.shape != shape:
            raise ModelError(f"initializer {name!r} is float32 {list(shape)}, got {array.dtype} {list(array.shape)}")
        stored[name].CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
    for node in proto.graph.node:
        _for_inference(node)
    return bytes(proto.SerializeToString(deterministic=True))


def _for_inference(node: onnx.NodeProto) -> None:
    """A model exported for training normalises by its running statistics and drops nothing out from now on."""
    if node.op_type == "BatchNormalization":
        del node.output[1:]
        for attribute in node.attribute:
            if attribute.name == "training_mode":
                attribute.i = 0
    elif node.op_type == "Dropout":
        del node.input[2:]
