"""The demo's live table on terminals of different widths."""

import io

import pytest
from rich.console import Console

from coordinator.demo.view import LiveView

EVENTS = [
    {"event": "device", "device": "dev-10", "state": "online", "examples": 12345},
    {"event": "round_started", "round": 1},
    {"event": "update", "device": "dev-10", "loss": 1.25},
    {"event": "telemetry", "device": "dev-10", "rss_peak_kb": 43008},
    {"event": "round_done", "round": 1, "accuracy": 0.8125, "loss": 0.5, "devices": 1, "seconds": 12.5},
]


@pytest.mark.parametrize("columns", [80, 120, 200])
def test_every_heading_and_number_is_shown_whole(columns: int) -> None:
    screen = io.StringIO()
    with LiveView(20, Console(file=screen, width=columns, force_terminal=True, color_system=None)) as view:
        for event in EVENTS:
            view.show(event)
    shown = screen.getvalue()
    assert "…" not in shown
    for text in ("train loss", "peak MB", "accuracy", "dev-10", "12345", "1.250", "42.0", "0.8125", "12.50", "(1/20)"):
        assert text in shown
