"""The hour of a clock that may be set decides nothing: only what people read is stamped with it."""

from __future__ import annotations

import ast
from pathlib import Path

import coordinator
import edge_runtime

# Where times are made for people: an operator's requests, the coordinator's events and the client's log.
STAMPS = {"coordinator/requests.py", "coordinator/events.py", "edge_runtime/client_log.py"}
OF_DAY = {("time", "time"), ("time", "time_ns"), ("time", "localtime"), ("time", "gmtime"), ("time", "ctime")}
OF_DAY |= {(name, call) for name in ("datetime", "date") for call in ("now", "utcnow", "today")}


def reads_the_hour(source: str) -> list[str]:
    """Calls of a module that ask for the time of day."""
    names = [
        (node.value.id, node.attr)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    ]
    imported = [
        (node.module or "", alias.name)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    return [".".join(name) for name in [*names, *imported] if name in OF_DAY]


def test_no_module_but_those_that_stamp_for_people_asks_for_the_time_of_day() -> None:
    root = Path(coordinator.__file__).parents[1]
    packages = [Path(each.__file__ or "").parent for each in (coordinator, edge_runtime)]
    found = {
        str(path.relative_to(root)): calls
        for package in packages
        for path in package.rglob("*.py")
        if (calls := reads_the_hour(path.read_text(encoding="utf-8")))
    }
    assert found.keys() == STAMPS


def test_the_search_finds_every_way_of_asking() -> None:
    sources = ["import time\ntime.time()", "from time import time", "from datetime import datetime\ndatetime.now()"]
    assert all(reads_the_hour(source) for source in sources)
    assert reads_the_hour("import time\ntime.monotonic()") == []
