"""A multi-layer perceptron for rows of features."""

import math

from models.zoo.builder import Layers, ZooError

MAX_FEATURES = 1 << 16


def mlp(input_shape: tuple[int, ...], classes: int, seed: int) -> bytes:
    """ONNX bytes for features (D,), or any shape with at most 65,536 elements, flattened.

    The hidden layers have 128 and 64 units.

    Raises:
        ZooError: another shape, or fewer than 2 classes.
    """
    if not input_shape or min(input_shape) < 1 or math.prod(input_shape) > MAX_FEATURES:
        raise ZooError(f"mlp takes 1 to {MAX_FEATURES} features, got {list(input_shape)}")
    if classes < 2:
        raise ZooError(f"a classifier needs at least 2 classes, got {classes}")
    layers = Layers(seed, input_shape)
    if len(input_shape) > 1:
        layers.flatten()
    layers.dense("fc1", 128, relu=True)
    layers.dense("fc2", 64, relu=True)
    layers.dense("fc3", classes, relu=False)
    return layers.model("mlp", input_shape)
