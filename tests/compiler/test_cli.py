"""`plan build` and `plan show`, as a user meets them."""

import json
from pathlib import Path

import pytest

from edge_runtime import _core
from models.compiler.cli import main
from models.zoo import build


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(build("lenet", (8, 8), 10, 1))
    return path


def test_build_writes_a_plan_and_prints_its_cost(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = model.with_name("x.plan")
    assert main(["build", str(model), "-o", str(plan), "--batch", "16", "--trainable", "fc*"]) == 0
    printed = capsys.readouterr().out
    assert "arena" in printed
    assert "multiply-adds backward" in printed
    assert "conv1.weight" in printed.splitlines()[-1]
    assert _core.describe(plan.read_bytes())["arena_bytes"] > 0
    assert [p.name for p in model.parent.iterdir() if "partial" in p.name] == []


def test_build_prints_json(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = model.with_name("x.plan")
    assert main(["build", str(model), "-o", str(plan), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["plan_bytes"] == plan.stat().st_size
    assert report["trained"][0] == "conv1.weight"
    assert report["lower_bound_bytes"] <= report["arena_bytes"]


@pytest.mark.parametrize("as_json", [False, True])
def test_show_prints_tensors_and_operations(model: Path, capsys: pytest.CaptureFixture[str], *, as_json: bool) -> None:
    plan = model.with_name("x.plan")
    main(["build", str(model), "-o", str(plan), "--json"])
    capsys.readouterr()
    assert main(["show", str(plan), *(["--json"] if as_json else [])]) == 0
    printed = capsys.readouterr().out
    if as_json:
        assert len(json.loads(printed)["sha256"]) == 64
    assert "conv1.weight" in printed
    assert "softmax_xent_grad" in printed


def test_show_prints_float_attributes_as_floats(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = model.with_name("x.plan")
    main(["build", str(model), "-o", str(plan), "--momentum", "0.75", "--weight-decay", "0.125", "--nesterov"])
    capsys.readouterr()
    assert main(["show", str(plan)]) == 0
    updates = [line for line in capsys.readouterr().out.splitlines() if " = sgd(" in line]
    assert len(updates) == 8  # four layers, each a weight and a bias
    assert all(line.endswith(") 0.75 0.125 1") for line in updates)


def test_bad_input_says_what_to_do_and_exits_2(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = str(model.with_name("x.plan"))
    assert main(["build", str(model.with_name("none.onnx")), "-o", plan]) == 2
    assert "none.onnx" in capsys.readouterr().err
    assert main(["build", str(model), "-o", plan, "--trainable", "conv7*"]) == 2
    assert "conv7*" in capsys.readouterr().err
    model.write_bytes(b"nonsense")
    assert main(["build", str(model), "-o", plan]) == 2
    assert main(["show", str(model)]) == 2
    assert "edge-runtime plan:" in capsys.readouterr().err
