"""Graphs that draw random numbers: what they mean, their gradients, their repetition, and their way from ONNX."""

from __future__ import annotations

import io
import warnings

import numpy as np
import onnx
import onnx.helper as oh
import onnxruntime
import pytest
from forward import run_on_engine

import models.compiler.graph as g
from edge_runtime import _core
from edge_runtime.data import Dataset
from edge_runtime.plan import read_plan
from edge_runtime.rng import derive_seed
from edge_runtime.task import run_task
from edge_runtime.tensors import encode_tensors
from edge_runtime.wire import Phase
from models.compiler import CompileError, compile_training, import_onnx, weights_of, with_weights
from models.compiler.autodiff import gradients
from models.compiler.ir import Role
from models.compiler.prefix import compile_split
from models.compiler.rules import Sgd
from models.compiler.training import compile_loss
from support.boards import Compiled, task_for

KEY = {"seed": np.array(9.0, np.float32), "random.step": np.array(2.0, np.float32)}
X = np.random.default_rng(1).normal(size=(40, 50)).astype(np.float32)


def test_dropout_zeroes_a_share_and_scales_the_rest_and_so_does_its_gradient() -> None:
    x = g.leaf("x", "float32", X.shape)
    y, kept = g.dropout(x, 0.3, stream=4)
    (d_x,) = gradients(g.sum(g.square(y)), [x])
    got, mask, gradient = run_on_engine([y, kept, d_x], {"x": X, **KEY})
    assert set(np.unique(mask)) == {0.0, 1.0}
    assert abs(mask.mean() - 0.7) < 4 * np.sqrt(0.21 / X.size)
    np.testing.assert_allclose(got, X * mask / 0.7, rtol=1e-6)
    np.testing.assert_allclose(gradient, 2 * X * mask / 0.49, rtol=1e-6)


def test_uses_differ_by_stream_and_are_not_merged() -> None:
    a, b, again = (g.random_uniform((100,), stream) for stream in (0, 1, 0))
    first, second, third = run_on_engine([a * 1.0, b * 1.0, again * 2.0], KEY)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(third, first * 2.0)


def test_ranges_means_and_shares_are_as_asked() -> None:
    p = np.repeat(np.array([0.0, 0.2, 1.0], np.float32), 2000)
    outputs = [
        g.random_uniform((5000,), 0, -2.0, 3.0),
        g.random_normal((5000,), 1, 4.0, 0.5),
        g.bernoulli(g.leaf("p", "float32", p.shape), 2),
    ]
    uniform, normal, hits = run_on_engine(outputs, {"p": p, **KEY})
    assert -2.0 <= uniform.min() < -1.9 < 2.9 < uniform.max() < 3.0
    assert abs(normal.mean() - 4.0) < 0.04
    assert abs(normal.std() - 0.5) < 0.03
    shares = hits.reshape(3, -1).mean(1)
    assert (shares[0], shares[2]) == (0.0, 1.0)
    assert abs(shares[1] - 0.2) < 0.04


@pytest.mark.parametrize("recompute", [False, True])
def test_a_step_draws_the_same_forwards_and_backwards_and_new_numbers_in_the_next(*, recompute: bool) -> None:
    """With loss sum(w * mask) the gradient is the mask, so the weights tell which mask the backward part used."""
    w = g.leaf("w", "float32", (300,))
    mask = g.bernoulli(g.constant(np.full(300, 0.5)), 0)
    loss = g.sum(g.square(g.tanh(w)) * mask)
    engine = _core.Engine(compile_loss(loss, (), rule=Sgd(momentum=0.0), recompute=recompute).plan)
    moved, masks = [], []
    for _ in range(2):
        engine.view("w")[...], engine.view("lr")[...], engine.view("seed")[...] = 1.0, 0.1, 77.0
        engine.step()
        masks.append(engine.view("w") != 1.0)
        moved.append(float(engine.view("loss").reshape(())))
    for value, drawn in zip(moved, masks, strict=True):
        np.testing.assert_allclose(value, np.tanh(1.0) ** 2 * drawn.sum(), rtol=1e-5)
    assert 0 < (masks[0] != masks[1]).sum() < 300
    assert engine.view("random.step") == 2.0


def test_a_plan_that_draws_has_a_seed_and_counts_its_steps() -> None:
    w = g.leaf("w", "float32", (3,))
    compiled = compile_loss(g.sum(w * g.random_normal((3,), 0)), ())
    roles = {t["name"]: t["role"] for t in _core.describe(compiled.plan)["tensors"] if t["name"]}
    assert (roles["seed"], roles["random.step"]) == (Role.SCALAR, Role.STATE)
    assert compiled.report.trained == ("w",)
    with pytest.raises(CompileError, match="stream must be 0 to"):
        g.random_normal((3,), -1)
    with pytest.raises(CompileError, match=r"rate of dropout must be in \[0, 1\), got 1"):
        g.dropout(w, 1.0, 0)


def model(nodes: list[onnx.NodeProto], shape: list[int | str], out: list[int | str], weight: tuple[int, ...]) -> bytes:
    rng = np.random.default_rng(0)
    stored = [
        onnx.numpy_helper.from_array(rng.normal(size=weight).astype(np.float32) * np.float32(0.3), "w"),
        onnx.numpy_helper.from_array(np.array(0.5, np.float32), "ratio"),
        onnx.numpy_helper.from_array(np.ones((), np.bool_), "training"),
    ]
    kind = onnx.TensorProto.FLOAT
    infos = [oh.make_tensor_value_info(n, kind, s) for n, s in (("in", shape), ("out", out))]
    graph = oh.make_graph(nodes, "g", infos[:1], infos[1:], stored)
    return bytes(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8).SerializeToString())


DROPPING = [
    oh.make_node("Dropout", ["in", "ratio", "training"], ["h"], name="drop"),
    oh.make_node("MatMul", ["h", "w"], ["out"]),
]


def test_a_model_with_dropout_trains_on_a_board_by_the_seed_of_its_task() -> None:
    data = model(DROPPING, ["N", 12], ["N", 4], (12, 4))
    compiled = compile_training(import_onnx(data, batch=8))
    rng = np.random.default_rng(2)
    dataset = Dataset(rng.random((20, 12)).astype(np.float32), rng.integers(0, 4, 20).astype(np.int32))
    board = Compiled(compiled.plan, weights_of(data))
    updates = []
    for seed in (11, 11, 12):
        phases = (Phase(compiled.sha256, 2, {"lr": 0.1}),)
        task = task_for("a", "t", board, encode_tensors(board.weights), phases=phases, classes=4, seed=seed)
        updates.append(run_task(task, {compiled.sha256: read_plan(compiled.plan)}, board.weights, dataset).data)
    assert updates[0] == updates[1] != updates[2]
    assert 0 <= derive_seed("random", 11, 0) % (1 << 24) < 1 << 24


def test_the_trained_model_drops_nothing() -> None:
    data = model(DROPPING, ["N", 12], ["N", 4], (12, 4))
    x = np.random.default_rng(2).random((3, 12)).astype(np.float32)
    session = onnxruntime.InferenceSession(with_weights(data, weights_of(data)))
    np.testing.assert_allclose(session.run(None, {"in": x})[0], x @ weights_of(data)["w"], rtol=1e-5)


@pytest.mark.parametrize(
    ("op", "attrs", "mean", "deviation"),
    [
        ("RandomNormalLike", {"mean": 2.0, "scale": 0.5}, 2.0, 0.5),
        ("RandomUniformLike", {"low": -1.0, "high": 2.0}, 0.5, np.sqrt(9 / 12)),
        ("RandomNormal", {"shape": [4, 600]}, 0.0, 1.0),
        ("RandomUniform", {"shape": [4, 600], "high": 3.0}, 1.5, np.sqrt(9 / 12)),
    ],
)
def test_noise_of_a_model_is_distributed_as_its_node_says(
    op: str, attrs: dict[str, object], mean: float, deviation: float
) -> None:
    given = ["in"] if op.endswith("Like") else []
    nodes = [oh.make_node(op, given, ["noise"], **attrs), oh.make_node("Add", ["in", "noise"], ["out"])]
    graph = import_onnx(model(nodes, [4, 600], [4, 600], (1,)), batch=4)
    (noise,) = run_on_engine(graph.outputs, {"x": np.zeros((4, 600), np.float32), **KEY})
    assert abs(noise.mean() - mean) < 4 * deviation / np.sqrt(noise.size)
    assert abs(noise.std() - deviation) < 0.05 * deviation + 0.01
    nodes[0].attribute.append(oh.make_attribute("dtype", onnx.TensorProto.DOUBLE))
    double = model(nodes, [4, 600], [4, 600], (1,))
    with pytest.raises(CompileError, match="random numbers are float32"):
        import_onnx(double, batch=4)


@pytest.mark.torch
def test_an_exported_model_with_dropout_learns() -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 32), torch.nn.ReLU(), torch.nn.Dropout(0.25), torch.nn.Linear(32, 3))
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter announces its successor
        torch.onnx.export(
            net.train(),
            (torch.zeros(2, 6),),
            file,
            dynamo=False,
            input_names=["in"],
            dynamic_axes={"in": {0: "N"}},
            training=torch.onnx.TrainingMode.TRAINING,
        )
    compiled = compile_training(import_onnx(file.getvalue(), batch=30))
    engine = _core.Engine(compiled.plan)
    for name, array in weights_of(file.getvalue()).items():
        engine.view(name)[...] = array
    rng = np.random.default_rng(5)
    x = rng.normal(size=(30, 6)).astype(np.float32)
    engine.view("x")[...], engine.view("y")[...], engine.view("lr")[...] = x, np.argmax(x[:, :3], 1), 0.1
    losses = []
    for _ in range(120):
        engine.step()
        losses.append(float(engine.view("loss").reshape(())))
    assert np.mean(losses[-10:]) < 0.4 * losses[0]


def test_dropout_stays_above_the_frozen_prefix() -> None:
    nodes = [oh.make_node("Gemm", ["in", "w"], ["f"]), oh.make_node("Dropout", ["f", "ratio", "training"], ["h"])]
    nodes += [oh.make_node("Mul", ["h", "gain"], ["out"])]
    data = onnx.load_model_from_string(model(nodes, ["N", 12], ["N", 4], (12, 4)))
    data.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(4, np.float32), "gain"))
    split = compile_split(data.SerializeToString(), batch=8, trainable=["gain"], rule=Sgd())
    assert split.prefix is not None
    names = [{t["name"] for t in _core.describe(c.plan)["tensors"]} for c in (split.prefix, split.training)]
    assert "seed" not in names[0]
    assert {"seed", "random.step", "features/0"} <= names[1]


def test_the_slices_of_a_batch_draw_different_numbers() -> None:
    data = model(DROPPING, ["N", 12], ["N", 4], (12, 4))
    compiled = compile_training(import_onnx(data, batch=4), micro_batches=2, momentum=0.0)
    engine = _core.Engine(compiled.plan)
    weight = weights_of(data)["w"]
    moved = []
    for half in (slice(0, 4), slice(4, 8)):
        engine.view("w")[...], engine.view("x")[...], engine.view("lr")[...] = weight, 0.0, 1.0
        engine.view("random.step")[...], engine.view("y")[...] = 0.0, -1
        engine.view("x")[half], engine.view("y")[half] = 1.0, 1
        engine.step()
        moved.append(engine.view("w").copy())
    assert not np.array_equal(*moved)
    assert engine.view("random.step") == 2.0
