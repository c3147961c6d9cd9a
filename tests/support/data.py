"""Finds the real data sets, or says why a test is skipped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def data_dir() -> Path | None:
    """The folder of data sets: EDGE_DATA_DIR, else ../shared/data beside the repository, else None."""
    named = os.environ.get("EDGE_DATA_DIR")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    return folder if folder.is_dir() else None


def require(name: str) -> Path:
    """The folder of one data set; skips the calling test, with the reason, where it is absent."""
    root = data_dir()
    if root is None or not (root / name).is_dir():
        pytest.skip(f"data set {name} is not here: set EDGE_DATA_DIR to a folder that holds {name}/")
    return root / name
