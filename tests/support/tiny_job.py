"""A small job for whole sites in memory: three devices, two rounds, a network of a few thousand values."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edge_runtime.data import Dataset
from support.memory import MemorySite

JOB = """\
[job]
name = "tiny"
seed = 5
rounds = 2
[model]
zoo = "mlp"
input_shape = [6]
classes = 3
[method]
name = "fedavg"
[training]
epochs = 2
batch = 8
lr = 0.1
momentum = 0.9
[round]
devices = 3
min_updates = 2
deadline_s = 60
grace_s = 5
[evaluate]
data = "held-out"
"""
EXAMPLES = {"dev-a": 20, "dev-b": 13, "dev-c": 31}


def made_up(seed: int, rows: int) -> Dataset:
    """Three blobs in six dimensions."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, rows).astype(np.int32)
    x = rng.normal(size=(rows, 6)) + 2.0 * np.eye(3, 6)[y]
    return Dataset(x.astype(np.float32), y)


def make_site(
    tmp_path: Path, job: str = JOB, order: int = 0, *, shards: Mapping[str, Dataset] | None = None
) -> MemorySite:
    home = tmp_path / "home"
    (home / "held-out").mkdir(parents=True, exist_ok=True)
    test = made_up(99, 60)
    np.savez(home / "held-out" / "test.npz", x=test.x, y=test.y)
    (home / "job.toml").write_text(job)
    own = {name: made_up(seed, rows) for seed, (name, rows) in enumerate(EXAMPLES.items())}
    return MemorySite(home / "job.toml", tmp_path / "state", dict(shards or own), order)
