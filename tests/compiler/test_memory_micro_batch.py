"""Micro-batches: one step over a batch in slices trains as the whole batch does, in less memory."""

import numpy as np
import pytest
from numpy.typing import NDArray

import models.compiler.graph as g
from edge_runtime import _core
from models.compiler import Compiled, CompileError, Graph, ModelError, compile_training, import_onnx, weights_of
from models.compiler.randomness import dropout
from models.compiler.rules import AdamW, Rule, Sgd
from models.zoo import build

BATCH = 12
Weights = dict[str, NDArray[np.float32]]


def trained(compiled: Compiled, data: bytes, labels: NDArray[np.int32], rng: np.random.Generator) -> Weights:
    """Loss and tensors after three steps on three batches, each over an arena of NaN."""
    engine = _core.Engine(compiled.plan)
    for name, value in weights_of(data).items():
        engine.view(name)[...] = value
    engine.view("lr")[...] = 0.05
    engine.view("y")[...] = labels
    for _ in range(3):
        engine.view("x")[...] = rng.normal(size=engine.view("x").shape)
        engine.poison()
        engine.step()
    return {name: engine.view(name).copy() for name in (*compiled.report.trained, "loss")}


def compiled_in(slices: int, data: bytes, rule: Rule | None = None, trainable: str = "*") -> Compiled:
    graph = import_onnx(data, batch=BATCH // slices)
    return compile_training(graph, rule=rule, micro_batches=slices, trainable=[trainable])


@pytest.mark.parametrize("slices", [2, 3, 12])
@pytest.mark.parametrize(
    ("name", "shape", "rule"),
    [
        ("lenet", (1, 12, 12), Sgd(momentum=0.9, weight_decay=1e-3)),
        ("lenet", (1, 12, 12), Sgd(max_norm=0.1)),
        ("cnn1d", (3, 16), AdamW(epsilon=0.1)),  # a small epsilon divides rounding noise by itself
    ],
)
def test_slices_train_as_the_whole_batch(name: str, shape: tuple[int, ...], rule: Rule, slices: int) -> None:
    data = build(name, shape, 5, 7)
    labels = np.arange(BATCH, dtype=np.int32) % 5
    labels[[0, 1, 2, 7]] = -1  # with three slices and more, they hold different numbers of rows that count
    whole = trained(compiled_in(1, data, rule), data, labels, np.random.default_rng(2))
    sliced = trained(compiled_in(slices, data, rule), data, labels, np.random.default_rng(2))
    assert whole.keys() == sliced.keys()
    for key, value in whole.items():
        np.testing.assert_allclose(sliced[key], value, rtol=2e-4, atol=2e-6, err_msg=key)


def wide_model(rows: int) -> Graph:
    x = g.leaf("x", "float32", (rows, 40))
    inward, wide, narrow = (g.leaf(*tensor) for tensor in WIDE)
    hidden = g.relu(g.relu(x @ inward) @ wide)
    return Graph((x,), (inward, wide, narrow), (hidden @ narrow,))


WIDE = (("inward", "float32", (40, 200)), ("wide", "float32", (200, 300)), ("narrow", "float32", (300, 5)))


@pytest.mark.parametrize("rule", [Sgd(), Sgd(max_norm=0.1), AdamW(epsilon=0.1)])
def test_a_gradient_larger_than_its_rows_is_one_product_of_all_rows(rule: Rule, rng: np.random.Generator) -> None:
    results = []
    start = {name: rng.normal(size=shape).astype(np.float32) * 0.1 for name, _, shape in WIDE}
    x, y = rng.normal(size=(BATCH, 40)), rng.integers(0, 5, BATCH)
    for slices in (1, 3):
        engine = _core.Engine(compile_training(wide_model(BATCH // slices), rule=rule, micro_batches=slices).plan)
        for name, value in {**start, "x": x, "y": y, "lr": 0.05}.items():
            engine.view(name)[...] = value
        for _ in range(2):
            engine.poison()
            engine.step()
        results.append({name: engine.view(name).copy() for name in start})
    for name, value in results[0].items():
        np.testing.assert_allclose(results[1][name], value, rtol=2e-4, atol=2e-6, err_msg=name)
    plan = compile_training(wide_model(BATCH // 3), rule=Sgd(), micro_batches=3)
    products = [op for op in _core.describe(plan.plan)["ops"] if op["op"] in {"gemm", "gemm_sgd"} and op["attrs"][0]]
    assert len(products) == 1 + 1 + 3  # the narrow one, smaller than its rows, is summed
    assert plan.report.temporaries_bytes < 4 * 200 * 300 * 2


def test_a_slice_without_labels_adds_nothing() -> None:
    data = build("mlp", (9,), 5, 7)
    labels = np.full(BATCH, -1, np.int32)
    labels[0] = 3
    whole = trained(compiled_in(1, data), data, labels, np.random.default_rng(2))
    sliced = trained(compiled_in(4, data), data, labels, np.random.default_rng(2))
    for key, value in whole.items():
        np.testing.assert_allclose(sliced[key], value, rtol=2e-4, atol=2e-6, err_msg=key)


def test_activations_shrink_with_the_slices_and_gradients_are_summed_in_one_place() -> None:
    data = build("lenet", (1, 28, 28), 10, 3)
    graphs = {slices: import_onnx(data, batch=64 // slices) for slices in (1, 2, 4)}
    reports = [compile_training(graph, micro_batches=slices).report for slices, graph in graphs.items()]
    temporaries = [report.temporaries_bytes for report in reports]
    sums = 4 * sum(w.size for w in weights_of(data).values())
    largest = 4 * 400 * 120  # of the gradients: it is made beside the sum it is added to
    assert temporaries[0] > temporaries[1] > temporaries[2]
    assert temporaries[2] <= temporaries[0] / 4 + sums + largest


def test_work_does_not_grow_with_the_slices() -> None:
    data = build("lenet", (1, 28, 28), 10, 3)
    assert compiled_in(1, data).report.multiply_adds == compiled_in(4, data).report.multiply_adds


def test_a_bad_label_stops_the_step_before_it_writes_anything() -> None:
    engine = _core.Engine(compiled_in(3, build("mlp", (9,), 5, 7)).plan)
    before = {name: engine.view(name).copy() for name in ("fc1.weight", "loss")}
    engine.view("y")[-1] = 5
    with pytest.raises(ValueError, match=f"row {BATCH - 1}"):
        engine.step()
    assert all(np.array_equal(engine.view(name), value) for name, value in before.items())


def normalised_model(rows: int) -> Graph:
    x, counting = g.leaf("x", "float32", (rows, 6)), g.leaf("rows", "float32", (rows,))
    gain, bias, mean, variance = (g.leaf(name, "float32", (6,)) for name in ("gain", "bias", "mean", "variance"))
    norm = g.batch_norm(x, gain, bias, (mean, variance), counting)
    weight = g.leaf("weight", "float32", (6, 3))
    moved = ((mean, norm.mean), (variance, norm.variance))
    return Graph((x,), (gain, bias, mean, variance, weight), (norm.y @ weight,), rows=counting, updates=moved)


def test_statistics_of_the_batch_are_not_taken_of_slices_unless_asked_for() -> None:
    with pytest.raises(ModelError, match="statistics of the whole batch"):
        compile_training(normalised_model(4), micro_batches=3)
    report = compile_training(normalised_model(4), micro_batches=3, statistics_of_slices=True).report
    assert any("own statistics" in note for note in report.notes)


def test_running_statistics_go_from_slice_to_slice(rng: np.random.Generator) -> None:
    engine = _core.Engine(compile_training(normalised_model(4), micro_batches=3, statistics_of_slices=True).plan)
    x = rng.normal(size=(12, 6)).astype(np.float32)
    engine.view("x")[...] = x
    engine.view("gain")[...] = 1
    engine.view("y")[...] = np.arange(12) % 3
    engine.view("y")[[1, 2, 9]] = -1
    engine.poison()
    engine.step()
    mean, variance = np.zeros(6), np.zeros(6)
    for part, labels in zip(x.reshape(3, 4, 6), engine.view("y").reshape(3, 4), strict=True):
        counted = part[labels >= 0].astype(np.float64)
        mean += 0.1 * (counted.mean(0) - mean)
        variance += 0.1 * (counted.var(0, ddof=1) - variance)
    np.testing.assert_allclose(engine.view("mean"), mean, atol=1e-6)
    np.testing.assert_allclose(engine.view("variance"), variance, atol=1e-6)


def test_less_than_one_slice_is_refused() -> None:
    with pytest.raises(CompileError, match="micro_batches"):
        compile_training(normalised_model(4), micro_batches=0)


def test_every_slice_draws_its_own_random_numbers() -> None:
    x, weight = g.leaf("x", "float32", (4, 6)), g.leaf("weight", "float32", (6, 3))
    dropped, _ = dropout(x, 0.5, stream=0)
    plan = compile_training(Graph((x,), (weight,), (dropped @ weight,)), micro_batches=3).plan
    engine = _core.Engine(plan)
    engine.view("x")[...] = 1.0
    engine.view("seed")[...] = 5.0
    engine.view("lr")[...] = 1.0
    kept = set()
    for number in range(3):  # only one slice has labels: the gradient shows which of its elements were dropped
        engine.view("weight")[...] = 0.0
        engine.view("momentum/weight")[...] = 0.0
        engine.view("random.step")[...] = 0.0
        engine.view("y")[...] = -1
        engine.view("y")[4 * number : 4 * number + 4] = 0
        engine.step()
        kept.add(engine.view("weight").tobytes())
    assert len(kept) == 3
    assert engine.view("random.step") == 3.0


def test_more_slices_than_a_plan_has_room_for_are_refused_before_they_are_written_out() -> None:
    with pytest.raises(CompileError, match=r"30000 micro-batches of \d+ operations are more than the 65536"):
        compile_training(import_onnx(build("mlp", (9,), 5, 7), batch=1), micro_batches=30_000)
