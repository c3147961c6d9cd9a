"""The networks that tests and benches train, in torch: one definition for both.

Each is named as in the acceptance table of the compiler, with the batch and shape it is measured at.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

TOKENS = 96


def lenet5() -> nn.Module:
    """LeNet-5 (LeCun et al., 1998) with relu and max-pooling, for 28 x 28 images: 61,706 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


def fedavg_cnn() -> nn.Module:
    """The CNN of arXiv 1602.05629 for 28 x 28 images: 1,663,370 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3136, 512),
        nn.ReLU(),
        nn.Linear(512, 10),
    )


def har_cnn() -> nn.Module:
    """Three convolutions over windows of 128 samples of 9 sensors."""
    return nn.Sequential(
        nn.Conv1d(9, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(64, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(64, 64, 5, padding=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 32, 100),
        nn.ReLU(),
        nn.Linear(100, 6),
    )


class Residual(nn.Module):
    """Two 3 x 3 convolutions with batch normalisation beside an identity, or a 1 x 1 convolution where sizes change."""

    def __init__(self, inward: int, outward: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inward, outward, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outward)
        self.conv2 = nn.Conv2d(outward, outward, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outward)
        self.short: nn.Module = nn.Identity()
        if stride != 1 or inward != outward:
            self.short = nn.Sequential(nn.Conv2d(inward, outward, 1, stride, bias=False), nn.BatchNorm2d(outward))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, outward, H / stride, W / stride)."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.short(x))


def resnet8() -> nn.Module:
    """ResNet-8 (arXiv 1512.03385 with n = 1) for 32 x 32 images: 78,042 parameters with 10 classes."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        Residual(16, 16, 1),
        Residual(16, 32, 2),
        Residual(32, 64, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


class Inverted(nn.Module):
    """MobileNetV2's block (arXiv 1801.04381, figure 4): widen, depthwise, narrow without an activation."""

    def __init__(self, inward: int, outward: int, stride: int, widen: int) -> None:
        super().__init__()
        wide = inward * widen
        layers: list[nn.Module] = []
        if widen != 1:
            layers += [nn.Conv2d(inward, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()]
        layers += [nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(wide, outward, 1, bias=False), nn.BatchNorm2d(outward))
        self.identity = stride == 1 and inward == outward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, outward, H / stride, W / stride)."""
        return x + self.layers(x) if self.identity else self.layers(x)


def mobilenet_v2() -> nn.Module:
    """MobileNetV2 (arXiv 1801.04381, table 2) of width 0.35 with 10 classes."""

    def channels(n: float) -> int:
        rounded = max(8, int(n * 0.35 + 4) // 8 * 8)
        return rounded if rounded >= 0.9 * n * 0.35 else rounded + 8

    inward = channels(32)
    layers: list[nn.Module] = [nn.Conv2d(3, inward, 3, 1, 1, bias=False), nn.BatchNorm2d(inward), nn.ReLU6()]
    for widen, wide, count, stride in MOBILENET_STAGES:
        for i in range(count):
            layers.append(Inverted(inward, channels(wide), stride if i == 0 else 1, widen))
            inward = channels(wide)
    layers += [nn.Conv2d(inward, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU6()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 10))


MOBILENET_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class Factorised(nn.Module):
    """A (2+1)D convolution (arXiv 1711.11248, section 3.5): 1 x 3 x 3, normalisation, relu, 3 x 1 x 1."""

    def __init__(self, inward: int, outward: int, stride: int) -> None:
        super().__init__()
        middle = 27 * inward * outward // (9 * inward + 3 * outward)
        self.space = nn.Conv3d(inward, middle, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)
        self.norm = nn.BatchNorm3d(middle)
        self.time = nn.Conv3d(middle, outward, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, T, H, W) -> (N, outward, T / stride, H / stride, W / stride)."""
        return self.time(torch.relu(self.norm(self.space(x))))


class ClipBlock(nn.Module):
    """A residual block of two (2+1)D convolutions."""

    def __init__(self, inward: int, outward: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = Factorised(inward, outward, stride), nn.BatchNorm3d(outward)
        self.conv2, self.bn2 = Factorised(outward, outward, 1), nn.BatchNorm3d(outward)
        self.short: nn.Module = nn.Identity()
        if stride != 1 or inward != outward:
            self.short = nn.Sequential(nn.Conv3d(inward, outward, 1, stride, bias=False), nn.BatchNorm3d(outward))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, T, H, W) -> (N, outward, T / stride, H / stride, W / stride)."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.short(x))


def r2plus1d_10() -> nn.Module:
    """R(2+1)D with 10 layers, a quarter of the paper's width, for clips of 8 frames of 32 x 32."""
    return nn.Sequential(
        Factorised(3, 16, 1),
        nn.BatchNorm3d(16),
        nn.ReLU(),
        ClipBlock(16, 16, 1),
        ClipBlock(16, 32, 2),
        ClipBlock(32, 64, 2),
        ClipBlock(64, 64, 2),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


class Block(nn.Module):
    """A pre-norm transformer block (arXiv 2010.11929, eq. 2 and 3), attention written out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, T, D) -> (N, T, D)."""
        n, t, d = x.shape
        parts = self.qkv(self.norm1(x)).reshape(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = parts[0], parts[1], parts[2]
        weights = (q @ k.transpose(-2, -1) * (d // self.heads) ** -0.5).softmax(dim=-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(n, t, d))
        return x + self.narrow(functional.gelu(self.wide(self.norm2(x))))


class Vit(nn.Module):
    """A vision transformer for 32 x 32 images in patches of 4: class token, learned positions."""

    def __init__(self, width: int = 192, depth: int = 6, heads: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, 65, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, 32, 32) -> logits (N, 10)."""
        rows = self.patches(x).flatten(2).transpose(1, 2)
        rows = torch.cat([self.token.expand(x.shape[0], -1, -1), rows], dim=1) + self.positions
        return self.head(self.norm(self.blocks(rows))[:, 0])


class TextGru(nn.Module):
    """Characters through an embedding and a GRU; the last state is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(TOKENS, 32)
        self.gru = nn.GRU(32, 64, batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Token numbers (N, T) -> logits (N, 10)."""
        return self.head(self.gru(self.table(x))[1][-1])


@dataclass(frozen=True)
class Network:
    """A builder, the shape of one example and the batch at which it is measured."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int
    classes: int = 10
    tokens: bool = False


NETWORKS = {
    "lenet5": Network(lenet5, (1, 28, 28), 32),
    "fedavg_cnn": Network(fedavg_cnn, (1, 28, 28), 32),
    "har_cnn": Network(har_cnn, (9, 128), 32, 6),
    "resnet8": Network(resnet8, (3, 32, 32), 32),
    "mobilenet_v2": Network(mobilenet_v2, (3, 32, 32), 16),
    "r2plus1d_10": Network(r2plus1d_10, (3, 8, 32, 32), 4),
    "vit_tiny": Network(Vit, (3, 32, 32), 16),
    "text_gru": Network(TextGru, (80,), 32, tokens=True),
}


def export(model: nn.Module, network: Network) -> bytes:
    """ONNX in training mode: the exporter keeps normalisation apart from convolutions, and equal tensors apart."""
    file = io.BytesIO()
    dtype = torch.long if network.tokens else torch.float32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter announces its successor
        torch.onnx.export(
            model.train(),
            (torch.zeros(2, *network.shape, dtype=dtype),),
            file,
            dynamo=False,
            input_names=["input"],
            dynamic_axes={"input": {0: "N"}},
            training=torch.onnx.TrainingMode.TRAINING,
            do_constant_folding=False,
        )
    return file.getvalue()
