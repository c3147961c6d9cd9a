"""Steps that owe nothing to what an earlier one left behind: temporaries and scratch are NaN before each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime import _core

if TYPE_CHECKING:
    import pytest


def poison_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every step of every engine begin with poisoned memory, whoever calls it."""
    step = _core.Engine.step

    def poisoned(engine: _core.Engine) -> None:
        engine.poison()
        step(engine)

    monkeypatch.setattr(_core.Engine, "step", poisoned)
