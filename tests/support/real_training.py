"""Whole training runs on real pictures, ours and torch's alike: the same start, batches and learning rates."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from coordinator.demo.datasets import Split, load_split
from coordinator.evaluate import evaluate
from edge_runtime.data import Dataset
from edge_runtime.engine import Engine
from edge_runtime.plan import read_plan
from models.compiler import compile_training, import_onnx, weights_of, with_weights
from support.networks import NETWORKS, export

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4


@dataclass(frozen=True)
class Pictures:
    """x (N, C, H, W) float32, each channel of the training part with mean 0 and deviation 1; y (N,) int32."""

    x_train: NDArray[np.float32]
    y_train: NDArray[np.int32]
    x_test: NDArray[np.float32]
    y_test: NDArray[np.int32]

    def first(self, count: int) -> Pictures:
        """With that many training pictures."""
        return Pictures(self.x_train[:count], self.y_train[:count], self.x_test, self.y_test)


@dataclass(frozen=True)
class Recipe:
    """A network and how it is trained; the learning rate falls linearly from `lr` to zero."""

    network: str
    epochs: int
    batch: int
    lr: float


def fashion_mnist(folder: Path) -> Pictures:
    """60,000 and 10,000 grey pictures of 28 x 28."""
    split = load_split(folder.name, folder.parent, seed=1)
    grey = (-1, 1, 28, 28)
    return _scaled(split.x_train.reshape(grey), split.y_train, split.x_test.reshape(grey), split.y_test)


def cifar10(folder: Path) -> Pictures:
    """12,000 and 3,000 colour pictures of 32 x 32, in an order that mixes the classes."""
    split = read_cifar10(folder)
    return _scaled(split.x_train, split.y_train, split.x_test, split.y_test)


def read_cifar10(folder: Path) -> Split:
    """The same pictures as uint8."""
    with zipfile.ZipFile(folder / "cifar10_subset.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        classes = sorted({name.split("/")[1] for name in names})
        parts = []
        for part in ("train", "test"):
            of_part = [name for name in names if name.startswith(part + "/")]
            order = np.random.default_rng(1).permutation(len(of_part))
            parts.append(np.stack([_picture(archive.read(of_part[i])) for i in order]))
            parts.append(np.array([classes.index(of_part[i].split("/")[1]) for i in order], np.int32))
    return Split("cifar10", *parts, None)


def _picture(data: bytes) -> NDArray[np.uint8]:
    from PIL import Image  # noqa: PLC0415 (only this set is made of picture files)

    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"), np.uint8).transpose(2, 0, 1)


def _scaled(
    x_train: NDArray[np.uint8], y_train: NDArray[np.int32], x_test: NDArray[np.uint8], y_test: NDArray[np.int32]
) -> Pictures:
    axes = (0, 2, 3)
    mean, spread = x_train.mean(axes, keepdims=True), x_train.std(axes, keepdims=True)
    train, test = (((x - mean) / spread).astype(np.float32) for x in (x_train, x_test))
    return Pictures(train, y_train, test, y_test)


def train_ours(recipe: Recipe, pictures: Pictures, seed: int) -> float:
    """Accuracy on the test part of the exported model, run by ONNX Runtime as a user would."""
    network = NETWORKS[recipe.network]
    model = export(_start(recipe, seed), network)
    compiled = compile_training(import_onnx(model, batch=recipe.batch), momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    engine = Engine(read_plan(compiled.plan))
    start = weights_of(model)
    for name, value in start.items():
        engine.write(name, value)
    for lr, rows in _schedule(recipe, len(pictures.y_train), seed):
        engine.write("x", pictures.x_train[rows])
        engine.write("y", pictures.y_train[rows])
        engine.write("lr", np.array(lr, np.float32))
        engine.step()
    trained = with_weights(model, {name: engine.read(name) for name in start})
    return evaluate(trained, Dataset(pictures.x_test, pictures.y_test)).accuracy


def train_torch(recipe: Recipe, pictures: Pictures, seed: int) -> float:
    """Accuracy of torch.optim.SGD's model on the test part."""
    model = _start(recipe, seed).train()
    optimiser = torch.optim.SGD(model.parameters(), recipe.lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    x, y = torch.from_numpy(pictures.x_train), torch.from_numpy(pictures.y_train.astype(np.int64))
    for lr, rows in _schedule(recipe, len(pictures.y_train), seed):
        optimiser.param_groups[0]["lr"] = lr
        optimiser.zero_grad()
        functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimiser.step()
    model.eval()
    with torch.no_grad():
        labels = model(torch.from_numpy(pictures.x_test)).argmax(dim=1).numpy()
    return float((labels == pictures.y_test).mean())


def _start(recipe: Recipe, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return NETWORKS[recipe.network].build()


def _schedule(recipe: Recipe, examples: int, seed: int) -> Iterator[tuple[float, NDArray[np.int64]]]:
    """The learning rate and the rows of every step; `examples` is a multiple of the batch."""
    rng = np.random.default_rng(seed)
    steps = examples // recipe.batch
    for epoch in range(recipe.epochs):
        order = rng.permutation(examples)
        for step in range(steps):
            done = (epoch * steps + step) / (recipe.epochs * steps)
            yield recipe.lr * (1 - done), order[step * recipe.batch : (step + 1) * recipe.batch]
