"""Networks for those who bring none: small classifiers, written as ONNX by code."""

from collections.abc import Callable

from models.zoo.builder import ZooError
from models.zoo.cnn1d import cnn1d
from models.zoo.lenet import lenet
from models.zoo.mlp import mlp

__all__ = ["MODELS", "ZooError", "build", "default_model"]

MODELS: dict[str, Callable[[tuple[int, ...], int, int], bytes]] = {"lenet": lenet, "cnn1d": cnn1d, "mlp": mlp}
MAX_IMAGE_RATIO = 4  # two axes further apart are channels and time, not height and width


def build(name: str, input_shape: tuple[int, ...], classes: int, seed: int) -> bytes:
    """ONNX bytes of a network by name; `input_shape` is without the batch.

    Raises:
        ZooError: no such network, or not for this shape.
    """
    if name not in MODELS:
        raise ZooError(f"there is no model {name!r}; there are: {', '.join(sorted(MODELS))}")
    return MODELS[name](input_shape, classes, seed)


def default_model(input_shape: tuple[int, ...]) -> str:
    """The network that fits a shape: (C, H, W) and (H, W) lenet, (C, L) cnn1d, (D,) mlp.

    Two axes are taken as an image where neither is more than 4 times the other.

    Raises:
        ZooError: a shape with no axis or more than three.
    """
    if len(input_shape) == 2:
        return "lenet" if max(input_shape) <= MAX_IMAGE_RATIO * min(input_shape) else "cnn1d"
    fitting = {1: "mlp", 3: "lenet"}
    if len(input_shape) not in fitting:
        raise ZooError(f"no default model for shape {list(input_shape)}; give an ONNX model")
    return fitting[len(input_shape)]
