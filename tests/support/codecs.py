"""Codecs to be tested, and updates for them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PIPELINES: list[tuple[str, ...]] = [
    ("dense",),
    ("fp32",),
    ("fp16",),
    ("bf16",),
    ("int8",),
    ("int8 7",),
    ("qsgd 7",),
    ("sign 16",),
    ("fp32", "rans"),
    ("fp16", "rans"),
    ("bf16", "rans"),
    ("int8", "rans"),
    ("qsgd 2", "rans"),
    ("sign 16", "rans"),
    ("ef",),
    ("ef", "sign 8"),
    ("ef", "qsgd 1 16", "rans"),
    ("topk 0.3",),
    ("topk 0.3", "rice"),
    ("topk 0.3 ef", "rice"),
    ("topk 0.3 ef", "fp16"),
    ("topk 0.3 ef", "fp16", "rice"),
    ("topk 0.3 ef", "bf16", "rice", "rans"),
    ("topk 0.3 ef", "int8 5", "rice"),
    ("topk 1", "fp16", "rice"),
    ("topk 0.3 ef", "qsgd 4 16"),
    ("topk 0.3 ef", "sign 8", "rice"),
    ("threshold 0.9",),
    ("threshold 1.2 ef", "fp16", "rice"),
    ("threshold 1e30 ef", "int8", "rice", "rans"),
    ("dgc 0.3 0", "fp16", "rice"),
    ("dgc 0.3 0 warmup 2", "rice"),
    ("ef21 0.2",),
    ("ef21 0.2", "fp16", "rice"),
    ("svd 0.9",),
    ("svd 0.5 0.9 2", "fp16"),
    ("svd 0.8 ef", "int8 16", "rans"),
    ("powersgd 1",),
    ("powersgd 2", "fp16"),
    ("rows",),
    ("rows", "int8", "rans"),
]

Tree = dict[str, NDArray[np.float32]]
SHAPES = {"conv.w": (4, 3, 2), "a": (1,), "fc.w": (5, 11), "fc.b": (11,), "scale": (), "one": (1, 3)}


def tree(seed: int, scale: float = 1.0) -> Tree:
    """Normally distributed values, drawn from the seed."""
    rng = np.random.default_rng(seed)
    return {name: np.asarray(scale * rng.standard_normal(shape), np.float32) for name, shape in SHAPES.items()}


def shapes_of(tensors: Tree) -> dict[str, tuple[int, ...]]:
    """As a decoder is told them."""
    return {name: tensor.shape for name, tensor in tensors.items()}


def copied(tensors: Tree) -> Tree:
    """For an encoder, which changes what it is given."""
    return {name: tensor.copy() for name, tensor in tensors.items()}


def flat(tensors: Tree) -> NDArray[np.float32]:
    """All values, in the order of the names."""
    return np.concatenate([tensors[name].reshape(-1) for name in sorted(tensors)])


def payload_bytes(data: bytes) -> int:
    """Of an update: what follows the header of its tensor file."""
    return len(data) - 8 - int.from_bytes(data[:8], "little")
