"""One round of the real thing, over a real broker, equals federated averaging written plainly in torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from edge_runtime.data import Dataset, batch_indices, load_dataset
from edge_runtime.rng import derive_seed
from edge_runtime.tensors import decode_tensors
from models.compiler import weights_of
from support.fleet import digits_federation
from support.torch_twin import TorchTwin, sgd_epochs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

pytestmark = [pytest.mark.e2e, pytest.mark.torch]
SEED, EPOCHS, BATCH, LR, MOMENTUM, DECAY = 1, 2, 32, 0.037, 0.87, 3e-4
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def one_round(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished one-round job: initial model, shards and final weights."""
    root = tmp_path_factory.mktemp("round")
    numbers = {"rounds": 1, "epochs": EPOCHS, "lr": LR, "momentum": MOMENTUM, "weight_decay": DECAY}
    federation = digits_federation(root, kind="embedded", **numbers)
    try:
        federation.start()
        federation.until_done()
    finally:
        federation.stop()
    return root


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_round_equals_federated_averaging_in_torch(one_round: Path, dtype: torch.dtype) -> None:
    """w1 = w0 + sum_k n_k (w_k - w0) / sum_k n_k, with w_k after two epochs of SGD on device k's own batches."""
    model = (one_round / "model.onnx").read_bytes()
    first = weights_of(model)
    names = [f"dev-{i}" for i in range(4)]
    shards = {name: load_dataset(one_round / name / "data") for name in names}
    total = sum(len(shard) for shard in shards.values())
    expected = {name: array.astype(np.float64) for name, array in first.items()}
    for device, shard in shards.items():
        twin = TorchTwin(model, dtype)
        sgd_epochs(twin, _batches(shard, device), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
        for name, trained in twin.arrays().items():
            expected[name] += len(shard) / total * (trained.astype(np.float64) - first[name])
    found, _ = decode_tensors((one_round / "coordinator" / "final.safetensors").read_bytes())
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert _distance(found[name], array) <= TOLERANCE, name
        # The step itself, not only the weight it is added to, is right.
        assert _distance(found[name] - first[name], array - first[name]) <= 20 * TOLERANCE, name


def _batches(shard: Dataset, device: str) -> Iterator[tuple[NDArray[Any], NDArray[np.int32]]]:
    seed = derive_seed("task", SEED, 1, device)
    for epoch in range(EPOCHS):
        for rows in batch_indices(len(shard), BATCH, seed, epoch):
            yield shard.x[rows], shard.y[rows]


def _distance(found: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
