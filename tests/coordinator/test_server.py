"""The command: what it prints, what it returns, and that it can be stopped and started again."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.broker import RunningBroker, start_broker
from coordinator.events import seldom
from coordinator.server import main
from coordinator.store import open_store
from edge_runtime.link import Connected, Link, Message
from support.boards import broker_that_denies
from support.memory import MemorySite
from support.tiny_job import made_up

JOB = """\
[job]
name = "tiny"
seed = 5
rounds = 1
[model]
zoo = "mlp"
input_shape = [6]
classes = 3
[method]
name = "fedavg"
[training]
epochs = 1
batch = 8
lr = 0.1
[round]
devices = 2
min_updates = 1
deadline_s = 60
[evaluate]
data = "held-out"
"""
DEADLINE_S = 30.0


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "held-out").mkdir()
    test = made_up(9, 30)
    np.savez(tmp_path / "held-out" / "test.npz", x=test.x, y=test.y)
    path = tmp_path / "job.toml"
    path.write_text(JOB)
    return path


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RunningBroker]:
    with start_broker(None, tmp_path / "broker", kind="embedded") as running:
        yield running


def run_main(job: Path, state: Path, *more: str) -> int:
    return main(["--job", str(job), "--state", str(state), "--broker", "mqtt://127.0.0.1:9", "--events", *more])


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def start(job: Path, state: Path, broker: RunningBroker) -> subprocess.Popen[str]:
    command = ["--job", str(job), "--state", str(state), "--broker", broker.url, "--site", "s", "--events"]
    return subprocess.Popen(
        [sys.executable, "-m", "edge_runtime", "coordinator", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(link: Link, topic: str, words: bytes) -> None:
    """Poll until a message on the topic holds the words."""
    until_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < until_s:
        for event in link.poll(0.1):
            if isinstance(event, Connected):
                link.subscribe((topic,), 1)
            if isinstance(event, Message) and words in event.payload:
                return
    raise AssertionError(f"{words!r} did not come over {topic}")


def wait_for_link(link: Link) -> None:
    until_s = time.monotonic() + DEADLINE_S
    while not link.connected and time.monotonic() < until_s:
        link.poll(0.1)


def test_a_bad_job_file_is_answered_with_every_problem_and_code_2(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job.write_text(JOB.replace("epochs = 1", "epoch = 1").replace("lr = 0.1", "lr = -1"))
    assert run_main(job, tmp_path / "state") == 2
    shown = capsys.readouterr()
    for problem in ("training.epochs is missing", 'did you mean "epochs"?', "training.lr must be greater than 0"):
        assert problem in shown.err
    (error,) = events(shown.out)
    assert (error["event"], error["rule"]) == ("error", "JobFileError")
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('zoo = "mlp"\ninput_shape = [6]\nclasses = 3', 'onnx = "bad.onnx"'), "ONNX"),
        (("classes = 3", "classes = 2"), "label 2, the model has classes 0 .. 1"),
        (("input_shape = [6]", "input_shape = [7]"), "(6,)"),
        (("lr = 0.1", 'lr = 0.1\ntrainable = ["nothing*"]'), "nothing*"),
    ],
)
def test_input_that_cannot_be_run_is_refused_before_the_network_is_touched(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], words: str
) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"this is no model")
    job.write_text(JOB.replace(*change))
    assert run_main(job, tmp_path / "state") == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("option", [("--site", "Bad/Site"), ("--broker", "http://x")])
def test_a_bad_site_or_url_is_refused(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: tuple[str, str]
) -> None:
    assert run_main(job, tmp_path / "state", *option) == 2
    assert option[1] in capsys.readouterr().err


def test_a_home_without_jobs_tells_where_its_metrics_are(tmp_path: Path, broker: RunningBroker) -> None:
    command = ["coordinator", "--home", str(tmp_path / "home"), "--broker", broker.url, "--events", "--metrics", "0"]
    (tmp_path / "home").mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "edge_runtime", *command], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        idle = json.loads(process.stdout.readline())
        text = urllib.request.urlopen(idle["metrics"], timeout=DEADLINE_S).read().decode()  # noqa: S310  http, here
        process.terminate()
        process.communicate(timeout=DEADLINE_S)
    assert idle["event"] == "idle"
    assert 'edge_events_total{event="idle"} 1.0' in text


def test_a_metrics_port_that_is_taken_is_refused_before_the_job_begins(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run_main(job, tmp_path / "state", "--metrics", str(port)) == 2
    assert f"127.0.0.1:{port}" in capsys.readouterr().err
    assert not (tmp_path / "state").exists()


def test_a_state_directory_in_use_is_refused(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_store(tmp_path / "state")
    assert run_main(job, tmp_path / "state") == 2
    assert "another coordinator" in capsys.readouterr().err
    store.close()


def finish_in_memory(job: Path, state: Path) -> str:
    site = MemorySite(job, state, {"dev-a": made_up(1, 20), "dev-b": made_up(2, 20)})
    site.start()
    for device in site.devices.values():
        device.start(site.now_s)
    site.run()
    site.stop()
    return str(site.seen("job_done")[0]["model_sha256"])


def test_a_job_that_is_done_says_so_and_exports_again(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.server.LEAVE_S", 0.1)
    sha256 = finish_in_memory(job, tmp_path / "state")
    (tmp_path / "state" / "final.onnx").unlink()
    assert run_main(job, tmp_path / "state") == 0
    told, done, *_, last = events(capsys.readouterr().out)
    assert "done already" in told["message"]
    assert (done["event"], done["model_sha256"], done["rounds"]) == ("job_done", sha256, 1)
    assert (tmp_path / "state" / "final.onnx").exists()
    assert "no link" in last["message"]


def retained_on(url: str, site: str) -> dict[str, bytes]:
    """Everything the broker keeps of a site; what it sends after our own message is not retained."""
    link, found, fence = Link(url, "collector"), dict[str, bytes](), f"edge/v1/{site}/fence"
    until_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < until_s:
        for event in link.poll(0.1):
            match event:
                case Connected():
                    link.subscribe((f"edge/v1/{site}/#",), 1)
                    link.publish(fence, b"fence", 1)
                case Message(topic, payload, _):
                    found[topic] = payload
        if fence in found:
            link.close()
            return {topic: payload for topic, payload in found.items() if topic != fence}
    raise AssertionError("the broker did not answer")


@pytest.mark.parametrize("occupied", [False, True])
def test_what_a_job_left_on_a_broker_that_was_away_at_its_end_is_taken_off_by_the_next_start(
    job: Path, tmp_path: Path, broker: RunningBroker, capsys: pytest.CaptureFixture[str], *, occupied: bool
) -> None:
    sha256 = finish_in_memory(job, tmp_path / "state")
    other = start(job, tmp_path / "other", broker) if occupied else None
    link = Link(broker.url, "left")
    if other is not None:
        wait_for(link, "edge/v1/s/gateway", b'"up"')
    wait_for_link(link)
    left = {"edge/v1/s/d/dev-a/task", f"edge/v1/s/b/{sha256}/0"}
    for topic in sorted(left):
        link.publish(topic, b"left", 1, retain=True)
    link.close()
    assert left <= retained_on(broker.url, "s").keys()
    command = ["--job", str(job), "--state", str(tmp_path / "state"), "--site", "s", "--events"]
    assert main([*command, "--broker", broker.url]) == 0
    kept = retained_on(broker.url, "s")
    assert (left & kept.keys()) == (left if occupied else set())
    assert (b'"up"' in kept["edge/v1/s/gateway"]) == occupied
    assert ("another coordinator" in capsys.readouterr().out) == occupied
    if other is not None:
        other.send_signal(signal.SIGTERM)
        other.communicate(timeout=DEADLINE_S)
        assert other.returncode == 0


def test_a_changed_job_file_is_refused_with_what_differs(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish_in_memory(job, tmp_path / "state")
    job.write_text(JOB.replace("seed = 5", "seed = 6"))
    assert run_main(job, tmp_path / "state") == 2
    assert "job.seed: was 5, is 6" in capsys.readouterr().err


def test_without_events_it_prints_readable_lines(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finish_in_memory(job, tmp_path / "state")
    assert main(["--job", str(job), "--state", str(tmp_path / "state")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("warning: job tiny is done already")
    assert lines[1].startswith("job_done rounds=1 accuracy=")


def test_sigterm_leaves_a_job_that_goes_on_when_started_again(job: Path, tmp_path: Path, broker: RunningBroker) -> None:
    link = Link(broker.url, "watcher")
    for epoch in (1, 2):
        process = start(job, tmp_path / "state", broker)
        wait_for(link, "edge/v1/s/gateway", b'"epoch":%d,"state":"up"' % epoch)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=DEADLINE_S)
        assert (process.returncode, err) == (0, "")
        assert events(out)[0]["event"] == "listening"
        assert (events(out)[0]["job"], events(out)[0]["round"]) == ("tiny", 1)
        wait_for(link, "edge/v1/s/gateway", b'"epoch":%d,"state":"stopped"' % epoch)
    link.close()


def test_a_broker_that_is_down_is_told_of_and_waited_for(job: Path, tmp_path: Path, broker: RunningBroker) -> None:
    broker.kill()
    process = start(job, tmp_path / "state", broker)
    assert process.stdout is not None
    first, second = (json.loads(process.stdout.readline()) for _ in range(2))
    assert first["event"] == "listening"
    assert "no link to the broker" in second["message"]
    broker.restart()
    link = Link(broker.url, "watcher")
    wait_for(link, "edge/v1/s/gateway", b'"state":"up"')
    link.close()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0


def test_of_two_coordinators_on_one_site_one_stops_even_when_both_start_for_the_first_time(
    job: Path, tmp_path: Path, broker: RunningBroker
) -> None:
    pair = [start(job, tmp_path / name, broker) for name in ("one", "two")]
    deadline_s = time.monotonic() + DEADLINE_S
    while all(each.poll() is None for each in pair) and time.monotonic() < deadline_s:
        with contextlib.suppress(subprocess.TimeoutExpired):
            pair[0].wait(0.1)
    loser, winner = sorted(pair, key=lambda each: each.poll() is None)
    out, _ = loser.communicate(timeout=DEADLINE_S)
    assert (loser.returncode, winner.poll()) == (3, None)
    assert events(out)[-1]["rule"] == "GatewaySuperseded"
    winner.send_signal(signal.SIGTERM)
    winner.communicate(timeout=DEADLINE_S)
    assert winner.returncode == 0


def test_a_coordinator_that_comes_later_gives_way_and_touches_nothing_of_the_job_that_runs(
    job: Path, tmp_path: Path, broker: RunningBroker
) -> None:
    link = Link(broker.url, "watcher")
    first = start(job, tmp_path / "one", broker)
    wait_for(link, "edge/v1/s/gateway", b'"epoch":1,"state":"up"')
    second = start(job, tmp_path / "two", broker)
    out, err = second.communicate(timeout=DEADLINE_S)
    assert (second.returncode, first.poll(), err) == (3, None, "")
    assert events(out)[-1]["rule"] == "GatewaySuperseded"
    assert "--site" in events(out)[-1]["message"]
    link.close()
    link = Link(broker.url, "watcher")
    wait_for(link, "edge/v1/s/gateway", b'"epoch":1,"state":"up"')
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=DEADLINE_S)
    wait_for(link, "edge/v1/s/gateway", b'"epoch":1,"state":"stopped"')
    third = start(job, tmp_path / "two", broker)
    wait_for(link, "edge/v1/s/gateway", b'"epoch":2,"state":"up"')
    third.send_signal(signal.SIGTERM)
    third.communicate(timeout=DEADLINE_S)
    link.close()
    assert (first.returncode, third.returncode) == (0, 0)


def test_a_coordinator_that_follows_a_killed_one_takes_a_higher_epoch_whatever_its_disk_says(
    job: Path, tmp_path: Path, broker: RunningBroker
) -> None:
    link = Link(broker.url, "watcher")
    killed = start(job, tmp_path / "one", broker)
    wait_for(link, "edge/v1/s/gateway", b'"epoch":1,"state":"up"')
    killed.kill()
    killed.communicate(timeout=DEADLINE_S)
    wait_for(link, "edge/v1/s/gateway", b'"epoch":1,"state":"lost"')
    follower = start(job, tmp_path / "two", broker)
    wait_for(link, "edge/v1/s/gateway", b'"epoch":2,"state":"up"')
    link.close()
    follower.send_signal(signal.SIGTERM)
    follower.communicate(timeout=DEADLINE_S)
    assert follower.returncode == 0


def test_a_broker_that_refuses_a_subscription_is_an_error_in_words(job: Path, tmp_path: Path) -> None:
    with broker_that_denies("edge/v1/+/d/+/up/#") as url:
        command = ["coordinator", "--job", str(job), "--state", str(tmp_path / "state"), "--broker", url, "--events"]
        process = subprocess.Popen([sys.executable, "-m", "edge_runtime", *command], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        told = [json.loads(process.stdout.readline()) for _ in range(5)]
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=DEADLINE_S)
    assert [each["event"] for each in told] == ["listening", "sample", "waiting", "error", "warning"]
    assert told[3]["rule"] == "SubscriptionRefused"
    assert process.returncode == 0


def test_a_warning_that_repeats_is_told_once_in_ten_seconds() -> None:
    told: list[object] = []
    now_s = [0.0]
    emit = seldom(told.append, lambda: now_s[0])
    bad = {"event": "warning", "message": "m", "rule": "BadChunk", "device": "a"}
    for device in ("a", "a", "b"):
        emit({**bad, "device": device})
    for _ in range(2):
        emit({"event": "warning", "message": "of a round"})
    assert len(told) == 4
    now_s[0] = 10.0
    emit(bad)
    assert len(told) == 5
    for index in range(5000):
        emit({**bad, "device": f"d{index}"})
    assert len(told) < 1100


def test_a_device_that_comes_and_goes_all_the_time_is_told_of_some_of_the_times_and_others_all() -> None:
    told: list[Any] = []
    emit = seldom(told.append, lambda: 0.0)
    for _ in range(1000):
        emit({"event": "device", "device": "a", "state": "lost", "examples": 1})
        emit({"event": "telemetry", "device": "a"})
    emit({"event": "device", "device": "b", "state": "online", "examples": 1})
    assert [sum(each["event"] == kind for each in told) for kind in ("device", "telemetry")] == [21, 200]
