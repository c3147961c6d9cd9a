"""`edge-runtime profile`: phases, lives and work read off a plan, the pictures, and the command as users call it."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from typing import TYPE_CHECKING

import numpy as np
import pytest

import models.compiler.graph as g
from edge_runtime import _core, cli
from edge_runtime.data import Dataset
from edge_runtime.engine import Engine
from edge_runtime.plan import ROLE_BATCH, read_plan
from edge_runtime.profile.anatomy import Anatomy, Life, Operation, anatomy
from edge_runtime.profile.arena_map import FREE, OWNED, draw_text, sample
from edge_runtime.profile.footprint import ChildFailed, measure_footprint
from edge_runtime.profile.inputs import BatchNotData, choices, fill_inputs
from edge_runtime.profile.measure import measure
from edge_runtime.profile.peak import SIDE, Peak, measure_peak
from edge_runtime.profile.png import draw_png
from edge_runtime.state_directory import StateDirectory
from models.compiler import compile_loss, compile_training, import_onnx
from models.compiler.prefix import compile_split
from models.compiler.rules import Sgd
from models.zoo import MODELS

if TYPE_CHECKING:
    from pathlib import Path

    from support.boards import Compiled

FORWARD_OPS = {"conv", "maxpool", "softmax_xent"}
SMALL = Anatomy(
    operations=tuple(Operation(i, "copy", phase, (16,), 0, 128) for i, phase in enumerate(("forward", "backward"))),
    lives=(Life(128, 128, 0, 1, "forward"), Life(256, 256, 1, 1, "backward")),
    owned=((0, 100),),
    arena_bytes=512,
)


def profiled(*words: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = cli.main(["profile", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def plan_file(lenet: Compiled, tmp_path: Path) -> Path:
    path = tmp_path / "lenet.plan"
    path.write_bytes(lenet.plan)
    return path


@pytest.mark.parametrize("trainable", [("*",), ("*fc*",)])
def test_work_and_memory_are_those_the_compiler_promised(trainable: tuple[str, ...]) -> None:
    graph = import_onnx(MODELS["lenet"]((1, 8, 8), 10, 3), batch=8)
    compiled = compile_training(graph, trainable=trainable)
    parts, report = anatomy(_core.describe(compiled.plan)), compiled.report
    by_phase = {p: sum(op.multiply_adds for op in parts.operations if op.phase == p) for p in ("forward", "backward")}
    assert by_phase["forward"] == report.forward_multiply_adds > 0
    assert by_phase["backward"] == report.backward_multiply_adds > 0
    assert parts.owned_bytes == report.owned_bytes
    assert parts.owned_bytes + max(parts.live_bytes()) == report.lower_bound_bytes


def test_phases_are_told_apart_by_what_an_operation_serves(lenet: Compiled) -> None:
    parts = anatomy(_core.describe(lenet.plan))
    phases = {op.name: op.phase for op in parts.operations}
    assert {phases[name] for name in FORWARD_OPS} == {"forward"}
    assert {phase for name, phase in phases.items() if "_grad" in name} == {"backward"}
    assert phases["sgd"] == "update"


def test_lives_cover_every_read_and_two_never_share_a_byte(lenet: Compiled) -> None:
    lives = anatomy(_core.describe(lenet.plan)).lives
    for i, a in enumerate(lives):
        assert a.first <= a.last
        for b in lives[:i]:
            together = a.first <= b.last and b.first <= a.last
            apart = a.offset + a.nbytes <= b.offset or b.offset + b.nbytes <= a.offset
            assert apart or not together, (a, b)


def test_what_serves_running_averages_alone_is_update() -> None:
    """0 makes what all read; 1 the loss; 2 an average for the blend in 3; 4 a gradient for the update in 5."""
    x, slot, weight, loss, *temporaries = (_tensor(64 * i, 64, role) for i, role in enumerate((4, 1, 1, 6, 0, 0, 0)))
    tensors = [x, slot, weight, {**loss, "name": "loss"}, *temporaries]
    names = ("copy", "copy", "copy", "blend", "copy", "sgd")
    reads_writes = [([0], [4]), ([4], [3]), ([4], [5]), ([1, 5], [1]), ([4], [6]), ([2, 6], [2])]
    ops = [
        {"op": name, "inputs": r, "outputs": w, "attrs": []} for name, (r, w) in zip(names, reads_writes, strict=True)
    ]
    parts = anatomy({"tensors": tensors, "ops": ops, "arena_bytes": 448, "constants_bytes": 0, "workspace_bytes": 0})
    assert [op.phase for op in parts.operations] == ["forward", "forward", "update", "update", "backward", "update"]


def test_a_life_ends_with_the_last_reader_of_any_part_of_its_bytes() -> None:
    """Operation 1 reads what 0 wrote and writes it anew; 2 overwrites a half, 3 reads the other, 4 all."""
    spans = [(0, 64), (64, 128), (64, 64), (128, 64)]
    tensors = [_tensor(offset, nbytes, role) for (offset, nbytes), role in zip(spans, (5, 0, 0, 0), strict=True)]
    reads_writes = [([0], [1]), ([1], [1]), ([0], [2]), ([3], [2]), ([1], [2])]
    ops = [{"op": "copy", "inputs": r, "outputs": w, "attrs": []} for r, w in reads_writes]
    parts = anatomy({"tensors": tensors, "ops": ops, "arena_bytes": 192, "constants_bytes": 0, "workspace_bytes": 0})
    spans_of_lives = [(life.offset, life.nbytes, life.first, life.last) for life in parts.lives]
    assert spans_of_lives == [(64, 128, 0, 0), (64, 128, 1, 4), (64, 64, 2, 2), (64, 64, 3, 3), (64, 64, 4, 4)]


def _tensor(offset: int, nbytes: int, role: int) -> dict[str, object]:
    return {"name": "", "dtype": "float32", "shape": [nbytes // 4], "role": role, "offset": offset, "bytes": nbytes}


def test_operands_count_once_and_products_by_their_sums() -> None:
    x, w = g.leaf("x", "float32", (4, 8)), g.leaf("w", "float32", (8, 5))
    first = anatomy(_core.describe(compile_loss(g.mean(g.square(g.matmul(x, w))), [x]).plan)).operations[0]
    assert first.multiply_adds == 4 * 8 * 5
    assert first.bytes_moved == 4 * (4 * 8 + 8 * 5 + 4 * 5)


def test_the_arena_is_sampled_where_bytes_and_operations_meet() -> None:
    picture = sample(SMALL, rows=4, columns=2)
    np.testing.assert_array_equal(picture, [[OWNED, OWNED], [2, 2], [FREE, 3], [FREE, 3]])


@pytest.mark.parametrize(("blocks", "glyphs"), [(True, "░▓▒"), (False, ".#+")])
def test_a_picture_in_text_keeps_to_the_width_and_to_the_terminal_s_letters(*, blocks: bool, glyphs: str) -> None:
    lines = draw_text(SMALL, 61, rows=4, blocks=blocks)
    assert all(len(line) == 61 for line in lines[:-1])
    assert lines[0].split() == ["f" * 25 + "b" * 25]
    owned, forward, backward = glyphs
    assert lines[1].endswith(owned * 50)
    assert lines[2].endswith(forward * 50)
    assert lines[3].endswith(" " * 25 + backward * 25)
    assert blocks or all(line.isascii() for line in lines)


def test_the_picture_as_png_holds_the_arena_s_colours() -> None:
    data = draw_png(SMALL)
    chunks, at = {}, 8
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        kind, body, crc = data[at + 4 : at + 8], data[at + 8 : at + 8 + size], data[at + 8 + size : at + 12 + size]
        assert zlib.crc32(kind + body) == int.from_bytes(crc, "big")
        chunks[kind] = body
        at += 12 + size
    width, height = (int.from_bytes(chunks[b"IHDR"][i : i + 4], "big") for i in (0, 4))
    pixels = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert (pixels[:, 0] == 0).all()
    middle_left, middle_right = (pixels[42:522, 1 + 110 + x] for x in (250, 750))
    assert [int(middle_left[y]) for y in (60, 180, 400)] == [1, 2, 0]
    assert [int(middle_right[y]) for y in (60, 180, 400)] == [1, 2, 3]


def test_labels_and_tokens_keep_to_the_classes_and_rows_there_are() -> None:
    tokens, labels = g.leaf("tokens", "int32", (4,)), g.leaf("labels", "int32", (4,))
    table = g.leaf("table", "float32", (7, 3))
    compiled = compile_loss(g.softmax_cross_entropy(g.gather(table, tokens), labels), [tokens, labels])
    engine = Engine(read_plan(compiled.plan))
    batch = engine.plan.named(ROLE_BATCH)
    info = _core.describe(compiled.plan)
    assert {name: choices(info, tensor) for name, tensor in batch.items()} == {"tokens": 7, "labels": 3}
    fill_inputs(engine, None)
    engine.step()
    assert np.isfinite(engine.read("loss"))
    with pytest.raises(BatchNotData, match="the plan's batch is labels, tokens"):
        fill_inputs(engine, Dataset(np.zeros((4, 3), np.float32), np.zeros(4, np.int32)))


def test_the_peak_is_of_a_product_and_of_copies_and_bounds_take_the_scarcer() -> None:
    peak = Peak(1e9, ((1 << 16, 1e10), (1 << 25, 1e9)))
    assert peak.bytes_per_s(1 << 10) == 1e10
    assert peak.bytes_per_s(1 << 24) == 1e9
    assert peak.seconds(2_000_000_000, 10) == 2.0
    assert peak.seconds(10, 1 << 25) == pytest.approx((1 << 25) / 1e9)
    measured = measure_peak(1, "auto")
    assert measured.multiply_adds_per_s > SIDE**3 / 60
    assert all(speed > 0 for _, speed in measured.copies)


def test_costs_of_phases_are_those_of_their_operations(lenet: Compiled) -> None:
    engine = Engine(read_plan(lenet.plan))
    fill_inputs(engine, None)
    weights = engine.read(next(iter(engine.plan.named(1))))
    parts = anatomy(_core.describe(lenet.plan))
    timing = measure(engine, parts, Peak(1e9, ((1 << 20, 1e9),)), 3)
    assert len(timing.operations) == len(parts.operations)
    assert sum(cost.bytes_moved for cost in timing.phases.values()) == timing.step.bytes_moved
    assert sum(cost.multiply_adds for cost in timing.operations) == timing.step.multiply_adds
    assert timing.step.bound_s == pytest.approx(sum(cost.bound_s for cost in timing.phases.values()))
    assert all(0 < c.latency.median_s <= c.latency.p95_s for c in (*timing.operations, *timing.phases.values()))
    np.testing.assert_array_equal(engine.read(next(iter(engine.plan.named(1)))), weights)  # the learning rate is 0


def test_a_process_that_only_trains_peaks_where_the_plan_says() -> None:
    x = g.leaf("x", "float32", (256, 1024))
    w1, w2 = g.leaf("w1", "float32", (1024, 4096)), g.leaf("w2", "float32", (4096, 1024))
    plan = read_plan(compile_loss(g.mean(g.square(g.matmul(g.relu(g.matmul(x, w1)), w2))), [x]).plan)
    found = measure_footprint(plan, 1, "auto")
    assert found.plan_bytes > 64 << 20
    assert found.predicted_bytes == found.idle_bytes + found.plan_bytes
    assert 0.95 < found.measured_bytes / found.predicted_bytes < 1.05


def test_a_child_that_fails_is_told_with_its_last_words(lenet: Compiled) -> None:
    with pytest.raises(ChildFailed, match="'mmx' is not available here"):
        measure_footprint(read_plan(lenet.plan), 1, "mmx")


def test_the_page_names_phases_peaks_slowest_operations_and_memory(
    plan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    png = tmp_path / "arena.png"
    code, out, _ = profiled(plan_file, "--steps", 2, "--top", 3, "--png", png, capsys=capsys)
    assert code == 0
    for said in ("forward", "backward", "update", "slowest 3 operations", "this machine's peak", "measured", "arena"):
        assert said in out
    assert png.read_bytes().startswith(b"\x89PNG")


def test_json_holds_every_operation_and_the_memory(plan_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = profiled(plan_file, "--json", "--steps", 2, "--threads", 2, capsys=capsys)
    assert code == 0
    said = json.loads(out)
    plan = read_plan(plan_file.read_bytes())
    assert said["plan_sha256"] == plan.sha256
    assert len(said["operations"]) == len(said["memory"]["live_bytes"]) == plan.n_ops
    assert said["memory"]["arena_bytes"] == plan.arena_bytes
    assert said["threads"] == 2
    assert set(said["phases"]) == {"forward", "backward", "update"}
    assert all(op["median_s"] > 0 and op["bytes_moved"] > 0 for op in said["operations"])


def test_what_a_device_trains_is_profiled_with_its_own_data(
    lenet: Compiled, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = StateDirectory(tmp_path / "state", 1 << 20)  # stays locked: the client runs
    state.keep_plan(lenet.sha256, lenet.plan)
    config = tmp_path / "client.toml"
    config.write_text(f'broker = "mqtt://h"\ndevice = "a"\ndata = "{digits}"\nstate = "state"\nthreads = 2\n')
    for target, fed, threads in [(config, "local data", 2), (tmp_path / "state", "random numbers", 1)]:
        code, out, _ = profiled(target, "--json", "--steps", 1, capsys=capsys)
        said = json.loads(out)
        assert (code, said["plan_sha256"], said["data"], said["threads"]) == (0, lenet.sha256, fed, threads)
    state.close()


def test_above_a_frozen_prefix_the_plan_that_trains_is_profiled(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split = compile_split(MODELS["lenet"]((1, 8, 8), 10, 3), batch=8, trainable=["fc2.*"], rule=Sgd())
    assert split.prefix is not None
    state = StateDirectory(tmp_path / "state", 1 << 20)
    for plan in (split.training, split.prefix):
        state.keep_plan(plan.sha256, plan.plan)
    state.close()
    config = tmp_path / "client.toml"
    config.write_text(f'broker = "mqtt://h"\ndevice = "a"\ndata = "{digits}"\nstate = "state"\n')
    code, out, _ = profiled(config, "--json", "--steps", 1, capsys=capsys)
    said = json.loads(out)
    assert (code, said["plan_sha256"], said["data"]) == (0, split.training.sha256, "random numbers")


def test_a_model_is_compiled_with_the_flags_of_plan_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "lenet.onnx"
    model.write_bytes(MODELS["lenet"]((1, 8, 8), 10, 3))
    code, out, err = profiled(model, "--json", "--steps", 1, "--batch", 5, "--momentum", 0, capsys=capsys)
    said = json.loads(out)
    assert code == 0
    assert said["operations"][0]["shape"][0] == 5
    assert "arena" in err  # the compiler's report goes where it does not spoil the JSON
    assert profiled(model, "--batch", 0, capsys=capsys)[0] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.plan"], "No such file"),
        (["PLAN", "--batch", "8"], "flags of `plan build` go with a model"),
        (["PLAN", "--steps", "0"], "0 steps to time; give 1 to 100,000"),
        (["PLAN", "--threads", "300"], r"threads must be in 1..256"),
        (["PLAN", "--isa", "mmx"], "'mmx' is not available here"),
        (["PLAN", "--data", "."], "neither train.npz nor idx files are there"),
        (["EMPTY"], "holds no plan of a device"),
        (["CUT"], "Truncated"),
    ],
)
def test_bad_input_ends_with_a_line_that_says_what_to_do(
    words: list[str], message: str, plan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    cut = tmp_path / "cut.plan"
    cut.write_bytes(plan_file.read_bytes()[:500])
    paths = {"PLAN": plan_file, "EMPTY": tmp_path / "empty", "CUT": cut, ".": tmp_path}
    code, out, err = profiled(*(paths.get(word, word) for word in words), capsys=capsys)
    assert code == 2
    assert not out
    assert message in err
    assert err.startswith("edge-runtime profile: ")


def test_a_board_profiles_without_compiler_and_gateway(plan_file: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('models', 'coordinator', 'onnx', 'torch', 'matplotlib'): sys.modules[name] = None\n"
        "from edge_runtime.cli import main\n"
        f"assert main(['profile', {str(plan_file)!r}, '--steps', '1', '--json']) == 0\n"
        f"assert main(['profile', {str(plan_file)[:-5] + '.onnx'!r}]) == 2\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["phases"]
    assert "pip install 'edge-runtime[gateway]'" in done.stderr
