"""Training above a frozen prefix: kept features change no bit, hold their cap, and damage is noticed."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from engine.planwriter import BATCH, OUTPUT, PlanWriter, bits
from numpy.typing import NDArray

from edge_runtime.data import Dataset
from edge_runtime.engine import EngineMemoryError, NumberOutOfRange
from edge_runtime.feature_file import CacheDamaged, open_features, write_features
from edge_runtime.features import Budget, Features, Place, plan_budget
from edge_runtime.plan import read_plan
from edge_runtime.task import PlanMissing, TaskStopped, Update, run_task
from edge_runtime.task_checks import BadPrefix
from edge_runtime.wire import Phase, Upload
from edge_runtime.wire.tasks import Cache, Task, format_task, parse_task
from models.compiler import weights_of
from models.compiler.prefix import Split, compile_split
from models.compiler.rules import Sgd
from models.zoo import MODELS

RNG = np.random.default_rng(23)
DATA = Dataset(RNG.integers(0, 256, (21, 8, 8)).astype(np.uint8), RNG.integers(0, 4, 21).astype(np.int32))
EPOCHS = 3


@dataclass(frozen=True)
class Model:
    """A compiled classifier above a frozen prefix, and its weights."""

    split: Split
    weights: dict[str, NDArray[np.float32]]

    @property
    def plans(self) -> dict[str, bytes]:
        assert self.split.prefix is not None
        return {each.sha256: each.plan for each in (self.split.training, self.split.prefix)}


@pytest.fixture(scope="module")
def model() -> Model:
    onnx = MODELS["lenet"]((1, 8, 8), 4, 3)
    weights = weights_of(onnx)
    last = list(weights)[-4:]
    return Model(compile_split(onnx, batch=8, trainable=last, rule=Sgd(), prefix_batch=4), weights)


def task_of(model: Model, cache: Cache | None, prefix: str | None = None) -> Task:
    assert model.split.prefix is not None
    phase = Phase(model.split.training.sha256, EPOCHS, {"lr": 0.05}, prefix or model.split.prefix.sha256, cache)
    blobs = {name: len(data) for name, data in model.plans.items()} | {"f" * 64: 1}
    return Task("t", "job", 1, 1, "a", (phase,), "f" * 64, blobs, 4, 11, Upload(), 60.0)


def run(
    model: Model,
    cache: Cache | None = None,
    place: Place | None = None,
    *,
    dataset: Dataset = DATA,
    limit: int | None = None,
    warnings: list[str] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Update:
    plans = {name: read_plan(data) for name, data in model.plans.items()}
    told = [] if warnings is None else warnings
    return run_task(
        task_of(model, cache),
        plans,
        model.weights,
        dataset,
        memory_limit_bytes=limit,
        place=place,
        should_stop=should_stop,
        warn=told.append,
    )


def row_bytes(model: Model) -> int:
    return sum(model.split.features.values())


@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("rows", [0, 1, 20, 21, 1000])
def test_kept_features_change_no_bit_of_the_update(model: Model, tmp_path: Path, where: str, rows: int) -> None:
    place = Place(tmp_path / "features", 1 << 30)
    plain = run(model)
    assert run(model, Cache(where, rows * row_bytes(model)), place).data == plain.data
    files = list(place.directory.iterdir()) if place.directory.exists() else []
    assert len(files) == (where == "disk" and rows > 0)
    assert run(model, Cache(where, rows * row_bytes(model)), place).data == plain.data  # taken up again


def test_the_prefix_and_what_is_above_it_are_the_whole_model(model: Model) -> None:
    onnx = MODELS["lenet"]((1, 8, 8), 4, 3)
    names = list(model.split.training.report.trained)
    whole = compile_split(onnx, batch=8, trainable=["*"], rule=Sgd())
    frozen = Model(compile_split(onnx, batch=8, trainable=names, rule=Sgd(), prefix_batch=1), model.weights)
    assert run(frozen).loss == pytest.approx(run(model).loss, rel=1e-6)
    assert whole.prefix is None


def test_both_caps_hold(model: Model, tmp_path: Path) -> None:
    rows = 7 * row_bytes(model)
    for cap, own in ((rows, 1 << 30), (1 << 30, rows + 3)):
        place = Place(tmp_path / f"{cap}", own)
        run(model, Cache("disk", cap), place)
        (file,) = place.directory.iterdir()
        assert rows < file.stat().st_size < rows + 7 * 4 + 100


def other_weights(model: Model) -> Model:
    assert model.split.prefix is not None
    name = model.split.prefix.report.frozen[0]
    return replace(model, weights={**model.weights, name: model.weights[name] * 1.5})


def test_stale_features_are_removed_and_never_used(model: Model, tmp_path: Path) -> None:
    place, cache = Place(tmp_path, 1 << 30), Cache("disk", 1 << 30)
    run(model, cache, place)
    (first,) = tmp_path.iterdir()
    (tmp_path / "half.new").write_bytes(b"of a process that was killed")
    changed = other_weights(model)
    assert run(changed, cache, place).data == run(changed).data
    (second,) = tmp_path.iterdir()
    assert second != first
    fewer = Dataset(DATA.x[:20], DATA.y[:20])
    assert run(changed, cache, place, dataset=fewer).data == run(changed, dataset=fewer).data
    (third,) = tmp_path.iterdir()
    assert third not in (first, second)


@pytest.mark.parametrize("at", [0, 8, 20, 60, 2000, -40, -1])
def test_a_damaged_file_is_computed_again(model: Model, tmp_path: Path, at: int) -> None:
    place, cache = Place(tmp_path, 1 << 30), Cache("disk", 1 << 30)
    plain = run(model, cache, place).data
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    broken = bytearray(whole)
    broken[at] ^= 1
    for data in (bytes(broken), whole[:-1], whole + b"\0", b""):
        file.write_bytes(data)
        assert run(model, cache, place).data == plain
        assert file.read_bytes() == whole


def test_damage_during_a_run_is_told_and_the_file_is_gone(tmp_path: Path) -> None:
    rows = np.arange(12, dtype=np.uint8).reshape(3, 4)
    kept = write_features(tmp_path, "ab" * 32, 3, 4, iter(rows))
    buffer = np.empty(4, np.uint8)
    kept.read(2, buffer)
    assert buffer.tolist() == [8, 9, 10, 11]
    path = tmp_path / ("ab" * 32)
    with path.open("r+b") as file:
        file.seek(56 + 4)
        file.write(b"\xff")
    with pytest.raises(CacheDamaged, match="row 1"):
        kept.read(1, buffer)
    assert not path.exists()
    kept.close()


def test_a_file_of_other_rows_or_another_key_is_not_taken(tmp_path: Path) -> None:
    rows = np.arange(12, dtype=np.uint8).reshape(3, 4)
    write_features(tmp_path, "ab" * 32, 3, 4, iter(rows)).close()
    assert open_features(tmp_path, "ab" * 32, 2, 6) is None
    write_features(tmp_path, "ab" * 32, 3, 4, iter(rows)).close()
    (tmp_path / ("ab" * 32)).rename(tmp_path / ("cd" * 32))
    assert open_features(tmp_path, "cd" * 32, 3, 4) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/dev/full").exists(), reason="needs a disk that is full")
def test_a_full_disk_costs_time_only(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edge_runtime.feature_file.os.fsync", full)
    warnings: list[str] = []
    place = Place(tmp_path, 1 << 30)
    assert run(model, Cache("disk", 1 << 30), place, warnings=warnings).data == run(model).data
    assert "No space left on device" in warnings[0]
    assert list(tmp_path.iterdir()) == []
    parts = [read_plan(data).memory_bytes(1) for data in model.plans.values()]
    assert run(model, Cache("disk", 1 << 30), place, limit=sum(parts)).data == run(model).data
    with pytest.raises(EngineMemoryError, match="make room on the disk"):
        run(model, Cache("disk", 1 << 30), place, limit=sum(parts) - 1)


def test_a_stop_while_features_are_computed_leaves_nothing_behind(model: Model, tmp_path: Path) -> None:
    asked = iter([False, False, True])
    with pytest.raises(TaskStopped):
        run(model, Cache("disk", 1 << 30), Place(tmp_path, 1 << 30), should_stop=lambda: next(asked))
    assert list(tmp_path.iterdir()) == []


def test_features_of_one_number_and_of_several_columns_come_to_their_places() -> None:
    plan = PlanWriter()
    x = plan.tensor("x", (4, 3), BATCH)
    total, twice = plan.tensor("features/0", (4,), OUTPUT), plan.tensor("features/1", (4, 3), OUTPUT)
    plan.op("reduce_sum", [x], [total], [2, bits(1.0)])
    plan.op("add", [x, x], [twice])
    rows = np.arange(18, dtype=np.float32).reshape(6, 3)
    features = Features(read_plan(plan.seal()), {}, Dataset(rows, np.zeros(6, np.int32)), 1, lambda: None)
    for kept in (0, 4, 6):
        features.keep(Budget(kept, "memory", complete=kept == 6), None, print)
        columns = {"features/0": np.full(4, 9.0, np.float32), "features/1": np.full((4, 3), 9.0, np.float32)}
        features.fill(np.array([5, 0, 4]), columns)
        assert columns["features/0"].tolist() == [48.0, 3.0, 39.0, 0.0]
        assert columns["features/1"].tolist() == [[30, 32, 34], [0, 2, 4], [24, 26, 28], [0, 0, 0]]
        features.close()


def test_a_task_without_a_prefix_leaves_no_features_on_disk(model: Model, tmp_path: Path) -> None:
    run(model, Cache("disk", 1 << 30), Place(tmp_path, 1 << 30))
    onnx = MODELS["lenet"]((1, 8, 8), 4, 3)
    whole = compile_split(onnx, batch=8, trainable=["*"], rule=Sgd()).training
    phase = Phase(whole.sha256, 1, {"lr": 0.05})
    task = replace(task_of(model, None), phases=(phase,), blobs={whole.sha256: 1, "f" * 64: 1})
    run_task(task, {whole.sha256: read_plan(whole.plan)}, model.weights, DATA, place=Place(tmp_path, 1 << 30))
    assert list(tmp_path.iterdir()) == []


def budget(cache: Cache | None, limit: int | None, place: Place | None = None) -> tuple[int, bool]:
    found = plan_budget(
        cache, place, examples=10, row_bytes=100, training_bytes=5000, prefix_bytes=3000, limit_bytes=limit
    )
    return found.rows, found.complete


def test_memory_is_promised_before_the_run() -> None:
    memory, disk = Cache("memory", 1 << 20), Cache("disk", 1 << 20)
    place = Place(Path("unused"), 1 << 20)
    assert budget(memory, None) == (10, True)
    assert budget(memory, 6000) == (10, True)  # 5000 + 10 * 100; the prefix's engine is gone by then
    with pytest.raises(EngineMemoryError, match="its prefix 3000, the limit is"):
        budget(memory, 5999)
    assert budget(Cache("memory", 450), 8400) == (4, False)
    assert budget(Cache("memory", 450), 8399) == (3, False)
    assert budget(disk, 5000, place) == (10, True)
    assert budget(disk, None) == (0, False)
    assert budget(None, 8000) == (0, False)
    with pytest.raises(EngineMemoryError):
        budget(None, 7999)


def test_a_limit_below_the_engines_is_refused(model: Model) -> None:
    with pytest.raises(EngineMemoryError, match="prefix"):
        run(model, limit=1000)


def test_parts_that_do_not_fit_together_are_refused(model: Model) -> None:
    plans = {name: read_plan(data) for name, data in model.plans.items()}
    training = model.split.training.sha256
    with pytest.raises(BadPrefix, match="features of x alone"):
        run_task(task_of(model, None, prefix=training), plans, model.weights, DATA)
    with pytest.raises(PlanMissing, match="not at hand"):
        run_task(task_of(model, None), {training: plans[training]}, model.weights, DATA)
    plain = replace(task_of(model, None), phases=(Phase(training, 1, {"lr": 0.1}),))
    with pytest.raises(BadPrefix, match=r"its prefix makes {}"):
        run_task(plain, plans, model.weights, DATA)


def test_a_task_says_prefix_and_cache_and_leaves_out_what_is_none(model: Model) -> None:
    task = task_of(model, Cache("disk", 4096))
    assert parse_task(format_task(task)) == task
    plain = replace(task, phases=(Phase(task.phases[0].plan, 1, {"lr": 0.1}),))
    assert b"prefix" not in format_task(plain)
    assert b"cache" not in format_task(plain)


def test_tokens_out_of_range_are_told_with_their_row() -> None:
    torch = pytest.importorskip("torch")
    from support.networks import Network, export  # noqa: PLC0415 - needs torch

    def build() -> "torch.nn.Module":
        return torch.nn.Sequential(torch.nn.Embedding(9, 3), torch.nn.Flatten(), torch.nn.Linear(12, 4))

    onnx = export(build(), Network(build, (4,), 8, 4, tokens=True))
    compiled = compile_split(onnx, batch=8, trainable=("*",), rule=Sgd()).training
    weights = weights_of(onnx)
    rng = np.random.default_rng(3)
    x, y = rng.integers(0, 9, (20, 4)).astype(np.int32), rng.integers(0, 4, 20).astype(np.int32)
    phase = Phase(compiled.sha256, 20, {"lr": 0.3})
    task = Task("t", "job", 1, 1, "a", (phase,), "f" * 64, {compiled.sha256: 1, "f" * 64: 1}, 4, 11, Upload(), 60.0)
    plans = {compiled.sha256: read_plan(compiled.plan)}
    update = run_task(task, plans, weights, Dataset(x, y))
    assert run_task(task, plans, weights, Dataset(x.astype(np.uint8), y)).data == update.data
    assert update.loss < 1.4  # of four classes alike it is 1.386, and it falls
    x[7, 2] = 9
    with pytest.raises(NumberOutOfRange, match=r"is 9; indices are 0\.\.8"):
        run_task(task, plans, weights, Dataset(x, y))
