"""A job of two stages on real processes: it learns above frozen layers, and a killed device ends at the same model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from edge_runtime.tensors import decode_tensors
from models.compiler import weights_of
from support.fleet import Federation, digits_federation

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e

STAGES = [{"rounds": 2, "trainable": ["*"]}, {"rounds": 3, "trainable": ["fc1.*", "fc2.*"], "lr": 0.03}]
JOB = {"rounds": 5, "epochs": 40, "grace_s": 60.0, "stages": STAGES, "cache": "disk"}


def made(root: Path) -> Federation:
    return digits_federation(root, kind="embedded", **JOB)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a finished job, and the hash of its weights."""
    root = tmp_path_factory.mktemp("calm")
    running = made(root)
    try:
        running.start()
        done = running.until_done()
        assert done["accuracy"] > 0.9
        return root, str(done["model_sha256"])
    finally:
        running.stop()


def test_two_stages_learn_and_leave_one_file_of_features(undisturbed: tuple[Path, str]) -> None:
    root, _ = undisturbed
    first = weights_of((root / "model.onnx").read_bytes())
    found = decode_tensors((root / "coordinator" / "final.safetensors").read_bytes())[0]
    assert all(not np.array_equal(first[name], found[name]) for name in first)
    for device in ("dev-0", "dev-1", "dev-2", "dev-3"):
        (features,) = (root / device / "state" / "features").iterdir()
        examples = len(np.load(root / device / "data" / "train.npz")["y"])
        assert features.stat().st_size > examples * 128 * 4
        assert "rule=" not in (root / device / "client.log").read_text()


def test_a_device_killed_above_frozen_layers_resumes_to_the_same_model(
    tmp_path: Path, undisturbed: tuple[Path, str]
) -> None:
    running = made(tmp_path)
    try:
        running.start()
        running.until(lambda e: e["event"] == "round_started" and e["round"] == 4, "a round of the second stage")
        running.kill_device("dev-1")
        running.start_device("dev-1")
        assert running.until_done()["model_sha256"] == undisturbed[1]
        assert all(e["devices"] == 4 for e in running.seen if e["event"] == "round_done")
    finally:
        running.stop()
