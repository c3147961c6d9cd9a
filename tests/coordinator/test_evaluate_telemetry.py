"""ONNX Runtime's own telemetry: official builds send it by default, our coordinator does not."""

import os
import subprocess
import sys
from pathlib import Path

QUIET = {"CI", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS"}  # would hide what is tested here
JUDGE = """
import numpy as np
from coordinator.evaluate import evaluate
from edge_runtime.data import Dataset
from models.zoo import MODELS
evaluate(MODELS["mlp"]((4,), 2, 1), Dataset(np.zeros((3, 4), np.float32), np.zeros(3, np.int32)))
"""


def test_judging_a_model_leaves_no_device_identifier_behind(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in QUIET and not k.endswith("_CI")}
    places = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_DATA_HOME"), str(tmp_path))
    subprocess.run([sys.executable, "-c", JUDGE], env={**environment, **places}, check=True, timeout=120)
    assert list(tmp_path.rglob("*")) == []
