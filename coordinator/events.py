"""What a coordinator tells its operator: one flat record an event, as JSON lines or as a readable log.

| event | fields beside `event` |
| --- | --- |
| listening | url, broker, site, job, round (the one to be done next), state (directory) |
| device | device, state (online, lost, stopped), examples |
| waiting | round, devices (that could start it now), needed |
| round_started | round, attempt, cohort (number of devices asked) |
| update | device, round, examples, loss (mean training loss), bytes |
| round_done | round, accuracy, loss (held-out), devices (accepted), cohort, bytes_up, bytes_down, seconds |
| telemetry | device, and what the device measured: rss_peak_kb, import_s, bytes_up, bytes_down, train_s |
| warning, error | message; device and rule where there is one |
| job_done | rounds, accuracy, model_sha256 (of final.safetensors), model (path of final.onnx), rss_peak_mb |

bytes_up of a round are those of its accepted updates; bytes_down are the weights for every member of the cohort, and
the plan for every member that had not been sent it before. Seconds are counted from the start of the round, or of the
coordinator where that was later, to the new version's commit.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, TextIO

Emit = Callable[[Mapping[str, Any]], None]

QUIET_S = 10.0
MAX_QUIET = 1000


def json_lines(stream: TextIO) -> Emit:
    """Writes every event as one line of JSON."""

    def emit(event: Mapping[str, Any]) -> None:
        stream.write(json.dumps(event, allow_nan=False) + "\n")
        stream.flush()

    return emit


def log_lines(stream: TextIO) -> Emit:
    """Writes every event as one readable line."""

    def emit(event: Mapping[str, Any]) -> None:
        stream.write(readable(event) + "\n")
        stream.flush()

    return emit


def seldom(emit: Emit, clock: Callable[[], float]) -> Emit:
    """Passes events on, but a warning about one device and rule once in QUIET_S: rubbish from a peer fills no disk."""
    told: dict[tuple[str | None, str], float] = {}

    def limited(event: Mapping[str, Any]) -> None:
        if event["event"] == "warning" and "rule" in event:
            now_s, key = clock(), (event.get("device"), event["rule"])
            for old in [each for each, told_s in told.items() if now_s - told_s >= QUIET_S]:
                del told[old]
            if key in told or len(told) >= MAX_QUIET:
                return
            told[key] = now_s
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
            f"{event['devices']} of {event['cohort']} devices, {event['bytes_up']:,} bytes up, "
            f"{event['bytes_down']:,} bytes down, {event['seconds']:.2f} s"
        )
    fields = " ".join(f"{key}={_value(value)}" for key, value in event.items() if key != "event")
    return f"{kind} {fields}"


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
