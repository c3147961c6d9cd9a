"""What a coordinator tells its operator: one flat record an event, as JSON lines or as a readable log.

The kinds and their fields are in coordinator/event_kinds.py; docs/monitoring.md shows them. Log, metrics and
TensorBoard are all made of these events and of nothing else.
"""

import errno
import json
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from itertools import count
from typing import Any, TextIO

from coordinator.event_kinds import EVENTS, INFO

Emit = Callable[[Mapping[str, Any]], None]

QUIET_S = 10.0
MAX_QUIET = 1000  # devices and rules; warnings of more are left out until the next QUIET_S
# Kinds that a device can bring about as often as it likes, and how many of one device are told in QUIET_S.
_ONCE = frozenset({"warning", "refused", "task_failed"})
_OFTEN = {"device": 20, "telemetry": 200}
_ENCODER = json.JSONEncoder(allow_nan=False)  # json.dumps makes a new one for every call with options


def utc_now() -> str:
    """The time as RFC 3339 writes it, in UTC, with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def json_lines(stream: TextIO, now: Callable[[], str] = utc_now) -> Emit:
    """Writes every event as one line of JSON, with the fields that all have in common in front."""
    numbers = count(1)

    def emit(event: Mapping[str, Any]) -> None:
        kind = EVENTS.get(event["event"])
        stamp = {"seq": next(numbers), "time": now(), "level": INFO if kind is None else kind.level}
        # The stamp stands first and wins: telemetry has fields of a device's own choice.
        stream.write(_ENCODER.encode({**stamp, **event, **stamp}) + "\n")
        stream.flush()

    return emit


def log_lines(stream: TextIO) -> Emit:
    """Writes every event as one readable line; samples are for machines and left out."""

    def emit(event: Mapping[str, Any]) -> None:
        if event["event"] == "sample":
            return
        stream.write(readable(event) + "\n")
        stream.flush()

    return emit


def enduring(emit: Emit) -> Emit:
    """Passes events on, and goes on when the disk of the log takes none: the next that fits says how many were lost."""
    lost = 0

    def tolerant(event: Mapping[str, Any]) -> None:
        nonlocal lost
        try:
            if lost:
                emit({"event": "warning", "message": f"the log's disk did not take {lost} events", "rule": "LogFull"})
                lost = 0
            emit(event)
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EIO}:
                raise
            lost += 1

    return tolerant


def to_all(*emits: Emit) -> Emit:
    """Hands every event to each of them, in order."""

    def emit(event: Mapping[str, Any]) -> None:
        for each in emits:
            each(event)

    return emit


def of_job(emit: Emit, job: str) -> Emit:
    """Says in every event which job it is about."""
    return lambda event: emit({**event, "job": job})


def seldom(emit: Emit, clock: Callable[[], float]) -> Emit:
    """Passes events on, but only some of those that a device can bring about as often as it likes.

    In every QUIET_S a device's warnings, refusals and failures come through once a rule, its comings and goings and its
    telemetry so often as _OFTEN says: rubbish from a peer fills no disk.
    """
    once: set[tuple[str, str | None, str]] = set()
    often: Counter[tuple[str, str]] = Counter()  # of devices that came, of which the wire session bounds the number
    since_s = clock()

    def limited(event: Mapping[str, Any]) -> None:
        nonlocal since_s
        if (now_s := clock()) - since_s >= QUIET_S:
            since_s = now_s
            once.clear()
            often.clear()
        kind = event["event"]
        if kind in _ONCE and "rule" in event:
            rubbish = (kind, event.get("device"), event["rule"])
            if rubbish in once or len(once) >= MAX_QUIET:
                return
            once.add(rubbish)
        elif kind in _OFTEN:
            often[kind, event["device"]] += 1
            if often[kind, event["device"]] > _OFTEN[kind]:
                return
        emit(event)

    return limited


def readable(event: Mapping[str, Any]) -> str:
    """One line of text: the kind, then what a reader wants to know about it."""
    kind = event["event"]
    if kind in {"warning", "error"}:
        return f"{kind}: {event['message']}"
    if kind == "round_done":
        return (
            f"round {event['round']}: accuracy {event['accuracy']:.4f}, loss {event['loss']:.4f}, "
            f"{event['devices']} updates, {event['cohort']} asked, {event['bytes_up']:,} bytes up, "
            f"{event['bytes_down']:,} bytes down, {event['seconds']:.2f} s"
        )
    fields = " ".join(f"{key}={_value(value)}" for key, value in event.items() if key not in {"event", "job"})
    return f"{kind} {fields}"


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
