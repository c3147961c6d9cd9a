"""Metrics, logs and samples: all are folds over events, and every event has its row in the schema."""

from __future__ import annotations

import ast
import io
import json
import socket
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import coordinator
from coordinator.event_kinds import COMMON, EVENTS, JOB_FAILED, problems_of
from coordinator.events import json_lines, log_lines, of_job, seldom, to_all
from coordinator.metrics import MAX_RULES, Metrics
from coordinator.watch import MetricsError, every, listen_address, serve_metrics, watching

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(coordinator.__file__).parent

SAMPLE = {
    "event": "sample",
    "job": "j",
    "round": 4,
    "devices_online": 7,
    "devices_lost": 2,
    "devices_stopped": 1,
    "devices_unfit": 3,
    "open_uploads": 5,
    "waiting_uploads": 11,
    "open_bytes": 1_000_000,
    "connects": 2,
    "connected": 1,
    "bytes_in": 5000,
    "bytes_out": 700,
    "disk_free_bytes": 10**9,
    "disk_usable": 1,
    "rss_peak_kb": 2048,
}
UPDATE = {
    "event": "update",
    "job": "j",
    "device": "a",
    "task": "j.1.a",
    "round": 1,
    "staleness": 0,
    "examples": 5,
    "loss": 0.5,
    "bytes": 300,
}
ROUND = {
    "event": "round_done",
    "job": "j",
    "round": 1,
    "accuracy": 0.75,
    "loss": 0.5,
    "devices": 2,
    "cohort": 3,
    "bytes_up": 600,
    "bytes_down": 4000,
    "seconds": 2.0,
    "judge_s": 0.25,
}


def folded(*events: dict[str, Any]) -> Metrics:
    metrics = Metrics()
    for event in events:
        assert problems_of(event) == []
        metrics.take(event)
    return metrics


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"edge_{name}", labels)


def test_updates_are_counted_by_job_with_their_bytes_and_the_time_of_their_commits() -> None:
    metrics = folded(*({**UPDATE, "commit_s": seconds} for seconds in (0.002, 0.02, 0.2)))
    assert value(metrics, "updates_accepted_total", job="j") == 3
    assert value(metrics, "update_bytes_total", job="j") == 900
    assert value(metrics, "update_commit_seconds_sum") == pytest.approx(0.222)
    assert value(metrics, "update_commit_seconds_bucket", le="0.003") == 1
    assert value(metrics, "update_commit_seconds_bucket", le="0.03") == 2
    assert value(metrics, "update_staleness_versions_bucket", le="0.0") == 3


def test_refusals_failures_and_ignored_messages_are_counted_by_rule() -> None:
    refused = {"event": "refused", "job": "j", "device": "a", "message": "m"}
    failed = {"event": "task_failed", "job": "j", "device": "a", "round": 1, "rule": "PlanTooLarge", "message": "m"}
    metrics = folded(
        {**refused, "rule": "NonFinite"},
        {**refused, "rule": "NonFinite"},
        {**refused, "rule": "GatewayBusy", "retry_s": 5.0},
        failed,
        {"event": "warning", "message": "m", "rule": "BadTopic", "device": "a"},
        {"event": "warning", "message": "no rule, so nothing was ignored"},
    )
    assert value(metrics, "updates_refused_total", job="j", rule="NonFinite") == 2
    assert value(metrics, "updates_refused_total", job="j", rule="GatewayBusy") == 1
    assert value(metrics, "tasks_failed_total", job="j", rule="PlanTooLarge") == 1
    assert value(metrics, "messages_ignored_total", rule="BadTopic") == 1


def test_rules_that_devices_make_up_cannot_grow_the_endpoint_without_bound() -> None:
    failed = {"event": "task_failed", "job": "j", "device": "a", "round": 1, "message": "m"}
    metrics = folded(*({**failed, "rule": f"Made{number}"} for number in range(10 * MAX_RULES)))
    assert value(metrics, "tasks_failed_total", job="j", rule="other") == 9 * MAX_RULES
    metrics.take({"event": "refused", "job": "j", "device": "a", "rule": "NonFinite", "message": "m"})
    assert value(metrics, "updates_refused_total", job="j", rule="NonFinite") == 1, "our own rules keep their names"
    (family,) = [each for each in metrics.registry.collect() if each.name == "edge_tasks_failed"]
    assert len({sample.labels["rule"] for sample in family.samples}) == MAX_RULES + 1


def test_no_metric_has_a_device_among_its_labels() -> None:
    metrics = folded(
        SAMPLE, {**UPDATE, "commit_s": 0.1}, ROUND, {"event": "device", "device": "a", "state": "lost", "examples": 1}
    )
    labels = {name for family in metrics.registry.collect() for sample in family.samples for name in sample.labels}
    assert labels <= {"job", "rule", "event", "presence", "outcome", "le"}


def test_a_sample_sets_gauges_and_raises_counters_to_the_totals_of_the_process() -> None:
    metrics = folded(SAMPLE, {**SAMPLE, "bytes_in": 6000, "connects": 3, "open_uploads": 0, "devices_online": 8})
    assert value(metrics, "devices", presence="online") == 8
    assert value(metrics, "devices", presence="lost") == 2
    assert value(metrics, "received_bytes_total") == 6000
    assert value(metrics, "sent_bytes_total") == 700
    assert value(metrics, "broker_connects_total") == 3
    metrics.take({**SAMPLE, "bytes_in": 100, "connects": 1})  # the next job of a home has a link of its own
    assert value(metrics, "received_bytes_total") == 6100
    assert value(metrics, "broker_connects_total") == 4
    assert value(metrics, "memory_peak_bytes") == 2 << 20


def test_a_round_and_the_end_of_a_job_are_shown() -> None:
    listening = {
        "event": "listening",
        "job": "j",
        "url": "u",
        "broker": "external",
        "site": "s",
        "round": 1,
        "state": "",
    }
    version = {"event": "version", "job": "j", "round": 1, "version": 2, "fold_s": 0.5, "commit_s": 0.01}
    metrics = folded(listening, version, ROUND)
    assert value(metrics, "job_running", job="j") == 1
    assert value(metrics, "rounds_total", job="j") == 1
    assert value(metrics, "accuracy_ratio", job="j") == 0.75
    assert value(metrics, "fold_seconds_sum") == 0.5
    assert value(metrics, "judge_seconds_sum") == 0.25
    metrics.take({"event": "error", "job": "j", "message": "m", "rule": "SubscriptionRefused"})
    assert value(metrics, "job_running", job="j") == 1, "it is tried again"
    metrics.take({"event": "error", "job": "j", "message": "m", "rule": JOB_FAILED})
    assert value(metrics, "job_running", job="j") == 0
    assert value(metrics, "jobs_ended_total", outcome="failed") == 1


def test_a_job_that_gave_way_does_not_run_and_an_idle_home_has_no_link_and_no_devices() -> None:
    listening = {"event": "listening", "url": "u", "broker": "external", "site": "s", "round": 1, "state": ""}
    metrics = folded({**listening, "job": "j"}, SAMPLE, {**listening, "job": "k"})
    assert (value(metrics, "job_running", job="j"), value(metrics, "job_running", job="k")) == (0, 1)
    assert value(metrics, "devices", presence="online") == 7
    metrics.take({"event": "idle", "home": "h", "url": "u"})
    assert value(metrics, "job_running", job="k") == 0
    assert value(metrics, "devices", presence="online") == 0
    assert value(metrics, "broker_connected") == 0


def test_a_disk_that_takes_nothing_shows_until_it_does() -> None:
    metrics = folded({"event": "stalled", "job": "j", "message": "m", "rule": "JournalUnwritable", "retry_s": 5.0})
    assert value(metrics, "disk_usable") == 0
    metrics.take({"event": "writable", "job": "j", "round": 1})
    assert value(metrics, "disk_usable") == 1
    metrics.take(SAMPLE | {"disk_usable": 0})
    assert value(metrics, "disk_usable") == 0


def test_the_endpoint_shows_the_figures_in_the_text_format() -> None:
    with serve_metrics(folded(SAMPLE).registry, "127.0.0.1", 0) as url:
        text = urllib.request.urlopen(url, timeout=10).read().decode()  # noqa: S310  http, on this machine
    assert 'edge_devices{presence="online"} 7.0' in text
    assert "process_resident_memory_bytes" in text


def test_a_taken_port_is_an_error_that_names_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(MetricsError, match=rf"127\.0\.0\.1:{port}.*in use.*--metrics"), ExitStack() as stack:
            watching(lambda _: None, str(port), stack)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9100", ("127.0.0.1", 9100)),
        ("10.0.0.1:0", ("10.0.0.1", 0)),
        ("[::1]:80", ("::1", 80)),
        ("host:1", ("host", 1)),
    ],
)
def test_an_address_is_a_port_with_or_without_a_host(text: str, address: tuple[str, int]) -> None:
    assert listen_address(text) == address


@pytest.mark.parametrize("text", ["", "x", "70000", "::1:80", "h:", ":9", "9 "])
def test_anything_else_is_refused_by_name(text: str) -> None:
    with pytest.raises(MetricsError, match="HOST"):
        listen_address(text)


def test_what_the_log_leaves_out_is_counted_all_the_same() -> None:
    metrics, stream = Metrics(), io.StringIO()
    emit = to_all(metrics.take, seldom(json_lines(stream), lambda: 0.0))
    for _ in range(100):
        emit({"event": "warning", "message": "m", "rule": "BadTopic", "device": "a"})
    assert len(stream.getvalue().splitlines()) == 1
    assert value(metrics, "messages_ignored_total", rule="BadTopic") == 100


def test_a_line_of_the_log_is_stamped_and_a_device_cannot_forge_the_stamp() -> None:
    stream = io.StringIO()
    emit = of_job(json_lines(stream, lambda: "2026-01-02T03:04:05.678Z"), "j")
    emit({"event": "device", "device": "a", "state": "online", "examples": 3})
    emit({"seq": 99, "time": "never", "level": "error", "job": "other", "event": "telemetry", "device": "a"})
    emit({"event": "refused", "device": "a", "rule": "R", "message": "m"})
    first, second, third = (json.loads(line) for line in stream.getvalue().splitlines())
    assert list(first)[:4] == ["seq", "time", "level", "event"]
    assert [line["seq"] for line in (first, second, third)] == [1, 2, 3]
    assert second | {"seq": 2, "time": "2026-01-02T03:04:05.678Z", "level": "info", "job": "j"} == second
    assert third["level"] == "warning"


def test_the_time_is_rfc_3339_in_utc() -> None:
    stream = io.StringIO()
    json_lines(stream)({"event": "warning", "message": "m"})
    (line,) = stream.getvalue().splitlines()
    date, _, clock = json.loads(line)["time"].partition("T")
    assert (len(date), len(clock), clock[-1], clock[8]) == (10, 13, "Z", ".")


def test_samples_are_not_in_the_readable_log() -> None:
    stream = io.StringIO()
    log_lines(stream)(SAMPLE)
    assert stream.getvalue() == ""


def test_something_every_so_often_is_not_done_at_once() -> None:
    done: list[float] = []
    now = 0.0
    at = every(5.0, lambda: done.append(now))
    for now in (10.0, 14.9, 15.0, 15.1, 19.9, 20.0, 90.0):
        at(now)
    assert done == [15.0, 20.0, 90.0]


def event_literals() -> Iterator[tuple[str, str, frozenset[str], bool]]:
    """Every dictionary in the package's code that is an event: place, kind, literal keys, whether more join them."""
    for path in sorted(set(PACKAGE.glob("*.py")) - {PACKAGE / "event_kinds.py"}):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Dict):
                continue
            literal = {
                key.value: item
                for key, item in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant) and isinstance(key.value, str)
            }
            kind = literal.get("event")
            if isinstance(kind, ast.Constant):
                yield f"{path.name}:{node.lineno}", str(kind.value), frozenset(literal) - {"event"}, None in node.keys


def test_every_event_in_the_code_is_in_the_schema_and_every_kind_of_the_schema_is_told() -> None:
    found = list(event_literals())
    for place, kind, keys, joined in found:
        assert kind in EVENTS, f"{place}: no row for {kind} in coordinator/event_kinds.py"
        allowed = EVENTS[kind].fields.keys() | COMMON.keys()
        assert EVENTS[kind].open or keys <= allowed, f"{place}: {kind} has {sorted(keys - allowed)}"
        missing = EVENTS[kind].fields.keys() - EVENTS[kind].optional - keys
        assert joined or not missing, f"{place}: {kind} lacks {sorted(missing)}"
    assert {kind for _, kind, _, _ in found} == EVENTS.keys()
