"""The demo, as a user types it, against both brokers."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from coordinator.broker import find_mosquitto
from support.data import data_dir, require

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e
MOSQUITTO = pytest.param(
    "mosquitto", marks=pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
)
KEYS = {
    "accuracy",
    "rounds",
    "bytes_up_per_device_round",
    "bytes_down_per_device_round",
    "device_peak_rss_mb",
    "device_import_s",
    "coordinator_peak_rss_mb",
    "broker",
    "wall_s",
    "model_sha256",
}


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge_runtime", "demo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)


def result_of(*arguments: str) -> dict[str, Any]:
    run = demo("--json", *arguments)
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("broker", ["embedded", MOSQUITTO])
def test_four_devices_learn_digits(broker: str, tmp_path: Path) -> None:
    found = result_of("--broker", broker, "--report", str(tmp_path / "report"))
    assert set(found) == KEYS
    assert found["accuracy"] >= 0.93
    assert found["rounds"] <= 20
    assert found["broker"].startswith(broker)
    assert len(found["device_peak_rss_mb"]) == 4
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [r["number"] for r in report["rounds"]] == list(range(1, found["rounds"] + 1))
    assert (tmp_path / "report" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_one_seed_gives_one_model() -> None:
    first, second, other = (result_of("--broker", "embedded", "--rounds", "2", "--seed", seed) for seed in "778")
    assert first["model_sha256"] == second["model_sha256"] != other["model_sha256"]


def test_lines_and_a_summary_when_piped() -> None:
    run = demo("--broker", "embedded", "--rounds", "2", "--devices", "2")
    assert run.returncode == 0, run.stderr
    assert "round   2" in run.stdout
    assert "\x1b[" not in run.stdout
    assert run.stdout.splitlines()[-1].startswith("wall time")


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_users_own_arrays_need_no_code(tmp_path: Path, dtype: type) -> None:
    """Two classes told apart by which half of a row is bright, owned by three people of unequal habit."""
    rng = np.random.default_rng(3)
    folder = tmp_path / "own"
    folder.mkdir()
    for part, n in (("train", 240), ("test", 60)):
        y = rng.integers(0, 2, n)
        x = rng.integers(0, 60, (n, 12))
        x[np.arange(n), np.where(y == 1, 3, 9)] += 190
        scaled = x.astype(dtype) if dtype is np.uint8 else (x / 255).astype(dtype)
        np.savez(folder / f"{part}.npz", x=scaled, y=y, client=rng.integers(0, 3, n))
    found = result_of("--data", "own", "--data-dir", str(tmp_path), "--rounds", "12", "--broker", "embedded")
    assert len(found["device_peak_rss_mb"]) == 3
    assert found["accuracy"] >= 0.9


def test_a_missing_data_set_is_named_with_what_to_do(tmp_path: Path) -> None:
    run = demo("--data", "nowhere", "--data-dir", str(tmp_path))
    assert run.returncode == 2
    assert "nowhere" in run.stderr
    assert "--data-dir" in run.stderr


@pytest.mark.slow
def test_eight_devices_learn_fashion_mnist_from_idx_files() -> None:
    require("fashion-mnist")
    found = result_of(
        "--data",
        "fashion-mnist",
        "--data-dir",
        str(data_dir()),
        "--devices",
        "8",
        "--rounds",
        "15",
        "--broker",
        "embedded",
    )
    assert found["accuracy"] >= 0.86


@pytest.mark.slow
def test_people_held_out_of_training_are_recognised_by_their_activity() -> None:
    require("har-smartphone")
    found = result_of("--data", "har-smartphone", "--data-dir", str(data_dir()), "--broker", "embedded")
    assert len(found["device_peak_rss_mb"]) == 21
    assert found["accuracy"] >= 0.88
