"""The client as a process, against a small gateway over a real broker."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from chaos.surroundings import Disk, why_no_disks

from coordinator.broker import RunningBroker
from edge_runtime.data import load_dataset
from edge_runtime.plan import read_plan
from edge_runtime.slots import Slots, kept_answer
from edge_runtime.task import run_task
from edge_runtime.tensors import decode_tensors
from edge_runtime.wire import Phase
from edge_runtime.wire.events import DeviceStatus, TaskFailed, Telemetry
from edge_runtime.wire.tasks import Carry, Upload
from support.boards import ClientProcess, Compiled, Gateway, broker_that_denies, compile_model, start_client

Start = Callable[..., ClientProcess]


@pytest.fixture
def gateway(any_broker: RunningBroker) -> Iterator[Gateway]:
    gateway = Gateway(any_broker.url)
    yield gateway
    gateway.link.close()


@pytest.fixture
def start(any_broker: RunningBroker, digits: Path, tmp_path: Path) -> Iterator[Start]:
    clients: list[ClientProcess] = []

    def run(device: str, *options: str, data: Path = digits, state: str = "state") -> ClientProcess:
        clients.append(start_client(any_broker.url, device, data, tmp_path / state, *options))
        return clients[-1]

    yield run
    for client in clients:
        client.process.kill()
        client.process.wait()


def states(gateway: Gateway) -> list[str]:
    return [event.state for event in gateway.events if isinstance(event, DeviceStatus)]


def failures(gateway: Gateway) -> list[TaskFailed]:
    return [event for event in gateway.events if isinstance(event, TaskFailed)]


def endless(model: Compiled) -> dict[str, object]:
    return {"phases": (Phase(model.sha256, 1_000_000, {"lr": 0.0}),)}


def test_a_task_gives_the_update_that_run_task_gives_here(
    gateway: Gateway, start: Start, lenet: Compiled, digits: Path
) -> None:
    client = start("a")
    gateway.until(lambda: states(gateway) == ["online"])
    task = gateway.send("a", "t", lenet)
    gateway.until(lambda: gateway.updates and gateway.seen(Telemetry))
    here = run_task(task, {lenet.sha256: read_plan(lenet.plan)}, lenet.weights, load_dataset(digits))
    assert gateway.updates[0].data == here.data
    birth = next(event for event in gateway.events if isinstance(event, DeviceStatus))
    assert (birth.examples, birth.gen) == (20, 1)
    assert birth.info["x_shape"] == [8, 8]
    assert birth.info["x_dtype"] == "uint8"
    assert birth.info["classes_seen"] == 10
    assert birth.info["cores"] >= 1
    measured = next(event for event in gateway.events if isinstance(event, Telemetry)).fields
    assert 10_000 < measured["rss_peak_kb"] < 100_000
    assert measured["bytes_down"] > len(lenet.plan)
    assert measured["task"] == "t"
    assert client.stop() == 0


def test_sigterm_says_stopped_and_exits_clean_even_in_a_task(
    gateway: Gateway, start: Start, lenet: Compiled, tmp_path: Path
) -> None:
    client = start("a")
    gateway.send("a", "t", lenet, **endless(lenet))
    gateway.until(lambda: "task task=t" in client.text())
    assert client.stop(3.0) == 0
    gateway.until(lambda: states(gateway) == ["online", "stopped"])
    summary = json.loads((tmp_path / "state" / "last-run.json").read_text())
    assert summary["tasks"] == 0
    assert summary["rss_peak_kb"] > 10_000
    assert "Traceback" not in client.text()


def test_a_killed_client_is_lost_and_does_the_task_when_it_is_back(
    gateway: Gateway, start: Start, lenet: Compiled
) -> None:
    client = start("a")
    gateway.send("a", "t", lenet, phases=(Phase(lenet.sha256, 300, {"lr": 0.01}),))
    gateway.until(lambda: "task task=t" in client.text())
    client.process.send_signal(signal.SIGKILL)
    gateway.until(lambda: states(gateway)[-1:] == ["lost"])
    assert not gateway.updates
    start("a")
    gateway.until(lambda: gateway.updates)
    assert states(gateway) == ["online", "lost", "online"]


def test_a_client_starts_on_damaged_files_tells_of_them_and_does_its_task(
    gateway: Gateway, start: Start, lenet: Compiled, tmp_path: Path
) -> None:
    (tmp_path / "state" / "plans").mkdir(parents=True)
    damaged = {"outbox": b'{"key":"torn', "gen": b"\xff\xfe", "outbox.new": b"half", "last-run.json": b"{"}
    for file, content in damaged.items():
        (tmp_path / "state" / file).write_bytes(content)
    client = start("a")
    gateway.send("a", "t", lenet)
    gateway.until(lambda: gateway.updates)
    (told,) = [line for line in client.text().splitlines() if "StateUnusable" in line]
    assert "outbox is not what was written" in told
    assert "gen holds no number" in told
    assert (tmp_path / "state" / "outbox.damaged").read_bytes() == damaged["outbox"]
    assert (tmp_path / "state" / "gen.damaged").read_bytes() == damaged["gen"]
    assert client.stop() == 0
    assert "Traceback" not in client.text()


@pytest.mark.skipif(why_no_disks() != "", reason=why_no_disks())
def test_a_client_whose_disk_is_full_does_its_tasks_from_memory_and_tells(
    gateway: Gateway, start: Start, lenet: Compiled, tmp_path: Path
) -> None:
    disk = Disk(tmp_path / "state")
    disk.mount()
    try:
        client = start("a")
        gateway.until(lambda: states(gateway) == ["online"])
        disk.fill()
        gateway.send("a", "t", lenet)
        gateway.until(lambda: len(gateway.updates) == 1)
        assert "StateUnusable" in client.text()
        assert not (tmp_path / "state" / "outbox").exists()
        disk.clear()
        gateway.send("a", "u", lenet)
        gateway.until(lambda: len(gateway.updates) == 2)
        assert client.process.poll() is None
        assert client.stop() == 0
        assert "Traceback" not in client.text()
        assert b'"task":"u"' in (tmp_path / "state" / "outbox").read_bytes()[:300].replace(b" ", b"")
    finally:
        disk.unmount()


@pytest.mark.skipif(why_no_disks() != "", reason=why_no_disks())
def test_an_update_waits_until_the_disk_has_taken_what_it_leaves_out(
    gateway: Gateway, start: Start, lenet: Compiled, tmp_path: Path
) -> None:
    disk, state = Disk(tmp_path / "state"), tmp_path / "state"
    disk.mount()
    try:
        client = start("a")
        gateway.until(lambda: states(gateway) == ["online"])
        disk.fill()
        carrying = Upload("delta", ("topk 0.1 ef",))
        task = gateway.send("a", "t", lenet, upload=carrying, carry=Carry("0123456789abcdef", None))
        gateway.until(lambda: "still in memory alone" in client.text())
        assert not gateway.updates
        assert not (state / "slots").exists()
        disk.clear()
        gateway.until(lambda: len(gateway.updates) == 1)
        client.process.kill()
        client.process.wait()
        assert kept_answer(Slots(state / "slots"), task) == gateway.updates[0].data
    finally:
        disk.unmount()


def test_an_update_that_was_trained_is_not_trained_again(
    gateway: Gateway, start: Start, lenet: Compiled, any_broker: RunningBroker
) -> None:
    client = start("a")
    gateway.send("a", "t", lenet)
    gateway.until(lambda: gateway.updates)
    client.process.kill()
    client.process.wait()
    first = gateway.updates[0].data
    gateway.done.clear()
    client.log.write_bytes(b"")
    again = start("a")
    gateway.until(lambda: len(gateway.updates) == 2)
    assert gateway.updates[1].data == first
    assert "task done" not in again.text()
    assert any_broker.url in " ".join(again.arguments)


def test_the_client_outlives_its_broker(
    gateway: Gateway, start: Start, lenet: Compiled, any_broker: RunningBroker
) -> None:
    start("a")
    gateway.send("a", "t", lenet, phases=(Phase(lenet.sha256, 100, {"lr": 0.01}),))
    gateway.until(lambda: states(gateway) == ["online"])
    any_broker.kill()
    any_broker.restart()
    gateway.until(lambda: gateway.updates, 40)


def test_the_second_device_of_an_id_stops_and_says_why(gateway: Gateway, start: Start) -> None:
    first = start("a")
    gateway.until(lambda: states(gateway) == ["online"])
    second = start("a", state="other")
    assert second.process.wait(10) == 3
    assert "DuplicateDevice" in second.text()
    assert first.process.poll() is None
    gateway.until(lambda: first.process.poll() is None and states(gateway)[-1] == "online")
    assert gateway.events[-1] == gateway.seen(DeviceStatus)[-1]
    assert gateway.seen(DeviceStatus)[-1].gen == 1  # type: ignore[union-attr]  # seen() filters by type


def test_two_clients_cannot_share_a_state_directory(gateway: Gateway, start: Start) -> None:
    start("a")
    gateway.until(lambda: states(gateway) == ["online"])
    second = start("b")
    assert second.process.wait(10) == 2
    assert "StateInUse" in second.text()


@pytest.mark.parametrize("flip", [100, 2000, -1])
def test_a_plan_with_a_flipped_byte_fails_the_task_and_the_client_lives(
    gateway: Gateway, start: Start, lenet: Compiled, flip: int
) -> None:
    client = start("a")
    broken = bytearray(lenet.plan)
    broken[flip] ^= 1
    gateway.send("a", "t1", Compiled(bytes(broken), lenet.weights))
    gateway.until(lambda: failures(gateway))
    assert failures(gateway)[0].rule[0].isupper()
    assert failures(gateway)[0].rule not in {"InternalError", "OutOfMemory"}
    gateway.send("a", "t2", lenet)
    gateway.until(lambda: gateway.updates)
    assert gateway.updates[0].task == "t2"
    assert "Traceback" not in client.text()


def test_what_cannot_be_done_is_told_and_the_client_lives(gateway: Gateway, start: Start, lenet: Compiled) -> None:
    client = start("a", "--memory-limit-mb", "1")
    wide = compile_model("mlp", (7,), batch=4)
    large = compile_model("lenet", (1, 8, 8), batch=512)
    for number, (model, changes) in enumerate(
        [
            (lenet, {"classes": 5}),
            (wide, {}),
            (large, {}),
            (lenet, {"phases": (Phase(lenet.sha256, 9, {"lr": 1e30}),)}),
            (Compiled(lenet.plan, {"w": np.zeros(1, np.float32)}), {}),
        ]
    ):
        gateway.send("a", f"t{number}", model, **changes)
        gateway.until(lambda: len(failures(gateway)) == number + 1)  # noqa: B023 the lambda is done before the next turn
    assert [failure.rule for failure in failures(gateway)] == [
        "LabelOutOfRange",
        "ShapeMismatch",
        "MemoryLimit",
        "NonFiniteUpdate",
        "WeightMismatch",
    ]
    assert "classes 0 .. 4" in failures(gateway)[0].message
    gateway.send("a", "last", lenet)
    gateway.until(lambda: gateway.updates)
    assert client.process.poll() is None


@pytest.mark.slow
def test_a_task_for_an_unknown_plan_fails_after_its_tries(gateway: Gateway, start: Start, lenet: Compiled) -> None:
    gateway.until(lambda: gateway.link.connected)
    gateway.send("a", "t", lenet)
    gateway.drop_blob(lenet.sha256)
    start("a")
    gateway.until(lambda: failures(gateway), 40)
    assert failures(gateway)[0].rule == "BlobMissing"
    assert lenet.sha256 in failures(gateway)[0].message


def test_a_newer_task_replaces_the_one_that_runs(gateway: Gateway, start: Start, lenet: Compiled) -> None:
    client = start("a")
    gateway.send("a", "old", lenet, **endless(lenet))
    gateway.until(lambda: "task task=old" in client.text())
    gateway.send("a", "new", lenet)
    gateway.until(lambda: gateway.updates)
    assert gateway.updates[0].task == "new"
    assert "task withdrawn" in client.text()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda _: None, "DataError"),
        (lambda folder: folder.mkdir(), "DataError"),
        (lambda folder: (folder.mkdir(), np.savez(folder / "train.npz", x=np.zeros((0, 2), np.uint8), y=[])), "y is"),
        (
            lambda folder: (
                folder.mkdir(),
                np.savez(folder / "train.npz", x=np.zeros((0, 2), np.uint8), y=np.zeros(0, np.uint8)),
            ),
            "NoExamples",
        ),
    ],
)
def test_data_that_cannot_be_used_end_the_client_with_2(
    tmp_path: Path, make: Callable[[Path], object], said: str
) -> None:
    make(tmp_path / "d")
    client = start_client("mqtt://127.0.0.1:1", "a", tmp_path / "d", tmp_path / "s")
    assert client.process.wait(10) == 2
    assert said in client.text()
    assert "train.npz" in client.text() or "put at least one" in client.text() or "integers" in client.text()


def test_a_configuration_with_problems_ends_the_client_with_2(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('devise = "a"\n')
    command = [sys.executable, "-m", "edge_runtime", "client", "--config", str(tmp_path / "c.toml")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    assert result.returncode == 2
    assert "did you mean device?" in result.stderr
    assert "broker is missing" in result.stderr


def test_the_client_imports_nothing_that_a_board_does_not_have() -> None:
    probe = (
        "import sys, edge_runtime.client; "
        "bad = {'torch', 'onnx', 'onnxruntime', 'coordinator', 'models', 'rich', 'sklearn'} & set(sys.modules); "
        "sys.exit(repr(bad) if bad else 0)"
    )
    assert subprocess.run([sys.executable, "-c", probe], check=False, timeout=20).returncode == 0


def test_an_update_trained_on_data_that_have_changed_since_is_trained_again(
    gateway: Gateway, start: Start, lenet: Compiled, digits: Path
) -> None:
    client = start("a")
    gateway.send("a", "t", lenet)
    gateway.until(lambda: gateway.updates)
    client.process.kill()
    client.process.wait()
    gateway.done.clear()
    np.savez(digits / "train.npz", x=np.zeros((7, 8, 8), np.uint8), y=np.arange(7))
    start("a")
    gateway.until(lambda: len(gateway.updates) == 2)
    assert [decode_tensors(update.data)[1]["examples"] for update in gateway.updates] == ["20", "7"]


def test_a_broker_that_refuses_a_subscription_is_told_of_and_not_hammered(digits: Path, tmp_path: Path) -> None:
    with broker_that_denies("edge/v1/default/d/+/task") as url:
        client = start_client(url, "a", digits, tmp_path / "state", "--log-json")
        gateway = Gateway(url)
        gateway.until(lambda: states(gateway)[-1:] == ["lost"] and "not_connected" in client.text())
        assert client.stop() == 0
        gateway.link.close()
    told = [json.loads(line) for line in client.text().splitlines()]
    assert [each["rule"] for each in told if each["event"] == "error"] == ["SubscriptionRefused"]
    (lost,) = [each for each in told if each["event"] == "not_connected"]
    assert lost["retry_s"] >= 15
