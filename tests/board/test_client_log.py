"""The client's log: readable, or JSON whose fields its schema names."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import edge_runtime
from edge_runtime.client_events import CLIENT_COMMON, CLIENT_EVENTS
from edge_runtime.client_log import LEVELS, make_log

if TYPE_CHECKING:
    import pytest

CLIENT = Path(edge_runtime.__file__).parent / "client.py"


def test_a_json_line_is_stamped_in_order_with_a_utc_time_and_a_level(capsys: pytest.CaptureFixture[str]) -> None:
    log = make_log("dev-1", as_json=True)
    log("connected")
    log("task failed", task="t", rule="R", message="m")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert list(first) == list(CLIENT_COMMON)
    assert (first["seq"], second["seq"]) == (1, 2)
    assert (first["level"], second["level"]) == ("info", "warning")
    assert second["event"] == "task_failed"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["time"])


def test_the_readable_line_has_the_event_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    make_log("dev-1", as_json=False)("task done", loss=0.123456)
    assert capsys.readouterr().err.endswith(" dev-1 task done loss=0.1235\n")


def test_every_event_of_the_client_is_in_its_schema_and_the_other_way_round() -> None:
    found: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(CLIENT.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"self._log", "log"}:
            (name,) = node.args
            assert isinstance(name, ast.Constant)
            fields = {str(keyword.arg) for keyword in node.keywords}
            event = str(name.value).replace(" ", "_")
            assert fields <= CLIENT_EVENTS[event].keys(), f"client.py:{node.lineno}"
            found.setdefault(event, set()).update(fields)
    assert found == {event: set(fields) for event, fields in CLIENT_EVENTS.items()}
    assert {event.replace(" ", "_") for event in LEVELS} <= CLIENT_EVENTS.keys()
