"""What the engine's tests share."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from support.poison import poison_every_step

sys.path.insert(0, str(Path(__file__).parent))  # planwriter, beside the tests that use it


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers from a fixed seed."""
    return np.random.default_rng(20240817)


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels must not read what they have not written."""
    poison_every_step(monkeypatch)
