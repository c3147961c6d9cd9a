"""Prometheus metrics of a coordinator: a fold over its events.

Labels are jobs, rules, kinds of events, presences and outcomes; never devices, of which there may be any number. A rule
that a device makes up itself counts as "other" once MAX_RULES are known.
"""

from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

__all__ = ["Metrics"]

MAX_RULES = 64
# Commits take from 0.1 ms on a server's disk to seconds on a worn card; folds and evaluations from there to minutes.
COMMIT_BUCKETS_S = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
WORK_BUCKETS_S = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
ROUND_BUCKETS_S = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3600.0, 14400.0)
STALENESS_BUCKETS = (0, 1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The figures of one coordinator.

    Attributes:
        registry: What an endpoint shows.
        labels: The labels of each family, by its name without the suffix of counters.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.labels: dict[str, tuple[str, ...]] = {}
        self._rules: set[str] = set()
        self._seen: dict[str, float] = {}
        self._job_running = self._gauge("job_running", "1 while the job runs, 0 when it has ended", "job")
        self._jobs = self._counter("jobs_ended", "jobs that have ended", "outcome")
        self._round = self._gauge("round", "the round that is gathered for, collected or judged", "job")
        self._rounds = self._counter("rounds", "rounds judged", "job")
        self._attempts = self._counter("round_attempts", "rounds started, repeated attempts included", "job")
        self._accuracy = self._gauge("accuracy_ratio", "held-out accuracy of the newest version", "job")
        self._loss = self._gauge("loss", "held-out loss of the newest version", "job")
        self._accepted = self._counter("updates_accepted", "updates in the journal", "job")
        self._refused = self._counter("updates_refused", "offered updates that were not taken", "job", "rule")
        self._update_bytes = self._counter("update_bytes", "bytes of accepted updates", "job")
        self._version_bytes = self._counter("download_bytes", "weights and plans of judged rounds, as computed", "job")
        self._failed = self._counter("tasks_failed", "tasks that devices could not do", "job", "rule")
        self._ignored = self._counter("messages_ignored", "messages that broke a rule", "rule")
        self._events = self._counter("events", "events told, by kind", "event")
        self._update_commit = self._histogram("update_commit_seconds", "making an update durable", COMMIT_BUCKETS_S)
        self._version_commit = self._histogram("version_commit_seconds", "making a version durable", COMMIT_BUCKETS_S)
        self._fold = self._histogram("fold_seconds", "folding a round", WORK_BUCKETS_S)
        self._judge = self._histogram("judge_seconds", "evaluating a version", WORK_BUCKETS_S)
        self._round_time = self._histogram("round_seconds", "from a round's start to its version", ROUND_BUCKETS_S)
        self._staleness = self._histogram(
            "update_staleness_versions", "versions made between an update's task and its acceptance", STALENESS_BUCKETS
        )
        self._devices = self._gauge("devices", "devices known, by presence", "presence")
        self._unfit = self._gauge("devices_unfit", "devices that take no further part in the job")
        self._open_uploads = self._gauge("open_uploads", "uploads under way")
        self._waiting = self._gauge("waiting_uploads", "devices that wait for room to upload")
        self._open_bytes = self._gauge("open_upload_bytes", "memory promised to uploads under way")
        self._connected = self._gauge("broker_connected", "1 while there is a connection to the broker")
        self._connects = self._counter("broker_connects", "connections to the broker since the start")
        self._received = self._counter("received_bytes", "topic and payload bytes from the broker")
        self._sent = self._counter("sent_bytes", "topic and payload bytes to the broker")
        self._disk_free = self._gauge("disk_free_bytes", "room on the file system of the state directory")
        self._disk_usable = self._gauge("disk_usable", "1 while updates can be made durable, 0 while the disk is full")
        self._disk_usable.set(1)
        self._peak = self._gauge("memory_peak_bytes", "peak resident set of the coordinator")

    def take(self, event: Mapping[str, Any]) -> None:
        """One event of coordinator.event_kinds; a kind that no metric is made of is counted all the same."""
        self._events.labels(event["event"]).inc()
        take = _TAKE.get(event["event"])
        if take is not None:
            take(self, event)

    def _counter(self, name: str, help_: str, *labels: str) -> Counter:
        self.labels[f"edge_{name}"] = labels
        return Counter(name, help_, labels, namespace="edge", registry=self.registry)

    def _gauge(self, name: str, help_: str, *labels: str) -> Gauge:
        self.labels[f"edge_{name}"] = labels
        return Gauge(name, help_, labels, namespace="edge", registry=self.registry)

    def _histogram(self, name: str, help_: str, buckets: tuple[float, ...]) -> Histogram:
        self.labels[f"edge_{name}"] = ()
        return Histogram(name, help_, namespace="edge", registry=self.registry, buckets=buckets)

    def _bounded(self, rule: str) -> str:
        """The rule as a label: a device may name a failure as it likes, and every label lives as long as we do."""
        if rule not in self._rules and len(self._rules) >= MAX_RULES:
            return "other"
        self._rules.add(rule)
        return rule

    def _raise_to(self, counter: Counter, name: str, total: float) -> None:
        """Bring a counter to a total that is counted elsewhere, and that begins anew with every link."""
        seen = self._seen.get(name, 0.0)
        counter.inc(total - seen if total >= seen else total)
        self._seen[name] = total

    # One method a kind of event.

    def _take_listening(self, event: Mapping[str, Any]) -> None:
        self._job_running.labels(event["job"]).set(1)
        self._round.labels(event["job"]).set(event["round"])

    def _take_round_started(self, event: Mapping[str, Any]) -> None:
        self._round.labels(event["job"]).set(event["round"])
        self._attempts.labels(event["job"]).inc()

    def _take_update(self, event: Mapping[str, Any]) -> None:
        self._accepted.labels(event["job"]).inc()
        self._update_bytes.labels(event["job"]).inc(event["bytes"])
        self._update_commit.observe(event["commit_s"])
        self._staleness.observe(event.get("staleness", 0))

    def _take_refused(self, event: Mapping[str, Any]) -> None:
        self._refused.labels(event["job"], self._bounded(event["rule"])).inc()

    def _take_task_failed(self, event: Mapping[str, Any]) -> None:
        self._failed.labels(event["job"], self._bounded(event["rule"])).inc()

    def _take_warning(self, event: Mapping[str, Any]) -> None:
        if "rule" in event:
            self._ignored.labels(self._bounded(event["rule"])).inc()

    def _take_error(self, event: Mapping[str, Any]) -> None:
        if "job" in event:
            self._job_running.labels(event["job"]).set(0)
            self._jobs.labels("failed").inc()

    def _take_stalled(self, _event: Mapping[str, Any]) -> None:
        self._disk_usable.set(0)

    def _take_writable(self, _event: Mapping[str, Any]) -> None:
        self._disk_usable.set(1)

    def _take_version(self, event: Mapping[str, Any]) -> None:
        self._fold.observe(event["fold_s"])
        self._version_commit.observe(event["commit_s"])

    def _take_round_done(self, event: Mapping[str, Any]) -> None:
        job = event["job"]
        self._rounds.labels(job).inc()
        self._accuracy.labels(job).set(event["accuracy"])
        self._loss.labels(job).set(event["loss"])
        self._version_bytes.labels(job).inc(event["bytes_down"])
        self._judge.observe(event["judge_s"])
        self._round_time.observe(event["seconds"])

    def _take_job_done(self, event: Mapping[str, Any]) -> None:
        self._job_running.labels(event["job"]).set(0)
        self._jobs.labels("done").inc()

    def _take_sample(self, event: Mapping[str, Any]) -> None:
        self._round.labels(event["job"]).set(event["round"])
        for presence in ("online", "lost", "stopped"):
            self._devices.labels(presence).set(event[f"devices_{presence}"])
        self._unfit.set(event["devices_unfit"])
        self._open_uploads.set(event["open_uploads"])
        self._waiting.set(event["waiting_uploads"])
        self._open_bytes.set(event["open_bytes"])
        self._connected.set(event["connected"])
        self._raise_to(self._connects, "connects", event["connects"])
        self._raise_to(self._received, "bytes_in", event["bytes_in"])
        self._raise_to(self._sent, "bytes_out", event["bytes_out"])
        self._disk_free.set(event["disk_free_bytes"])
        self._peak.set(event["rss_peak_kb"] * 1024)


_TAKE: Mapping[str, Callable[[Metrics, Mapping[str, Any]], None]] = {
    "listening": Metrics._take_listening,  # noqa: SLF001  the table belongs to the class
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
