"""Events of the log, made of what the wire session and the journal tell; coordinator.event_kinds has their fields."""

from coordinator.evaluate import Evaluation
from coordinator.store import JournalUpdate, RoundFigures
from edge_runtime.wire.events import DeviceStatus, GatewaySuperseded, TaskFailed, Telemetry, UpdateRefused, Warned

Report = dict[str, object]


def superseded(event: GatewaySuperseded) -> Report:
    """A coordinator gives way."""
    message = (
        f"another coordinator, with epoch {event.epoch}, was on this site before; this one stops. Nothing is lost: "
        "give every job a --site of its own, or start the same command again when the other has ended"
    )
    return {"event": "error", "message": message, "rule": "GatewaySuperseded"}


def refused(event: UpdateRefused) -> Report:
    """An update was not taken."""
    retry = {} if event.retry_s is None else {"retry_s": event.retry_s}
    return {"event": "refused", "device": event.device, "rule": event.rule, "message": event.message, **retry}


def accepted(update: JournalUpdate, commit_s: float) -> Report:
    """An update was journalled."""
    return {
        "event": "update",
        "device": update.device,
        "task": update.task,
        "round": update.round,
        "staleness": update.round - update.version,
        "examples": update.examples,
        "loss": update.loss,
        "bytes": len(update.data),
        "commit_s": commit_s,
    }


def device(event: DeviceStatus, *, evicted: bool) -> Report:
    """A device came or went."""
    out: Report = {"evicted": True} if evicted else {}
    return {"event": "device", "device": event.device, "state": event.state, "examples": event.examples, **out}


def task_failed(event: TaskFailed, number: int) -> Report:
    """A device has not done its task."""
    return {
        "event": "task_failed",
        "device": event.device,
        "round": number,
        "rule": event.rule,
        "message": event.message,
    }


def telemetry(event: Telemetry) -> Report:
    """What a device measured of itself."""
    return {**event.fields, "event": "telemetry", "device": event.device}


def warned(event: Warned) -> Report:
    """Something that came was ignored; names the device whose topic it came on, if it was one's."""
    levels = event.source.split("/")
    names = {"device": levels[4]} if len(levels) > 4 and levels[3] == "d" else {}
    message = f"{event.source}: {event.rule}: {event.message}"
    return {"event": "warning", "message": message, "rule": event.rule, **names}


def round_done(number: int, judged: Evaluation, figures: RoundFigures, judge_s: float) -> Report:
    """The new version was judged."""
    said = {"accuracy": judged.accuracy, "loss": judged.loss, **vars(figures)}
    return {"event": "round_done", "round": number, **said, "judge_s": judge_s}
