"""The budget search: the most training that fits, and a refusal that says what would."""

import argparse
import json
from pathlib import Path

import pytest

import models.compiler.graph as g
from edge_runtime import _core
from models.compiler import Graph, compile_training, import_onnx
from models.compiler.budget import Budget, BudgetError, Found, Rate, compile_within, layers, measured_rate
from models.compiler.cli import main
from models.compiler.cli_budget import duration_s, size_bytes
from models.zoo import build

BATCH = 16
BOARD = Rate(multiply_adds=1e9, bytes_moved=1e9)
MODEL = build("cnn1d", (6, 256), 10, 1)


def whole_bytes(batch: int = BATCH) -> int:
    return compile_training(import_onnx(MODEL, batch=batch), recompute=False).report.memory_bytes()


def within(budget: Budget, batch: int = BATCH) -> Found:
    return compile_within(MODEL, batch, budget, rate=BOARD)


def test_what_fits_as_it_is_is_left_whole() -> None:
    found = within(Budget(memory_bytes=whole_bytes()))
    assert (found.chosen.choice.frozen_layers, found.chosen.choice.micro_batches) == (0, 1)
    assert len(found.options) == 1


@pytest.mark.parametrize("share", [0.7, 0.5])
def test_a_part_of_the_memory_still_trains_everything_in_slices(share: float) -> None:
    budget = Budget(memory_bytes=int(whole_bytes() * share))
    found = within(budget)
    engine = _core.Engine(found.chosen.compiled.plan)
    assert engine.arena_bytes + engine.workspace_bytes <= found.chosen.memory_bytes <= int(whole_bytes() * share)
    assert found.chosen.choice.frozen_layers == 0
    assert found.chosen.choice.micro_batches > 1
    fewer = [o for o in found.options if o.choice.micro_batches < found.chosen.choice.micro_batches]
    assert fewer
    assert all(o.excess(budget) > 1 for o in fewer)


def test_layers_are_frozen_from_the_input_as_few_as_fit() -> None:
    budget = Budget(memory_bytes=whole_bytes() // 3)
    found = within(budget)
    depth = found.chosen.choice.frozen_layers
    assert depth > 0
    shallower = [o for o in found.options if o.choice.frozen_layers == depth - 1]
    assert shallower
    assert all(o.excess(budget) > 1 for o in shallower)
    assert found.chosen.compiled.report.trained[-1].endswith("bias")


def test_a_short_step_freezes_what_takes_its_time() -> None:
    slowest = within(Budget(memory_bytes=whole_bytes())).chosen.step_s
    found = within(Budget(step_s=0.7 * slowest))
    assert found.chosen.step_s <= 0.7 * slowest
    assert found.chosen.choice.frozen_layers > 0


@pytest.mark.parametrize("budget", [Budget(memory_bytes=100_000), Budget(step_s=1e-6), Budget(100_000, 1e-6)])
def test_an_impossible_budget_names_the_nearest_that_is_possible(budget: Budget) -> None:
    with pytest.raises(BudgetError, match=r"the nearest takes [\d,]+ bytes and about") as refused:
        within(budget)
    nearest = refused.value.nearest
    assert nearest.excess(budget) > 1
    possible = Budget(nearest.memory_bytes, nearest.step_s)
    assert within(possible).chosen.excess(possible) <= 1


def test_every_thread_counts_its_workspace() -> None:
    report = compile_training(import_onnx(MODEL, batch=BATCH)).report
    assert report.memory_bytes(3) - report.memory_bytes(1) == 2 * report.workspace_bytes


def test_layers_are_tensors_that_share_a_name_up_to_the_dot_in_the_order_of_the_model() -> None:
    graph = import_onnx(MODEL, batch=2)
    names = compile_training(graph).report.trained
    found = layers(graph, names)
    assert found[0] == ("conv1.weight", "conv1.bias")
    assert [name for layer in found for name in layer] == list(names)
    assert all(len({name.split(".")[0] for name in layer}) == 1 for layer in found)


def test_the_rate_of_this_machine_reproduces_its_own_step() -> None:
    compiled = compile_training(import_onnx(MODEL, batch=BATCH))
    rate = measured_rate(compiled)
    assert rate.multiply_adds > 0
    assert rate.bytes_moved > 0
    assert rate.step_s(compiled) > 0


def test_an_update_within_a_product_costs_what_it_moves() -> None:
    x, weight = g.leaf("x", "float32", (BATCH, 512)), g.leaf("weight", "float32", (512, 300))
    report = compile_training(Graph((x,), (weight,), (x @ weight,)), momentum=0.9).report
    assert report.updated_bytes == 2 * 2 * weight.type.nbytes  # tensor and velocity, read and written
    assert report.moved_bytes > report.updated_bytes


@pytest.mark.parametrize(
    ("text", "number"), [("48MB", 48_000_000), ("512KiB", 524_288), ("1.5 GB", 1_500_000_000), ("77", 77), ("9b", 9)]
)
def test_sizes_are_read_with_their_units(text: str, number: int) -> None:
    assert size_bytes(text) == number


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "0MB", "1TB", "1 M B", "48mbit"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no size"):
        size_bytes(text)


def test_times_are_read_with_their_units() -> None:
    assert duration_s("150ms") == pytest.approx(0.15)
    assert duration_s("0.2s") == pytest.approx(0.2)
    for text in ("150", "ms", "0ms", "1h"):
        with pytest.raises(argparse.ArgumentTypeError, match="is no time"):
            duration_s(text)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(MODEL)
    return path


def build_arguments(model: Path, *more: str) -> list[str]:
    output = str(model.with_name("x.plan"))
    return ["build", str(model), "-o", output, "--batch", str(BATCH), "--gflops", "2", "--gbps", "1", *more]


def test_the_command_prints_the_options_with_the_chosen_one_marked(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(build_arguments(model, "--memory", str(whole_bytes() // 2))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "memory" in lines[0]
    assert sum(line.startswith("*") for line in lines) == 1
    assert any(line.startswith("micro-batches") for line in lines)
    plan = _core.describe(model.with_name("x.plan").read_bytes())
    assert plan["arena_bytes"] < whole_bytes() // 2


def test_the_command_prints_the_options_as_json(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(build_arguments(model, "--memory", str(whole_bytes() // 2), "--json")) == 0
    facts = json.loads(capsys.readouterr().out)
    chosen = [option for option in facts["options"] if option["chosen"]]
    assert [option["micro_batches"] for option in chosen] == [facts["micro_batches"]]
    assert facts["arena_bytes"] == chosen[0]["arena_bytes"]


def test_an_impossible_budget_exits_2_and_writes_nothing(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(build_arguments(model, "--memory", "50KB")) == 2
    assert "the nearest takes" in capsys.readouterr().err
    assert not model.with_name("x.plan").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--memory", "9MB", "--micro-batches", "2"], "leave those options out"),
        (["--micro-batches", "7"], "--batch 16 does not divide into --micro-batches 7"),
        (["--memory", "9MB", "--gbps", "0"], "above 0"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    model: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(build_arguments(model, *options)) == 2
    assert message in capsys.readouterr().err


def test_slices_and_recomputation_can_be_told(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(build_arguments(model, "--micro-batches", "4", "--no-recompute", "--json")) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["micro_batches"], facts["recompute"]) == (4, False)
