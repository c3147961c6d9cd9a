"""The network of row T30, 105,866 parameters."""

from torch import nn


class Net(nn.Sequential):
    """Two convolutions and two dense layers, for pictures of 28 x 28."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(1568, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )
