"""Compressed downloads in whole jobs on real digits: what devices hold, what came down, and how well they learn."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.broker import find_mosquitto
from coordinator.store import open_store
from edge_runtime.tensors import decode_tensors, encode_tensors
from support.fleet import Federation, digits_federation

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e

KIND = "embedded" if find_mosquitto() is None else "mosquitto"
ROUNDS = 12
LOSSY = ["topk 0.05", "fp16", "rice"]


def finish(running: Federation) -> dict[str, Any]:
    try:
        running.start()
        return running.until_done()
    finally:
        running.stop()


def with_download(root: Path, down: list[str], **job: Any) -> Federation:
    running = digits_federation(root, kind=KIND, rounds=ROUNDS, epochs=2, **job)
    with (root / "job.toml").open("a") as file:
        file.write(f"[download]\ncodec = {json.dumps(down)}\n")
    return running


def weights_on_disk(federation: Federation, name: str) -> bytes:
    """The one file of weights in a device's state directory, which its own name vouches for."""
    (path,) = (federation.root / name / "state" / "weights").iterdir()
    data = path.read_bytes()
    assert hashlib.sha256(data).hexdigest() == path.name
    return data


def came_down(federation: Federation, name: str) -> int:
    """Bytes of all messages that a device got, as its last telemetry says."""
    told = [e for e in federation.seen if e["event"] == "telemetry" and e["device"] == name]
    return int(told[-1]["bytes_down"])


def down_of_rounds(federation: Federation) -> list[int]:
    return [event["bytes_down"] for event in federation.seen if event["event"] == "round_done"]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Federation]:
    running = digits_federation(tmp_path_factory.mktemp("dense"), kind=KIND, rounds=ROUNDS, epochs=2)
    return finish(running), running


def test_a_twentieth_of_the_values_down_and_up_learn_as_well(
    dense: tuple[dict[str, Any], Federation], tmp_path: Path
) -> None:
    running = with_download(tmp_path, LOSSY, codec=["topk 0.05 ef", "fp16", "rice"])
    done = finish(running)
    assert done["accuracy"] >= dense[0]["accuracy"] - 0.03
    whole, *later = down_of_rounds(running)
    assert max(later) <= down_of_rounds(dense[1])[1] / 10
    store = open_store(tmp_path / "coordinator")
    (view,) = store._all("SELECT sha256, data FROM downloads WHERE version = ?", (ROUNDS,))
    assert store.latest().sha256 == done["model_sha256"]
    store.close()
    for name in running.names:
        held = weights_on_disk(running, name)
        assert hashlib.sha256(held).hexdigest() == view[0]
        assert held == view[1]
        # Whole once, then deltas: with tasks, plans and presence well under what twelve whole versions take.
        assert came_down(running, name) <= whole / len(running.names) + 3 * sum(later) / len(running.names) + 60_000
        assert came_down(running, name) < came_down(dense[1], name) / 3


def test_frozen_layers_come_down_once(tmp_path: Path) -> None:
    running = digits_federation(tmp_path, kind=KIND, rounds=ROUNDS, epochs=2, trainable=["fc2.*"])
    done = finish(running)
    final = (tmp_path / "coordinator" / "final.safetensors").read_bytes()
    head = {f"exact/{name}": array for name, array in decode_tensors(final)[0].items() if name.startswith("fc2.")}
    assert len(head) == 2
    _, *later = down_of_rounds(running)
    assert set(later) == {len(running.names) * len(encode_tensors(head))}
    assert done["rounds"] == ROUNDS


def test_devices_whose_disk_is_lost_or_damaged_between_rounds_go_on_from_the_same_bits(tmp_path: Path) -> None:
    plain = with_download(tmp_path / "plain", LOSSY)
    undisturbed = finish(plain)["model_sha256"]
    running = with_download(tmp_path / "disturbed", LOSSY)
    try:
        running.start()
        running.until(lambda e: e["event"] == "round_done" and e["round"] == 3, "round 3")
        running.kill_device("dev-0")
        (path,) = (running.root / "dev-0" / "state" / "weights").iterdir()
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        running.kill_device("dev-1")
        (path,) = (running.root / "dev-1" / "state" / "weights").iterdir()
        path.unlink()
        running.kill_coordinator()
        running.start_coordinator()
        running.start_device("dev-0")
        running.start_device("dev-1")
        assert running.until_done()["model_sha256"] == undisturbed
    finally:
        running.stop()
    views = {hashlib.sha256(weights_on_disk(running, name)).hexdigest() for name in running.names}
    assert len(views) == 1
    assert "DeltaUnusable" in (running.root / "dev-0" / "client.log").read_text()
