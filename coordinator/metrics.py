"""Prometheus metrics of a coordinator: a fold over its events.

Labels are jobs, rules, kinds of events, presences and outcomes; never devices, of which there may be any number. The
rule of a failed task is the device's word: it counts as "other" once MAX_RULES are known.
"""

from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from coordinator.event_kinds import JOB_FAILED

__all__ = ["Metrics"]

PREFIX = "edge"
PRESENCES = ("online", "lost", "stopped")
MAX_RULES = 64

# Name -> what it means, and its labels.
COUNTERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "jobs_ended": ("jobs that have ended", ("outcome",)),
    "rounds": ("rounds judged", ("job",)),
    "round_attempts": ("rounds started, repeated attempts included", ("job",)),
    "updates_accepted": ("updates in the journal", ("job",)),
    "updates_refused": ("offered updates that were not taken", ("job", "rule")),
    "update_bytes": ("bytes of accepted updates", ("job",)),
    "download_bytes": ("weights and plans of judged rounds, as computed", ("job",)),
    "tasks_failed": ("tasks that devices could not do", ("job", "rule")),
    "messages_ignored": ("messages that broke a rule", ("rule",)),
    "events": ("events told, by kind", ("event",)),
    "broker_connects": ("connections to the broker since the start", ()),
    "received_bytes": ("topic and payload bytes from the broker", ()),
    "sent_bytes": ("topic and payload bytes to the broker", ()),
}
GAUGES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "job_running": ("1 while the job runs, 0 when it has ended, or has given way while paused", ("job",)),
    "round": ("the round that is gathered for, collected or judged", ("job",)),
    "accuracy_ratio": ("held-out accuracy of the newest version", ("job",)),
    "loss": ("held-out loss of the newest version", ("job",)),
    "devices": ("devices known, by presence", ("presence",)),
    "devices_unfit": ("devices that take no further part in the job", ()),
    "open_uploads": ("uploads under way", ()),
    "waiting_uploads": ("devices that wait for room to upload", ()),
    "open_upload_bytes": ("memory promised to uploads under way", ()),
    "broker_connected": ("1 while there is a connection to the broker; an idle home has none", ()),
    "disk_free_bytes": ("room on the file system of the state directory", ()),
    "disk_usable": ("1 while updates can be made durable, 0 where the disk takes nothing or not the next version", ()),
    "memory_peak_bytes": ("peak resident set of the coordinator", ()),
}
# Name -> what it means, and the upper ends of its buckets. Commits take from 0.1 ms on a server's disk to seconds on a
# worn card; folds and evaluations from there to minutes.
_COMMIT_S = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_WORK_S = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
_ROUND_S = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3600.0, 14400.0)
HISTOGRAMS: Mapping[str, tuple[str, tuple[float, ...]]] = {
    "update_commit_seconds": ("making an update durable", _COMMIT_S),
    "version_commit_seconds": ("making a version durable", _COMMIT_S),
    "fold_seconds": ("folding a round", _WORK_S),
    "judge_seconds": ("evaluating a version", _WORK_S),
    "round_seconds": ("from a round's start to its version", _ROUND_S),
    "update_staleness_versions": (
        "versions made between an update's task and its acceptance",
        (0, 1, 2, 4, 8, 16, 32, 64, 128),
    ),
}


class Metrics:
    """The figures of one coordinator.

    Attributes:
        registry: What an endpoint shows.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._counters = {
            name: Counter(name, text, labels, namespace=PREFIX, registry=registry)
            for name, (text, labels) in COUNTERS.items()
        }
        self._gauges = {
            name: Gauge(name, text, labels, namespace=PREFIX, registry=registry)
            for name, (text, labels) in GAUGES.items()
        }
        self._histograms = {
            name: Histogram(name, text, namespace=PREFIX, registry=registry, buckets=upper)
            for name, (text, upper) in HISTOGRAMS.items()
        }
        self._gauges["disk_usable"].set(1)
        self._rules: set[str] = set()
        self._jobs: set[str] = set()
        self._totals: dict[str, float] = {}

    def take(self, event: Mapping[str, Any]) -> None:
        """One event of coordinator.event_kinds; a kind that no metric is made of is counted all the same."""
        self._counters["events"].labels(event["event"]).inc()
        take = _TAKE.get(event["event"])
        if take is not None:
            take(self, event)

    def _bounded(self, rule: str) -> str:
        """A device's rule as a label: it may name a failure as it likes, and every label lives as long as we do."""
        if rule not in self._rules and len(self._rules) >= MAX_RULES:
            return "other"
        self._rules.add(rule)
        return rule

    def _raise_to(self, name: str, total: float) -> None:
        """Bring a counter to a total that is counted elsewhere, and that begins anew with every link."""
        seen = self._totals.get(name, 0.0)
        self._counters[name].inc(total - seen if total >= seen else total)
        self._totals[name] = total

    # One method a kind of event.

    def _take_listening(self, event: Mapping[str, Any]) -> None:
        self._nothing_runs()
        self._jobs.add(event["job"])
        self._gauges["job_running"].labels(event["job"]).set(1)
        self._gauges["round"].labels(event["job"]).set(event["round"])

    def _take_idle(self, _event: Mapping[str, Any]) -> None:
        self._nothing_runs()
        self._gauges["broker_connected"].set(0)
        for presence in PRESENCES:
            self._gauges["devices"].labels(presence).set(0)

    def _nothing_runs(self) -> None:
        """One job runs at a time, and one that is paused gives way without a word of its own."""
        for job in self._jobs:
            self._gauges["job_running"].labels(job).set(0)

    def _take_round_started(self, event: Mapping[str, Any]) -> None:
        self._gauges["round"].labels(event["job"]).set(event["round"])
        self._counters["round_attempts"].labels(event["job"]).inc()

    def _take_update(self, event: Mapping[str, Any]) -> None:
        self._counters["updates_accepted"].labels(event["job"]).inc()
        self._counters["update_bytes"].labels(event["job"]).inc(event["bytes"])
        self._histograms["update_commit_seconds"].observe(event["commit_s"])
        self._histograms["update_staleness_versions"].observe(event.get("staleness", 0))

    def _take_refused(self, event: Mapping[str, Any]) -> None:
        self._counters["updates_refused"].labels(event["job"], event["rule"]).inc()

    def _take_task_failed(self, event: Mapping[str, Any]) -> None:
        self._counters["tasks_failed"].labels(event["job"], self._bounded(event["rule"])).inc()

    def _take_warning(self, event: Mapping[str, Any]) -> None:
        if "rule" in event:
            self._counters["messages_ignored"].labels(event["rule"]).inc()

    def _take_error(self, event: Mapping[str, Any]) -> None:
        if event.get("rule") == JOB_FAILED:
            self._gauges["job_running"].labels(event["job"]).set(0)
            self._counters["jobs_ended"].labels("failed").inc()

    def _take_stalled(self, _event: Mapping[str, Any]) -> None:
        self._gauges["disk_usable"].set(0)

    def _take_writable(self, _event: Mapping[str, Any]) -> None:
        self._gauges["disk_usable"].set(1)

    def _take_version(self, event: Mapping[str, Any]) -> None:
        self._histograms["fold_seconds"].observe(event["fold_s"])
        self._histograms["version_commit_seconds"].observe(event["commit_s"])

    def _take_round_done(self, event: Mapping[str, Any]) -> None:
        job = event["job"]
        self._counters["rounds"].labels(job).inc()
        self._gauges["accuracy_ratio"].labels(job).set(event["accuracy"])
        self._gauges["loss"].labels(job).set(event["loss"])
        self._counters["download_bytes"].labels(job).inc(event["bytes_down"])
        self._histograms["judge_seconds"].observe(event["judge_s"])
        self._histograms["round_seconds"].observe(event["seconds"])

    def _take_job_done(self, event: Mapping[str, Any]) -> None:
        self._gauges["job_running"].labels(event["job"]).set(0)
        self._counters["jobs_ended"].labels("done").inc()

    def _take_sample(self, event: Mapping[str, Any]) -> None:
        self._gauges["round"].labels(event["job"]).set(event["round"])
        for presence in PRESENCES:
            self._gauges["devices"].labels(presence).set(event[f"devices_{presence}"])
        self._gauges["devices_unfit"].set(event["devices_unfit"])
        self._gauges["open_uploads"].set(event["open_uploads"])
        self._gauges["waiting_uploads"].set(event["waiting_uploads"])
        self._gauges["open_upload_bytes"].set(event["open_bytes"])
        self._gauges["broker_connected"].set(event["connected"])
        self._raise_to("broker_connects", event["connects"])
        self._raise_to("received_bytes", event["bytes_in"])
        self._raise_to("sent_bytes", event["bytes_out"])
        self._gauges["disk_free_bytes"].set(event["disk_free_bytes"])
        self._gauges["disk_usable"].set(event["disk_usable"])
        self._gauges["memory_peak_bytes"].set(event["rss_peak_kb"] * 1024)


_TAKE: Mapping[str, Callable[[Metrics, Mapping[str, Any]], None]] = {
    "listening": Metrics._take_listening,  # noqa: SLF001  the table belongs to the class
    "idle": Metrics._take_idle,  # noqa: SLF001
    "round_started": Metrics._take_round_started,  # noqa: SLF001
    "update": Metrics._take_update,  # noqa: SLF001
    "refused": Metrics._take_refused,  # noqa: SLF001
    "task_failed": Metrics._take_task_failed,  # noqa: SLF001
    "warning": Metrics._take_warning,  # noqa: SLF001
    "error": Metrics._take_error,  # noqa: SLF001
    "stalled": Metrics._take_stalled,  # noqa: SLF001
    "writable": Metrics._take_writable,  # noqa: SLF001
    "version": Metrics._take_version,  # noqa: SLF001
    "round_done": Metrics._take_round_done,  # noqa: SLF001
    "job_done": Metrics._take_job_done,  # noqa: SLF001
    "sample": Metrics._take_sample,  # noqa: SLF001
}
