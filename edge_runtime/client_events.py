"""The events of the client's log and their fields: the schema that docs/monitoring.md shows. The client needs none.

Names are those of the JSON log; the readable one has spaces in the place of underscores.
"""

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["CLIENT_COMMON", "CLIENT_EVENTS"]

# What every line has beside the event's own fields.
CLIENT_COMMON: Mapping[str, str] = MappingProxyType(
    {
        "seq": "1, 2, 3 ... since the process started: the order of events, whatever the clock does",
        "time": "RFC 3339, UTC, milliseconds; a board's clock may be wrong, nothing is decided by it",
        "level": "info, warning or error",
        "event": "the kind",
        "device": "this device's id",
    }
)

# Event -> its own fields: what they mean.
CLIENT_EVENTS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "ready": {
            "examples": "size of the data set",
            "x": "dtype and shape of one example",
            "import_s": "processor seconds from the start of the process",
        },
        "connected": {},
        "not_connected": {"reason": "why", "retry_s": "seconds until it is tried again"},
        "task": {
            "task": "its name",
            "round": "number",
            "deltas": "how many lead from the weights it holds to the new ones; 0 for all of them",
        },
        "task_withdrawn": {},
        "task_done": {
            "task": "its name",
            "loss": "mean training loss",
            "steps": "optimiser steps",
            "seconds": "it took",
            "bytes": "of the update",
        },
        "task_failed": {"task": "its name", "rule": "the rule that was broken", "message": "by what"},
        "update_accepted": {"task": "its name"},
        "update_refused": {"task": "its name", "rule": "the rule that was broken", "message": "by what"},
        "stopped": {"code": "exit code", "tasks": "done by this process"},
        "warning": {"source": "topic, task or disk", "rule": "the rule that was broken", "message": "by what"},
        "error": {"rule": "the rule that was broken", "message": "what to do", "code": "of the broker's refusal"},
    }
)
