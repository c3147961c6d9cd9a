"""Running statistics of batch normalisation through whole jobs with compressed updates."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from coordinator.results import WEIGHTS_NAME
from edge_runtime.codecs import find_codec
from edge_runtime.slots import Slots
from edge_runtime.tensors import decode_tensors
from support.memory import MemorySite, finished, start_all
from support.networks import Network, export
from support.tiny_job import EXAMPLES, JOB, made_up

if TYPE_CHECKING:
    from pathlib import Path

ROUNDS = 16
CODECS = {
    "fedavg": [("topk 0.05 ef", "fp16", "rice"), ("int8",), ("ef", "sign 16"), ("powersgd 1",)],
    "scaffold": [("topk 0.05 ef", "fp16", "rice")],
    "ef21": [("ef21 0.05", "fp16", "rice")],
}


def normalised() -> nn.Module:
    """Inputs of several sizes, and two normalisations."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)
    )


def made(seed: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    data = made_up(seed, rows)
    return data.x * np.array([1, 30, 1, 0.03, 1, 5], np.float32) + np.float32(20), data.y


def run(root: Path, method: str, codec: tuple[str, ...]) -> MemorySite:
    (root / "held-out").mkdir(parents=True)
    x, y = made(99, 200)
    np.savez(root / "held-out" / "test.npz", x=x, y=y)
    (root / "m.onnx").write_bytes(export(normalised(), Network(normalised, (6,), 8, 3)))
    text = JOB.replace("rounds = 2", f"rounds = {ROUNDS}").replace("lr = 0.1\nmomentum = 0.9", "lr = 0.02")
    text = text.replace('zoo = "mlp"\ninput_shape = [6]\nclasses = 3', 'onnx = "m.onnx"')
    text = text.replace('name = "fedavg"', f'name = "{method}"' + ("\ndevices = 3" if method == "ef21" else ""))
    (root / "job.toml").write_text(text + f"[upload]\ncodec = {json.dumps(codec)}\n")
    shards = {}
    for seed, (name, rows) in enumerate(EXAMPLES.items()):
        shards[name] = made_up(seed, rows)
        shards[name].x[...] = made(seed, rows)[0]
    site = MemorySite(root / "job.toml", root / "state", shards)
    for name, device in site.devices.items():
        device.slots = Slots(root / f"{name}.slots")
    start_all(site)
    return site


@pytest.mark.parametrize(("method", "codec"), [(m, c) for m, each in CODECS.items() for c in each], ids=str)
def test_variances_stay_above_zero_and_the_model_is_sound(tmp_path: Path, method: str, codec: tuple[str, ...]) -> None:
    """Through a codec they took all places of a selection, overshot with what was carried, and became negative."""
    site = run(tmp_path, method, codec)
    finished(site)
    final = decode_tensors((site.state / WEIGHTS_NAME).read_bytes())[0]
    variances = [name for name in site.program.statistics if name.endswith("var")]
    assert len(variances) == 2
    assert all((final[name] > 0).all() for name in variances)
    assert site.seen("round_done")[-1]["accuracy"] > 0.5


def test_a_device_sends_them_beside_what_the_codec_says(tmp_path: Path) -> None:
    site = run(tmp_path, "fedavg", ("topk 0.05 ef", "fp16", "rice"))
    sent: list[bytes] = []
    for device in site.devices.values():
        device.spoil = lambda data: sent.append(data) or data  # type: ignore[func-returns-value]
    finished(site)
    task = site.devices["dev-a"].tasks[0]
    names = sorted(site.program.stage(1).trained)
    assert {names[place] for place in task.upload.exact} == site.program.statistics
    for data in sent:
        entries = decode_tensors(data)[0]
        beside = {key.removeprefix("exact/") for key in entries if key.startswith("exact/")}
        assert beside == site.program.statistics
        said = find_codec(task.upload.codec).decode(data, site.program.stage(1).trained)[0]
        assert sum(np.count_nonzero(said[name]) for name in names if name not in beside) > 0
