"""Running a task: against a slow twin of its own, exact repetition, and every refusal."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.codecs import BadCodec
from edge_runtime.data import Dataset, NoExamples, ShapeMismatch, batch_indices
from edge_runtime.engine import Engine, EngineMemoryError
from edge_runtime.plan import read_plan
from edge_runtime.slots import Slots
from edge_runtime.task import NonFiniteUpdate, PlanMissing, SlotsMissing, TaskStopped, Update, run_task
from edge_runtime.task_checks import BadBatchShape, LabelOutOfRange, ScalarMismatch, WeightMismatch
from edge_runtime.tensors import decode_tensors, encode_tensors
from edge_runtime.wire import Phase, Upload
from edge_runtime.wire.tasks import Carry, Task, format_task, parse_task
from models.compiler import compile_training, import_onnx
from models.compiler.rules import Sgd
from models.zoo import MODELS
from support.boards import Compiled, compile_model, task_for

RNG = np.random.default_rng(17)
DATA = Dataset(RNG.random((21, 6)).astype(np.float32), RNG.integers(0, 4, 21).astype(np.int32))


@pytest.fixture(scope="module")
def mlp() -> Compiled:
    return compile_model("mlp", (6,), batch=8, classes=4)


def run(model: Compiled, task: Task | None = None, dataset: Dataset = DATA, **options: object) -> Update:
    task = task or make_task(model)
    return run_task(task, {model.sha256: read_plan(model.plan)}, model.weights, dataset, **options)  # type: ignore[arg-type]


def make_task(model: Compiled, **changes: object) -> Task:
    phases = (Phase(model.sha256, 2, {"lr": 0.05}),)
    return task_for("a", "t", model, encode_tensors(model.weights), **{"phases": phases, "classes": 4, **changes})


def sgd_twin(model: Compiled, task: Task) -> tuple[dict[str, np.ndarray], float]:
    """The same epochs in float64 NumPy: the zoo's perceptron is relu(x W1 + b1) W2 + b2 (any depth)."""
    names = sorted(model.weights, key=list(model.weights).index)
    layers = [(names[i], names[i + 1]) for i in range(0, len(names), 2)]
    w = {name: model.weights[name].astype(np.float64) for name in names}
    velocity = {name: np.zeros_like(value) for name, value in w.items()}
    losses = []
    for epoch in range(task.phases[0].epochs):
        for rows in batch_indices(len(DATA), 8, task.seed, epoch):
            acts = [DATA.x[rows].astype(np.float64)]
            for depth, (weight, bias) in enumerate(layers):
                out = acts[-1] @ oriented(w[weight], acts[-1].shape[1]) + w[bias]
                acts.append(np.maximum(out, 0) if depth < len(layers) - 1 else out)
            p = np.exp(acts[-1] - acts[-1].max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            picked = p[np.arange(len(rows)), DATA.y[rows]]
            losses.append(-np.log(picked).mean())
            d = p.copy()
            d[np.arange(len(rows)), DATA.y[rows]] -= 1
            d /= len(rows)
            grads = {}
            for depth in reversed(range(len(layers))):
                weight, bias = layers[depth]
                flat = acts[depth].T @ d
                grads[weight] = flat if w[weight].shape == flat.shape else flat.T
                grads[bias] = d.sum(0)
                d = (d @ oriented(w[weight], acts[depth].shape[1]).T) * (acts[depth] > 0)
            for name in names:
                velocity[name] = 0.9 * velocity[name] + grads[name]
                w[name] -= task.phases[0].scalars["lr"] * velocity[name]
    return {name: w[name] - model.weights[name] for name in names}, float(np.mean(losses))


@pytest.mark.parametrize("mu", [0.0, 5.0])
def test_a_proximal_pull_is_towards_what_the_task_brought(mlp: Compiled, mu: float) -> None:
    """A second phase is pulled to the task's weights, not to those that the first phase left."""
    graph = import_onnx(MODELS["mlp"]((6,), 4, 3), batch=8)
    plain, pulled = (compile_training(graph, rule=Sgd(momentum=0.0, proximal=p)) for p in (0.0, mu))
    phases = (Phase(plain.sha256, 4, {"lr": 0.5}), Phase(pulled.sha256, 4, {"lr": 0.1}))
    plans = {c.sha256: read_plan(c.plan) for c in (plain, pulled)}
    far, near = (
        decode_tensors(run_task(make_task(mlp, phases=ran), plans, mlp.weights, DATA).data)[0]
        for ran in (phases[:1], phases)
    )
    gone = [float(sum(np.square(v).sum() for v in delta.values())) for delta in (far, near)]
    assert (gone[1] < 0.1 * gone[0]) == (mu > 0.0)


def test_a_cap_on_steps_ends_a_phase_and_the_next_one_begins_with_its_own_epochs(mlp: Compiled) -> None:
    """The first steps are those without a cap; epochs go on being counted as the task has them."""
    whole = -(-len(DATA) // 8)
    capped = make_task(mlp, phases=(Phase(mlp.sha256, 3, {"lr": 0.05}, steps=whole),))
    one_epoch = make_task(mlp, phases=(Phase(mlp.sha256, 1, {"lr": 0.05}),))
    assert decode_tensors(run(mlp, capped).data)[0].keys() == decode_tensors(run(mlp, one_epoch).data)[0].keys()
    for name, tensor in decode_tensors(run(mlp, capped).data)[0].items():
        np.testing.assert_array_equal(tensor, decode_tensors(run(mlp, one_epoch).data)[0][name])
    assert run(mlp, capped).steps == whole
    short = make_task(mlp, phases=(Phase(mlp.sha256, 3, {"lr": 0.05}, steps=1), Phase(mlp.sha256, 1, {"lr": 0.05})))
    assert run(mlp, short).steps == 1 + whole
    assert parse_task(format_task(short)) == short


@pytest.mark.parametrize("split", [False, True], ids=["one phase", "two phases"])
def test_of_a_trained_moving_average_that_is_sent(mlp: Compiled, split: bool) -> None:  # noqa: FBT001 - a parameter
    decay = 0.7
    graph = import_onnx(MODELS["mlp"]((6,), 4, 3), batch=8)
    plain, averaged = (compile_training(graph, rule=Sgd(momentum=0.0, ema=e)) for e in (None, decay))
    plan = read_plan(averaged.plan)
    epochs = (1, 1) if split else (2,)
    task = make_task(mlp, phases=tuple(Phase(averaged.sha256, n, {"lr": 0.05}) for n in epochs))
    got, _ = decode_tensors(run_task(task, {plan.sha256: plan}, mlp.weights, DATA).data)
    average = {name: value.astype(np.float64) for name, value in mlp.weights.items()}
    engine = Engine(read_plan(plain.plan))
    for name, value in mlp.weights.items():
        engine.write(name, value)
    engine.write("lr", np.array(0.05, np.float32))
    for epoch in range(2):
        for rows in batch_indices(len(DATA), 8, task.seed, epoch):
            engine.view("x")[: len(rows)], engine.view("y")[...] = DATA.x[rows], -1
            engine.view("y")[: len(rows)] = DATA.y[rows]
            engine.step()
            average = {name: decay * value + (1 - decay) * engine.read(name) for name, value in average.items()}
    assert got.keys() == mlp.weights.keys()
    for name, value in average.items():
        np.testing.assert_allclose(got[name], value - mlp.weights[name], rtol=1e-4, atol=1e-6)


def oriented(weight: np.ndarray, inputs: int) -> np.ndarray:
    return weight if weight.shape[0] == inputs else weight.T


def test_an_update_is_trained_minus_received_of_the_slow_twin(mlp: Compiled) -> None:
    update = run(mlp)
    tensors, metadata = decode_tensors(update.data)
    expected, loss = sgd_twin(mlp, make_task(mlp))
    assert tensors.keys() == expected.keys()
    for name, delta in expected.items():
        np.testing.assert_allclose(tensors[name], delta, rtol=1e-4, atol=2e-6)
    assert update.loss == pytest.approx(loss, rel=1e-5)
    assert metadata == {
        "task": "t",
        "job": "job",
        "round": "1",
        "version": "1",
        "device": "a",
        "examples": "21",
        "steps": "6",
        "loss": repr(update.loss),
    }
    assert (update.steps, update.examples) == (6, 21)


def test_the_same_task_gives_the_same_bytes_with_any_number_of_threads(mlp: Compiled) -> None:
    assert run(mlp).sha256 == run(mlp).sha256 == run(mlp, threads=3).sha256


def test_another_seed_gives_another_update(mlp: Compiled) -> None:
    assert run(mlp, make_task(mlp, seed=12)).sha256 != run(mlp).sha256


def test_phases_go_on_from_each_other(mlp: Compiled) -> None:
    one = Phase(mlp.sha256, 1, {"lr": 0.05})
    first = decode_tensors(run(mlp, make_task(mlp, phases=(one,))).data)[0]
    both = run(mlp, make_task(mlp, phases=(one, one)))
    assert both.steps == 6
    assert any(not np.array_equal(first[name], delta) for name, delta in decode_tensors(both.data)[0].items())


def test_the_received_weights_are_not_touched(mlp: Compiled) -> None:
    before = {name: value.copy() for name, value in mlp.weights.items()}
    run(mlp)
    assert all(np.array_equal(before[name], value) for name, value in mlp.weights.items())


def test_a_stop_comes_between_two_steps(mlp: Compiled) -> None:
    asked = iter([False, False, True])
    with pytest.raises(TaskStopped, match="after 2 steps"):
        run(mlp, should_stop=lambda: next(asked))


@pytest.mark.parametrize(
    ("changes", "rule", "said"),
    [
        ({"classes": 3}, LabelOutOfRange, "0 .. 2"),
        ({"phases": (Phase("0" * 64, 1, {"lr": 0.1}),)}, PlanMissing, "0" * 64),
        ({"upload": Upload(codec=("topk",))}, BadCodec, "takes the share of values"),
        ({"upload": Upload(codec=("dense", "dense"))}, BadCodec, "'dense' is unknown or out of place"),
        ({"upload": Upload(codec=("topk 0.1 ef",))}, SlotsMissing, "carries .'residual',. over"),
    ],
)
def test_a_task_that_does_not_fit_is_refused(
    mlp: Compiled, changes: dict[str, object], rule: type[Exception], said: str
) -> None:
    with pytest.raises(rule, match=said):
        run(mlp, make_task(mlp, **changes))


@pytest.mark.parametrize("scalars", [{}, {"lr": 0.1, "mu": 1.0}, {"mu": 1.0}])
def test_scalars_must_be_the_plans(mlp: Compiled, scalars: dict[str, float]) -> None:
    with pytest.raises(ScalarMismatch, match="lr"):
        run(mlp, make_task(mlp, phases=(Phase(mlp.sha256, 1, scalars),)))


def test_data_that_do_not_fit_are_refused_before_training(mlp: Compiled) -> None:
    with pytest.raises(NoExamples):
        run(mlp, dataset=Dataset(DATA.x[:0], DATA.y[:0]))
    with pytest.raises(ShapeMismatch, match=r"\(5,\)"):
        run(mlp, dataset=Dataset(DATA.x[:, :5], DATA.y))
    with pytest.raises(LabelOutOfRange, match="row 0"):
        run(mlp, dataset=Dataset(DATA.x, DATA.y - 5))


def test_weights_that_lack_a_tensor_or_have_another_shape_are_refused(mlp: Compiled) -> None:
    name = next(iter(mlp.weights))
    without = replace(mlp, weights={k: v for k, v in mlp.weights.items() if k != name})
    with pytest.raises(WeightMismatch, match="have not"):
        run(without)
    other = replace(mlp, weights={**mlp.weights, name: np.zeros((1, 1), np.float32)})
    with pytest.raises(WeightMismatch, match=r"\(1, 1\)"):
        run(other)


def test_a_plan_over_the_memory_limit_is_refused(mlp: Compiled) -> None:
    with pytest.raises(EngineMemoryError, match="limit is 100"):
        run(mlp, memory_limit_bytes=100)


def test_diverging_training_is_not_uploaded(mlp: Compiled) -> None:
    with pytest.raises(NonFiniteUpdate, match="learning rate"):
        run(mlp, make_task(mlp, phases=(Phase(mlp.sha256, 40, {"lr": 1e30}),)))


def test_weights_that_are_not_finite_give_no_update(mlp: Compiled) -> None:
    name = next(iter(mlp.weights))
    broken = mlp.weights[name].copy()
    broken.flat[0] = np.inf
    with pytest.raises(NonFiniteUpdate):
        run(replace(mlp, weights={**mlp.weights, name: broken}))


@pytest.mark.parametrize(
    ("codec", "rate"),
    [(("topk 0.1 ef", "fp16", "rice"), 2e20), (("int8",), 1e38), (("svd 0.9", "int8"), 1e38)],
    ids=["topk", "int8", "svd"],
)
def test_an_update_beyond_what_can_be_summed_is_refused_before_anything_of_it_is_carried(
    mlp: Compiled, tmp_path: Path, codec: tuple[str, ...], rate: float
) -> None:
    """All that follows would be refused as well, for what is carried of it."""
    slots = Slots(tmp_path / "slots")
    one_step = Phase(mlp.sha256, 1, {"lr": rate}, steps=1)
    task = make_task(mlp, phases=(one_step,), upload=Upload(codec=codec), carry=Carry("0123456789abcdef", None))
    with pytest.raises(NonFiniteUpdate, match=r"gone as far as .* with 21 examples less than 5.6e\+19"):
        run(mlp, task, slots=slots)
    assert slots.kept("0123456789abcdef") is None


@pytest.mark.parametrize(
    ("dtype", "error", "says"),
    [("int32", ShapeMismatch, "examples are float32, the plan takes int32"), ("uint8", BadBatchShape, "uint8")],
)
def test_numbers_are_refused_for_a_plan_of_integers(mlp: Compiled, dtype: str, error: type, says: str) -> None:
    plan = read_plan(mlp.plan)
    tensors = tuple(replace(tensor, dtype=dtype) if tensor.name == "x" else tensor for tensor in plan.tensors)
    with pytest.raises(error, match=says):
        run_task(make_task(mlp), {mlp.sha256: replace(plan, tensors=tensors)}, mlp.weights, DATA)
