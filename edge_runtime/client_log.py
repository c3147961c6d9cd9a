"""The client's log: one short line an event on standard error, readable or JSON."""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

__all__ = ["Log", "make_log"]

Log = Callable[..., None]

_QUIET_S = 10.0


def make_log(device: str, *, as_json: bool) -> Log:
    """Give log(event, field=value, ...), which writes one line.

    A warning that repeats within 10 s, same source and rule, is written once: a peer that sends rubbish cannot fill the
    disk.
    """
    last: dict[tuple[Any, Any], float] = {}

    def log(event: str, **fields: Any) -> None:
        if event == "warning":
            key, now = (fields.get("source"), fields.get("rule")), time.monotonic()
            if now - last.get(key, -_QUIET_S) < _QUIET_S:
                return
            if len(last) > 100:
                last.clear()
            last[key] = now
        sys.stderr.write(_line(device, event, fields, as_json=as_json) + "\n")

    return log


def _line(device: str, event: str, fields: dict[str, Any], *, as_json: bool) -> str:
    if as_json:
        return json.dumps({"device": device, "event": event, **fields}, default=str)
    shown = " ".join(f"{key}={_shown(value)}" for key, value in fields.items())
    return f"{time.strftime('%H:%M:%S')} {device} {event} {shown}".rstrip()


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
