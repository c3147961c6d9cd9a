"""A one-dimensional convolutional network for windows of sensor signals.

Three convolutions along time, two of them pooled, then the mean over time: the number of parameters does not
depend on the window's length.
"""

from models.zoo.builder import Layers, ZooError

MIN_LENGTH, MAX_LENGTH = 8, 1 << 16


def cnn1d(input_shape: tuple[int, ...], classes: int, seed: int) -> bytes:
    """ONNX bytes for signals (C, L), 8 to 65,536 samples long.

    6 channels with 6 classes have 24,038 parameters.

    Raises:
        ZooError: another shape, or fewer than 2 classes.
    """
    if len(input_shape) != 2 or input_shape[0] < 1 or not MIN_LENGTH <= input_shape[1] <= MAX_LENGTH:
        raise ZooError(f"cnn1d takes signals (C, L), L from {MIN_LENGTH} to {MAX_LENGTH}, got {list(input_shape)}")
    if classes < 2:
        raise ZooError(f"a classifier needs at least 2 classes, got {classes}")
    layers = Layers(seed, input_shape)
    layers.conv("conv1", 32, 5, 2)
    layers.max_pool("pool1")
    layers.conv("conv2", 64, 5, 2)
    layers.max_pool("pool2")
    layers.conv("conv3", 64, 3, 1)
    layers.global_average_pool("mean")
    layers.flatten()
    layers.dense("fc", classes, relu=False)
    return layers.model("cnn1d", input_shape)
