"""LeNet-5 (LeCun et al., 1998, "Gradient-based learning applied to document recognition", section II) for small images.

Differs: relu and max pooling, full connections between the channels, a softmax at the end. Images below 20
pixels get 3x3 kernels, more channels and one hidden layer less: 5x5 kernels would leave nothing of an 8x8
digit.
"""

from models.zoo.builder import Layers, ZooError

MIN_SIDE, SMALL_SIDE, MAX_SIDE = 8, 20, 128


def lenet(input_shape: tuple[int, ...], classes: int, seed: int) -> bytes:
    """ONNX bytes for images (C, H, W), or (H, W), which are read as one channel; sides 8 to 128.

    28x28 with 10 classes has 61,706 parameters, 8x8 has 13,706.

    Raises:
        ZooError: another shape, or fewer than 2 classes.
    """
    shape = (1, *input_shape) if len(input_shape) == 2 else input_shape
    if len(shape) != 3 or shape[0] < 1 or min(shape[1:]) < MIN_SIDE or max(shape[1:]) > MAX_SIDE:
        raise ZooError(f"lenet takes images (C, H, W) with sides {MIN_SIDE} to {MAX_SIDE}, got {list(input_shape)}")
    if classes < 2:
        raise ZooError(f"a classifier needs at least 2 classes, got {classes}")
    layers = Layers(seed, shape)
    small = min(shape[1:]) < SMALL_SIDE
    layers.conv("conv1", 16 if small else 6, 3 if small else 5, 1 if small else 2)
    layers.max_pool("pool1")
    layers.conv("conv2", 32 if small else 16, 3 if small else 5, 1 if small else 0)
    layers.max_pool("pool2")
    layers.flatten()
    for number, features in enumerate((64,) if small else (120, 84), start=1):
        layers.dense(f"fc{number}", features, relu=True)
    layers.dense("fc2" if small else "fc3", classes, relu=False)
    return layers.model("lenet", shape)
