"""Shared pieces: a seeded generator, and central differences."""

import sys
from pathlib import Path

import numpy as np
import pytest

from support.poison import poison_every_step

sys.path.insert(0, str(Path(__file__).parent))  # forward, beside the tests that use it


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed."""
    return np.random.default_rng(20240607)


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is trained or differentiated here must not read what it has not written."""
    poison_every_step(monkeypatch)
