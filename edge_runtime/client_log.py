"""The client's log: one short line an event on standard error, readable or JSON (edge_runtime/client_events.py)."""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

__all__ = ["LEVELS", "Log", "make_log"]

Log = Callable[..., None]

_QUIET_S = 10.0

# Of the events that are no "info".
LEVELS = {
    "error": "error",
    "warning": "warning",
    "not connected": "warning",
    "task failed": "warning",
    "update refused": "warning",
}


def make_log(device: str, *, as_json: bool) -> Log:
    """Give log(event, field=value, ...), which writes one line.

    A warning that repeats within 10 s, same source and rule, is written once: a peer that sends rubbish cannot fill the
    disk.
    """
    last: dict[tuple[Any, Any], float] = {}
    lines = 0

    def log(event: str, **fields: Any) -> None:
        nonlocal lines
        if event == "warning":
            key, now = (fields.get("source"), fields.get("rule")), time.monotonic()
            if now - last.get(key, -_QUIET_S) < _QUIET_S:
                return
            if len(last) > 100:
                last.clear()
            last[key] = now
        lines += 1
        line = _json_line(lines, device, event, fields) if as_json else _line(device, event, fields)
        sys.stderr.write(line + "\n")

    return log


def _json_line(seq: int, device: str, event: str, fields: dict[str, Any]) -> str:
    now_s = time.time()
    stamp = {
        "seq": seq,
        # Not of the datetime module, which a board does not need else.
        "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_s)) + f".{int(now_s % 1 * 1000):03d}Z",
        "level": LEVELS.get(event, "info"),
        "event": event.replace(" ", "_"),
        "device": device,
    }
    return json.dumps({**stamp, **fields}, default=str)


def _line(device: str, event: str, fields: dict[str, Any]) -> str:
    shown = " ".join(f"{key}={_shown(value)}" for key, value in fields.items())
    return f"{time.strftime('%H:%M:%S')} {device} {event} {shown}".rstrip()


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
