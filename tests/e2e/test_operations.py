"""Operating a gateway with real processes: a home's queue, and requests while devices train, with kills in between."""

import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from chaos.surroundings import Disk, why_no_disks

from coordinator.demo import fleet
from edge_runtime.link import Connected, Link, Message
from support.fleet import SITE, Federation, digits_federation, write_job

EPOCHS = 60


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    running = digits_federation(tmp_path, kind="mosquitto", rounds=6, epochs=EPOCHS, grace_s=2.0)
    yield running
    running.stop()


def command(*words: str, code: int = 0) -> list[dict[str, Any]]:
    """Run `edge-runtime WORDS --json`; its exit code must be `code`."""
    done = subprocess.run(
        [sys.executable, "-m", "edge_runtime", *words, "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def start_home(federation: Federation) -> None:
    """A coordinator on ROOT/home, in the place of the one of a single job."""
    words = ["--home", str(federation.root / "home"), "--broker", federation.broker.url, "--site", SITE, "--events"]
    with (federation.root / "coordinator.log").open("ab") as errors:
        federation.coordinator = subprocess.Popen(
            [sys.executable, "-m", "edge_runtime", "coordinator", *words], stdout=subprocess.PIPE, stderr=errors
        )
    federation.reader = fleet.EventReader(federation.coordinator)


def submit(federation: Federation, name: str, **changes: object) -> None:
    write_job(federation.root, **{"name": name, "devices": 4, "rounds": 3, "epochs": EPOCHS, "grace_s": 2.0, **changes})
    command("job", "submit", str(federation.root / "job.toml"), "--home", str(federation.root / "home"))


def of_round(federation: Federation, kind: str, number: int) -> dict[str, Any]:
    return federation.until(lambda e: e["event"] == kind and e["round"] == number, f"{kind} {number}")


def answered(federation: Federation, verb: str) -> None:
    event = federation.until(lambda e: e["event"] == "request" and e["verb"] == verb, f"answer to {verb}")
    assert event["done"], event


def test_a_home_runs_its_jobs_one_after_the_other_and_takes_more_while_it_runs(federation: Federation) -> None:
    home = str(federation.root / "home")
    submit(federation, "first")
    submit(federation, "second", seed=2)
    # Nothing outside the home is needed any more.
    (federation.root / "model.onnx").rename(federation.root / "elsewhere.onnx")
    (federation.root / fleet.HELD_OUT).rename(federation.root / "elsewhere")
    assert [(each["name"], each["state"]) for each in command("job", "list", "--home", home)] == [
        ("first", "queued"),
        ("second", "queued"),
    ]
    start_home(federation)
    for name in federation.names:
        federation.start_device(name)
    federation.until(lambda e: e["event"] == "job_done" and e["job"] == "first", "end of the first job")
    (federation.root / "elsewhere.onnx").rename(federation.root / "model.onnx")
    (federation.root / "elsewhere").rename(federation.root / fleet.HELD_OUT)
    submit(federation, "third", rounds=1)
    watched = command("job", "watch", "third", "--home", home)
    assert [each["round"] for each in watched if "note" in each] == [1]
    assert watched[-1]["state"] == "done"
    federation.until(lambda e: e["event"] == "idle", "idle home")
    order = [e["job"] for e in federation.seen if e["event"] == "job_done"]
    assert order == ["first", "second", "third"]
    # However short a job is: the metrics have its link, its devices and its bytes.
    last = {e["job"]: e for e in federation.seen if e["event"] == "sample"}
    assert {name: (e["connected"], e["devices_online"]) for name, e in last.items()} == dict.fromkeys(order, (1, 4))
    (shown,) = command("job", "show", "first", "--home", home)
    assert (shown["reason"], shown["round"], shown["version"]) == ("all 3 rounds are done", 3, 4)
    devices = command("device", "list", "first", "--home", home)
    assert [(each["device"], each["updates"], each["last_round"]) for each in devices] == [
        (name, 3, 3) for name in federation.names
    ]


def test_a_paused_job_gives_way_and_one_that_was_stopped_offline_is_taken_off_the_broker(
    federation: Federation,
) -> None:
    home = str(federation.root / "home")
    submit(federation, "first", rounds=100_000)
    submit(federation, "second", rounds=2)
    start_home(federation)
    for name in federation.names:
        federation.start_device(name)
    of_round(federation, "round_done", 1)
    command("job", "pause", "first", "--home", home)
    federation.until(lambda e: e["event"] == "job_done" and e["job"] == "second", "end of the second job")
    assert [each["state"] for each in command("job", "list", "--home", home)] == ["paused", "done"]
    command("job", "resume", "first", "--home", home)
    federation.until(lambda e: e["event"] == "round_done" and e["job"] == "first", "a round of the resumed job")
    federation.until(lambda e: e["event"] == "round_started", "the next one")
    federation.kill_coordinator()
    assert retained(federation) != []
    command("job", "stop", "first", "--home", home)
    start_home(federation)
    federation.until(lambda e: e["event"] == "idle", "idle home")
    assert retained(federation) == []


def retained(federation: Federation) -> list[str]:
    """Topics of tasks and blobs that the broker keeps; what it sends after our own message is not retained."""
    found, fence = list[str](), f"edge/v1/{SITE}/fence"
    with closing(Link(federation.broker.url, "a-look-around")) as link:
        while fence not in found:
            for event in link.poll(0.1):
                if isinstance(event, Connected):
                    link.subscribe((f"edge/v1/{SITE}/#",), 1)
                    link.publish(fence, b"fence", 1)
                elif isinstance(event, Message):
                    found.append(event.topic)
    return [topic for topic in found if "/b/" in topic or topic.endswith("/task")]


def test_pause_resume_rollback_evict_and_stop_while_devices_train(federation: Federation) -> None:
    state = ("--state", str(federation.root / "coordinator"))
    write_job(federation.root, devices=4, rounds=40, epochs=EPOCHS, grace_s=2.0)
    federation.start()
    of_round(federation, "round_started", 2)
    command("job", "pause", *state)
    answered(federation, "pause")
    (shown,) = command("job", "show", *state)
    time.sleep(1.0)
    (later,) = command("job", "show", *state)
    assert shown["state"] == later["state"] == "paused"
    assert later["round"] - shown["round"] <= 1
    command("job", "resume", *state)
    answered(federation, "resume")
    of_round(federation, "round_done", later["round"] + 1)
    command("job", "pause", *state)  # so that the version stays kept until the request comes
    kept = command("job", "show", *state)[0]["versions"][0]["version"]
    command("job", "rollback", str(kept), *state)
    command("job", "resume", *state)
    answered(federation, "rollback")
    command("device", "evict", "dev-2", *state)
    answered(federation, "evict")
    begun = federation.until(lambda e: e["event"] == "round_started", "next round")["round"]
    of_round(federation, "round_done", begun)
    assert federation.seen[-1]["devices"] == 3
    command("job", "rollback", "1000", *state, code=3)
    command("job", "stop", *state)
    done = federation.until_done()
    (shown,) = command("job", "show", *state)
    assert shown["state"] == "done"
    assert shown["reason"].startswith("stopped by ")
    assert shown["versions"][-1]["sha256"] == done["model_sha256"]
    with closing(sqlite3.connect(federation.root / "coordinator" / "journal.sqlite")) as journal:
        ((note,),) = journal.execute("SELECT note FROM rounds_v1 WHERE note IS NOT NULL")
    assert f"back to version {kept}, asked by" in note


@pytest.mark.parametrize("verb", ["pause", "rollback", "evict"])
def test_a_coordinator_that_is_killed_with_a_request_on_its_way_carries_it_out_once(
    federation: Federation, verb: str
) -> None:
    state = str(federation.root / "coordinator")
    argument = {"pause": [], "rollback": ["2"], "evict": ["dev-2"]}[verb]
    kind = "device" if verb == "evict" else "job"
    federation.start()
    of_round(federation, "round_started", 3)
    assert federation.coordinator is not None
    federation.coordinator.send_signal(signal.SIGSTOP)
    command(kind, verb, *argument, "--state", state, "--timeout", "0.3", code=4)
    federation.coordinator.send_signal(signal.SIGCONT)
    time.sleep(0.05 * len(verb))  # somewhere before, in or behind the request
    federation.kill_coordinator()
    federation.start_coordinator()
    if verb == "pause":
        time.sleep(1.0)
        command("job", "resume", "--state", state)
    done = federation.until_done()
    (shown,) = command("job", "show", "--state", state)
    assert [each["outcome"] for each in shown["last_requests"] if each["verb"] == verb] == ["done"]
    assert shown["versions"][-1]["sha256"] == done["model_sha256"]
    if verb == "rollback":
        assert sum(each["note"] is not None for each in shown["last_rounds"]) == 1


def test_a_job_is_cloned_from_a_version_with_other_keys_and_exported(federation: Federation) -> None:
    home = str(federation.root / "home")
    submit(federation, "first", rounds=2)
    start_home(federation)
    for name in federation.names:
        federation.start_device(name)
    federation.until(lambda e: e["event"] == "job_done", "end of the first job")
    out = federation.root / "out"
    (exported,) = command("job", "export", "first", "--home", home, "--version", "2", "--to", str(out))
    words = ("--version", "2", "--set", "training.lr=0.01", "--set", "job.rounds=1", "--home", home)
    command("job", "clone", "first", "again", *words)
    federation.until(lambda e: e["event"] == "job_done" and e["job"] == "again", "end of the clone")
    clone = federation.root / "home" / "jobs" / "again"
    assert "lr = 0.01" in (clone / "job.toml").read_text()
    assert Path(exported["model"]).read_bytes() == (clone / "model.onnx").read_bytes()
    bad = command("job", "clone", "first", "third", "--set", "training.lr=-1", "--home", home, code=2)
    assert bad == []
    assert sorted(path.name for path in (federation.root / "home" / "jobs").iterdir()) == ["again", "first"]


def test_a_backup_taken_while_the_job_runs_is_restored_and_goes_on(federation: Federation) -> None:
    rounds = 12
    write_job(federation.root, devices=4, rounds=rounds, epochs=EPOCHS, grace_s=2.0)
    state = federation.root / "coordinator"
    federation.start()
    of_round(federation, "round_done", 2)
    command("job", "backup", "--state", str(state), "--to", str(federation.root / "backup"))
    with closing(sqlite3.connect(federation.root / "backup" / "journal.sqlite")) as journal:
        ((saved,),) = journal.execute("SELECT max(round) FROM rounds WHERE state = 'evaluated'")
    of_round(federation, "round_done", saved + 2)
    federation.kill_coordinator()
    state.rename(federation.root / "lost")
    (federation.root / "backup").rename(state)
    before = len(federation.seen)
    federation.start_coordinator()
    done = federation.until_done()
    again = [e["round"] for e in federation.seen[before:] if e["event"] == "round_done"]
    assert again == [*range(saved + 1, rounds + 1)]
    assert done["rounds"] == rounds


@pytest.mark.skipif(why_no_disks() != "", reason=why_no_disks())
def test_a_full_disk_stalls_the_job_and_room_lets_it_go_on_to_the_same_model(tmp_path: Path) -> None:
    rules = {"rounds": 4, "epochs": EPOCHS, "grace_s": 5.0}
    calm = digits_federation(tmp_path / "calm", kind="mosquitto", **rules)
    full = digits_federation(tmp_path / "full", kind="mosquitto", **rules)
    disk = Disk(full.root / "coordinator")
    disk.mount()
    try:
        calm.start()
        wanted = calm.until_done()["model_sha256"]
        full.start()
        of_round(full, "round_started", 2)
        disk.fill()
        stalled = full.until(lambda e: e["event"] == "stalled", "stall")
        assert stalled["rule"] == "JournalUnwritable"
        time.sleep(4.0)  # devices offer their updates, and are told to come back
        assert full.coordinator is not None
        assert full.coordinator.poll() is None
        disk.clear()
        full.until(lambda e: e["event"] == "writable", "room")
        assert full.until_done()["model_sha256"] == wanted
        assert sum(e["event"] == "stalled" for e in full.seen) == 1
    finally:
        calm.stop()
        full.stop()
        disk.unmount()
