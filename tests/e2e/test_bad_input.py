"""Bad input, as a user meets it: a command names the broken rule, the value and what to do, and ends with code 2."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from models.zoo import MODELS
from support.fleet import digits_federation

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge_runtime", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def assert_refused(done: subprocess.CompletedProcess[str], *wanted: str) -> None:
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    for word in wanted:
        assert word in done.stderr + done.stdout, done


def client(data: Path, state: Path) -> subprocess.CompletedProcess[str]:
    return run("client", "--broker", "mqtt://127.0.0.1:1", "--device", "dev-1", "--data", data, "--state", state)


def test_a_data_directory_that_is_not_there(tmp_path: Path) -> None:
    assert_refused(client(tmp_path / "none", tmp_path / "state"), "none", "train.npz")


def test_an_empty_data_set(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", x=np.zeros((0, 1, 8, 8), np.float32), y=np.zeros(0, np.int64))
    assert_refused(client(tmp_path, tmp_path / "state"), "NoExamples", "put at least one")


def test_an_unsupported_operation_is_named_with_its_node(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])
    node = helper.make_node("Det", ["x"], ["y"], name="odd-one")
    model = helper.make_model(helper.make_graph([node], "g", [x], [y]), opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, tmp_path / "odd.onnx")
    done = run("plan", "build", tmp_path / "odd.onnx", "-o", tmp_path / "odd.plan")
    assert_refused(done, "Det", "odd-one", "Gemm")


def test_a_plan_with_one_flipped_byte(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(MODELS["mlp"]((16,), 3, 1))
    assert run("plan", "build", tmp_path / "m.onnx", "-o", tmp_path / "m.plan").returncode == 0
    data = bytearray((tmp_path / "m.plan").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "m.plan").write_bytes(data)
    assert_refused(run("plan", "show", tmp_path / "m.plan"), "ChecksumMismatch", "again")


def test_a_job_file_with_several_typos_is_answered_with_all_of_them(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(
        '[job]\nname = "Bad Name"\nseed = -1\nroundz = 3\n[model]\nonnx = "none.onnx"\n[method]\nname = "fedavgg"\n'
        "[training]\nepochs = 0\nbatch = 32\nlr = 0.1\n[round]\ndevices = 2\nmin_updates = 3\ndeadline_s = 5.0\n"
        '[evaluate]\ndata = "none"\n'
    )
    done = run("coordinator", "--job", tmp_path / "job.toml", "--state", tmp_path / "state")
    assert_refused(done, "Bad Name", "seed", "roundz", "none.onnx", "fedavgg", "epochs", "min_updates")


def test_a_device_whose_labels_are_out_of_range_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    federation = digits_federation(tmp_path, kind="embedded", devices=3, rounds=2)
    shard = tmp_path / "dev-1" / "data" / "train.npz"
    with np.load(shard) as arrays:
        x, y = arrays["x"], arrays["y"].copy()
    y[5] = 77
    np.savez(shard, x=x, y=y)
    try:
        federation.start()
        done = federation.until_done()
    finally:
        federation.stop()
    warnings = [str(e["message"]) for e in federation.seen if e["event"] == "warning"]
    assert any("dev-1" in w and "LabelOutOfRange" in w and "77" in w for w in warnings), federation.seen
    assert done["rounds"] == 2
    assert [e["devices"] for e in federation.seen if e["event"] == "round_done"] == [2, 2]
