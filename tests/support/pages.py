"""The parts of docs that are made from the code; `python -m support.pages` writes them anew.

A part stands between `<!-- NAME: from the code, by make docs -->` and `<!-- end -->`.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from typing import TYPE_CHECKING, get_args

import edge_runtime.codecs
import edge_runtime.wire
from coordinator import buffered, round_records, rounds, updates
from coordinator.event_kinds import COMMON, EVENTS
from coordinator.metrics import COUNTERS, GAUGES, HISTOGRAMS
from coordinator.round_records import Phase
from edge_runtime import tensors
from edge_runtime.client_events import CLIENT_COMMON, CLIENT_EVENTS
from edge_runtime.client_log import LEVELS
from edge_runtime.errors import RemoteError
from edge_runtime.wire import intake, presence, work
from support.data import REPOSITORY
from support.state_tables import event_table, phase_table, state_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from types import ModuleType

PAGES = tuple(REPOSITORY / "docs" / name for name in ("monitoring.md", "wire.md", "schedules.md"))

_PART = re.compile(r"(<!-- (?P<name>[a-z ]+): from the code, by make docs -->\n).*?(\n<!-- end -->)", re.DOTALL)


def rewritten(text: str) -> str:
    """A page with its parts as the code has them now."""
    return _PART.sub(lambda found: f"{found[1]}\n{PARTS[found['name']]()}\n{found[3]}", text)


def parts_of(page: Path) -> list[str]:
    """The names of a page's parts."""
    return [found["name"] for found in _PART.finditer(page.read_text(encoding="utf-8"))]


def main() -> None:
    """Write every page anew."""
    for page in PAGES:
        page.write_text(rewritten(page.read_text(encoding="utf-8")), encoding="utf-8")


def _fields(fields: Mapping[str, str], optional: frozenset[str] = frozenset()) -> str:
    named = (f"`{key}`{'?' if key in optional else ''} {meaning}" for key, meaning in fields.items())
    return "; ".join(named) or "none"


def _coordinator_events() -> str:
    rows = [f"| `{name}` | {k.level} | {k.meaning} | {_fields(k.fields, k.optional)} |" for name, k in EVENTS.items()]
    return "\n".join(["| event | level | when | fields |", "| --- | --- | --- | --- |", *rows])


def _client_events() -> str:
    levels = {event.replace(" ", "_"): level for event, level in LEVELS.items()}
    rows = [f"| `{name}` | {levels.get(name, 'info')} | {_fields(fields)} |" for name, fields in CLIENT_EVENTS.items()]
    return "\n".join(["| event | level | fields |", "| --- | --- | --- |", *rows])


def _metrics() -> str:
    families = [
        *((f"{name}_total", "counter", text, labels) for name, (text, labels) in COUNTERS.items()),
        *((name, "gauge", text, labels) for name, (text, labels) in GAUGES.items()),
        *((name, "histogram", text, ()) for name, (text, _) in HISTOGRAMS.items()),
    ]
    rows = [
        f"| `edge_{name}` | {kind} | {', '.join(f'`{label}`' for label in labels) or '-'} | {text} |"
        for name, kind, text, labels in families
    ]
    return "\n".join(["| metric | type | labels | meaning |", "| --- | --- | --- | --- |", *rows])


# Rules of refusals that are no exceptions: the update is as it should be, and not wanted.
SPOKEN = {
    "ChecksumMismatch": "Three times the chunks did not give the SHA-256 that was announced.",
    "GatewayBusy": "Too many uploads are open; the device offers its update again.",
    "GatewayFull": "The coordinator's disk takes nothing; the device offers its update again.",
    "StaleTask": "The task was asked, and is not open any more.",
    "StaleUpdate": "The update is of a version that is too old for the schedule.",
    "UnknownTask": "The device was not asked to do this task, or not now.",
    "UpdateTooLarge": "More bytes are announced than any update of this job can have.",
}


def _rules() -> str:
    errors = {each for module in _refusing() for each in vars(module).values() if _is_rule(each)}
    refused = {each.__name__: (each.__doc__ or "").split("\n")[0] for each in errors}
    rows = [f"| `{name}` | {meaning} |" for name, meaning in sorted((refused | SPOKEN).items())]
    return "\n".join(["| rule | meaning |", "| --- | --- |", *rows])


def _refusing() -> Iterator[ModuleType]:
    """The modules that read what a network brings to a coordinator."""
    yield from (tensors, updates)
    for package in (edge_runtime.codecs, edge_runtime.wire):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            yield importlib.import_module(module.name)


def _is_rule(value: object) -> bool:
    """Whether it is an error that is raised itself, and not only its subclasses."""
    families = {RemoteError, tensors.TensorFileError, updates.UpdateError}
    return isinstance(value, type) and issubclass(value, RemoteError) and value not in families


PARTS: Mapping[str, Callable[[], str]] = {
    "common fields": lambda: _fields(COMMON),
    "coordinator events": _coordinator_events,
    "client fields": lambda: _fields(CLIENT_COMMON),
    "client events": _client_events,
    "metrics": _metrics,
    "rules": _rules,
    "device presence": lambda: state_table(presence.Presence, presence._State),
    "device work": lambda: state_table(work.Work, work._State),
    "gateway uploads": lambda: state_table(intake.Intake, intake._Stage, {"drop": "ABSENT"}),
    "job phases": lambda: phase_table(rounds, Phase),
    "asynchronous phases": lambda: event_table(buffered, Phase, get_args(round_records.Command)),
}

if __name__ == "__main__":
    main()
