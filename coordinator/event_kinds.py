"""Every event a coordinator tells, its level and its fields: the schema of the log, shown in docs/monitoring.md."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

INFO, WARNING, ERROR = "info", "warning", "error"

# The rule of the error event that ends a job; other errors end, or stop, the coordinator.
JOB_FAILED = "JobFailed"

# What json_lines puts into every line beside the event's own fields; `job` is missing before the job file was read.
COMMON: Mapping[str, str] = MappingProxyType(
    {
        "seq": "1, 2, 3 ... since the process started: the order of events, whatever the clock does",
        "time": "RFC 3339, UTC, milliseconds; for people, nothing is decided by it",
        "level": "info, warning or error",
        "event": "the kind",
        "job": "name of the job",
    }
)


@dataclass(frozen=True)
class Kind:
    """One kind of event: its level, what its fields mean, and which of them may be missing."""

    meaning: str
    fields: Mapping[str, str]
    level: str = INFO
    optional: frozenset[str] = frozenset()
    open: bool = False  # further fields are the device's own measurements


_FIGURES = {
    "accuracy": "held-out, 0 .. 1",
    "loss": "held-out mean",
    "devices": "updates folded",
    "cohort": "tasks sent: devices asked, and in an asynchronous job each as often as it was",
    "bytes_up": "of the accepted updates",
    "bytes_down": "weights or deltas, once for every device asked, by what its last update says it holds, and plans "
    "for those that had not been sent them; what a device really received is in its telemetry",
    "seconds": "from the start of the round, or of the coordinator where that was later, to the new version's commit",
    "judge_s": "seconds the evaluation took",
}

EVENTS: Mapping[str, Kind] = MappingProxyType(
    {
        "listening": Kind(
            "the coordinator is about to go on its site",
            {
                "url": "the broker, without password",
                "broker": "external, mosquitto or embedded",
                "site": "first part of every topic",
                "round": "the one to be done next",
                "state": "the state directory",
                "metrics": "URL of the metrics endpoint",
            },
            optional=frozenset({"metrics"}),
        ),
        "idle": Kind(
            "no job of the home is ready",
            {
                "home": "its directory",
                "url": "the broker, without password",
                "metrics": "URL of the metrics endpoint",
            },
            optional=frozenset({"metrics"}),
        ),
        "device": Kind(
            "a device came or went",
            {
                "device": "id",
                "state": "online, lost or stopped",
                "examples": "as it announced",
                "evicted": "true: an operator took it out of the job",
            },
            optional=frozenset({"evicted"}),
        ),
        "request": Kind(
            "an operator's request was answered",
            {
                "verb": "pause, resume, stop, rollback, evict or readmit",
                "argument": "a version or a device, or empty",
                "asked_by": "user@machine",
                "done": "false: it was refused",
                "message": "what came of it",
            },
        ),
        "stalled": Kind(
            "the disk takes nothing: updates are refused for now, nothing is lost",
            {"message": "why", "rule": "JournalUnwritable", "retry_s": "when devices offer their updates again"},
            ERROR,
        ),
        "writable": Kind("the disk takes writes again, and the job goes on", {"round": "the one to be done next"}),
        "waiting": Kind(
            "a round cannot start yet",
            {"round": "number", "devices": "that could start it now", "needed": "how many it waits for"},
        ),
        "round_started": Kind(
            "devices were asked", {"round": "number", "attempt": "from 1", "cohort": "number of devices asked"}
        ),
        "asked": Kind(
            "devices were asked, of an asynchronous schedule",
            {"round": "the version they start from", "devices": "number"},
        ),
        "update": Kind(
            "an update is in the journal and counts",
            {
                "device": "id",
                "task": "which it answers",
                "round": "in which it counts",
                "staleness": "how many versions it is behind that round's",
                "examples": "it was trained on",
                "loss": "mean training loss",
                "bytes": "of the update as sent",
                "commit_s": "seconds the journal took to make it durable",
            },
        ),
        "refused": Kind(
            "an offered update was not taken",
            {
                "device": "id",
                "rule": "the rule it broke",
                "message": "the value that broke it",
                "retry_s": "seconds after which it may be offered again",
            },
            level=WARNING,
            optional=frozenset({"retry_s"}),
        ),
        "task_failed": Kind(
            "a device says that it cannot do its task",
            {"device": "id", "round": "number", "rule": "as the device names it", "message": "the device's words"},
            level=WARNING,
        ),
        "version": Kind(
            "a round was folded into a new version, which is in the journal",
            {
                "round": "number",
                "version": "the new one",
                "fold_s": "seconds the fold took",
                "commit_s": "seconds the journal took to make the version durable",
            },
        ),
        "round_done": Kind("the new version was judged", {"round": "number", **_FIGURES}),
        "telemetry": Kind(
            "what a device measured of itself: rss_peak_kb, import_s, bytes_up, bytes_down, train_s, task",
            {"device": "id"},
            open=True,
        ),
        "sample": Kind(
            "how things stand, every 5 s; not in the readable log",
            {
                "round": "number",
                "devices_online": "devices by presence",
                "devices_lost": "the same",
                "devices_stopped": "the same",
                "devices_unfit": "those that take no further part",
                "open_uploads": "uploads under way",
                "waiting_uploads": "devices that wait for room to upload",
                "open_bytes": "memory promised to them",
                "connects": "connections to the broker since the start",
                "connected": "1 while there is one, else 0",
                "bytes_in": "payload and topic bytes received since the start",
                "bytes_out": "the same, sent",
                "disk_free_bytes": "room on the state directory's file system",
                "disk_usable": "1 while that takes writes and has room for the next version, else 0",
                "rss_peak_kb": "peak resident set of the coordinator",
            },
        ),
        "warning": Kind(
            "something was ignored or may need a look",
            {"message": "what and why", "device": "id", "rule": "the rule that was broken"},
            level=WARNING,
            optional=frozenset({"device", "rule"}),
        ),
        "error": Kind(
            "the coordinator, or its job, cannot go on",
            {"message": "what and what to do", "rule": "the rule that was broken"},
            level=ERROR,
            optional=frozenset({"rule"}),
        ),
        "job_done": Kind(
            "the job is done and exported",
            {
                "rounds": "done",
                "accuracy": "of the last one",
                "model_sha256": "of final.safetensors",
                "model": "path of final.onnx",
                "rss_peak_mb": "peak resident set of the coordinator",
            },
        ),
    }
)


def problems_of(event: Mapping[str, object]) -> list[str]:
    """What an event does not keep of its kind's schema; nothing for one that is as it should be."""
    name = event.get("event")
    kind = EVENTS.get(str(name))
    if kind is None:
        return [f"unknown event {name!r}"]
    own = event.keys() - COMMON.keys()
    missing = kind.fields.keys() - kind.optional - own
    surplus = set() if kind.open else own - kind.fields.keys()
    return [*(f"{name} lacks {key}" for key in sorted(missing)), *(f"{name} has {key}" for key in sorted(surplus))]
