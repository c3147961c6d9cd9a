"""MNN 3.6.1, one thread: `mnn_child.py FOLDER NETWORK LR MOMENTUM`.

MNN has no way from ONNX to training that works, so LeNet-5 and ResNet-8 are written in its Express API once more.
Three things it does not tell: an explicit padding is ignored unless the mode is CAFFE, an evaluation that is not lazy
leaves no graph to differentiate (`step` then returns False and trains nothing), and a child is called by `forward`.
"""

import sys
from pathlib import Path

from channel import Channel

channel = Channel()  # before MNN prints what the processor supports
import MNN  # noqa: E402 (see above)
import numpy as np  # noqa: E402
from MNN import expr, nn, optim  # noqa: E402

CLASSES = 10


def convolution(inward: int, outward: int, kernel: int, stride: int, pad: int, *, bias: bool) -> nn.Module:
    return nn.conv(
        inward,
        outward,
        [kernel, kernel],
        [stride, stride],
        [pad, pad],
        [1, 1],
        False,  # noqa: FBT003 (its binding takes no names)
        bias,
        expr.Padding_Mode.CAFFE,
    )


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = convolution(1, 6, 5, 1, 2, bias=True)
        self.conv2 = convolution(6, 16, 5, 1, 0, bias=True)
        self.fc1, self.fc2, self.fc3 = nn.linear(400, 120), nn.linear(120, 84), nn.linear(84, CLASSES)

    def forward(self, x: expr.Var) -> expr.Var:
        x = expr.max_pool(expr.relu(self.conv1.forward(x)), [2, 2], [2, 2])
        x = expr.max_pool(expr.relu(self.conv2.forward(x)), [2, 2], [2, 2])
        x = expr.reshape(expr.convert(x, expr.NCHW), [0, -1])
        return self.fc3.forward(expr.relu(self.fc2.forward(expr.relu(self.fc1.forward(x)))))


class Residual(nn.Module):
    def __init__(self, inward: int, outward: int, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(inward, outward, 3, stride, 1, bias=False)
        self.conv2 = convolution(outward, outward, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.batch_norm(outward), nn.batch_norm(outward)
        self.shortened = stride != 1
        if self.shortened:
            self.short, self.bn3 = convolution(inward, outward, 1, stride, 0, bias=False), nn.batch_norm(outward)

    def forward(self, x: expr.Var) -> expr.Var:
        y = expr.relu(self.bn1.forward(self.conv1.forward(x)))
        y = self.bn2.forward(self.conv2.forward(y))
        return expr.relu(y + (self.bn3.forward(self.short.forward(x)) if self.shortened else x))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = convolution(3, 16, 3, 1, 1, bias=False), nn.batch_norm(16)
        self.block1, self.block2, self.block3 = Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 64, 2)
        self.fc = nn.linear(64, CLASSES)

    def forward(self, x: expr.Var) -> expr.Var:
        x = expr.relu(self.bn.forward(self.conv.forward(x)))
        x = self.block3.forward(self.block2.forward(self.block1.forward(x)))
        return self.fc.forward(expr.reduce_mean(expr.convert(x, expr.NCHW), [2, 3]))


def main() -> None:
    folder, name, lr, momentum = sys.argv[1:]
    expr.lazy_eval(True)  # noqa: FBT003 (its binding takes no names)
    expr.set_thread_number(1)
    model = {"lenet5": LeNet, "resnet8": ResNet}[name]()
    model.train(True)  # noqa: FBT003
    optimiser = optim.SGD(model, float(lr), float(momentum), 0.0)
    with np.load(Path(folder) / "batch.npz") as arrays:
        x, y = arrays["x"], arrays["y"].astype(np.int32)
    last = [0.0]

    def step() -> None:
        rows = expr.convert(expr.const(x, x.shape, expr.NCHW), expr.NC4HW4)
        labels = expr.one_hot(expr.const(y, y.shape, expr.NCHW, expr.int), CLASSES, 1, 0)
        loss = nn.loss.cross_entropy(expr.softmax(model.forward(rows)), expr.cast(labels, expr.float))
        if not optimiser.step(loss):
            raise RuntimeError("MNN found no gradient: nothing was trained")
        last[0] = loss.read()

    channel.serve(MNN.version(), step, lambda: float(last[0]))


if __name__ == "__main__":
    main()
