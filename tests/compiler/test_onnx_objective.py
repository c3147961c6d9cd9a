"""Losses that arrive as ONNX, exported from torch: training under them equals torch, and what does not fit is said."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import pytest
from forward import run_on_engine

import models.compiler.graph as g
from edge_runtime import _core
from models.compiler import ModelError, import_onnx, weights_of
from models.compiler.autodiff import gradients
from models.compiler.onnx_objective import compile_onnx_loss, import_loss
from models.compiler.rules import Sgd

torch = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional
pytestmark = pytest.mark.torch

BATCH, CLASSES, STEPS = 6, 5, 5


class Both(nn.Module):  # type: ignore[misc, name-defined]
    """A loss of torch as a module of its own."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        return self.function(*given)


class Prototypes(nn.Module):  # type: ignore[misc, name-defined]
    """Squared distances to learned centres as logits."""

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(CLASSES, CLASSES))

    def forward(self, output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        distances = (output[:, None] - self.centres[None]).square().sum(-1)
        return functional.cross_entropy(-distances, labels) + 0.01 * self.centres.square().mean()


def huber(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """As functional.smooth_l1_loss, which the exporter does not have."""
    size = (a - b).abs()
    return torch.where(size < 1.0, 0.5 * size * size, size - 0.5).mean()


LABELS = torch.zeros(BATCH, dtype=torch.long)
ROWS = torch.zeros(BATCH, CLASSES)
# A loss and examples of its inputs after the model's output.
LOSSES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "cross-entropy": (Both(functional.cross_entropy), (LABELS,)),
    "smoothed": (Both(lambda z, y: functional.cross_entropy(z, y) * 0.9 - z.log_softmax(1).mean() * 0.1), (LABELS,)),
    "weighted": (Both(lambda z, y: functional.cross_entropy(z, y, torch.arange(1.0, 1.0 + CLASSES))), (LABELS,)),
    "nll": (Both(lambda z, y: functional.nll_loss(functional.log_softmax(z * 0.5, 1), y)), (LABELS,)),
    "soft targets": (Both(lambda z, p: -(p.softmax(1) * z.log_softmax(1)).sum(1).mean()), (ROWS,)),
    "kl": (Both(lambda z, p: functional.kl_div(z.log_softmax(1), p.softmax(1), reduction="batchmean")), (ROWS,)),
    "mse": (Both(functional.mse_loss), (ROWS,)),
    "huber": (Both(huber), (ROWS,)),
    "two targets": (Both(lambda z, p, y: functional.mse_loss(z, p) + functional.cross_entropy(z, y)), (ROWS, LABELS)),
    "prototypes": (Prototypes(), (LABELS,)),
}


def export(module: nn.Module, given: tuple[Any, ...], names: list[str]) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter announces its successor
        torch.onnx.export(
            module.train(),
            given,
            file,
            dynamo=False,
            input_names=names,
            dynamic_axes={name: {0: "N"} for name in names},
            training=torch.onnx.TrainingMode.TRAINING,
            do_constant_folding=False,
            opset_version=17,
        )
    return file.getvalue()


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(7, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, CLASSES))


def columns(examples: tuple[Any, ...], rng: np.random.Generator) -> list[np.ndarray]:
    return [
        rng.integers(0, CLASSES, BATCH).astype(np.int32)
        if not e.is_floating_point()
        else rng.normal(size=tuple(e.shape)).astype(np.float32)
        for e in examples
    ]


@pytest.mark.parametrize("name", LOSSES)
def test_training_under_an_exported_loss_equals_torch(name: str) -> None:
    module, examples = LOSSES[name]
    names = [f"c{i}" for i in range(len(examples))]
    net = network()
    model, loss = export(net, (torch.zeros(2, 7),), ["in"]), export(module, (ROWS, *examples), ["output", *names])
    compiled = compile_onnx_loss(import_onnx(model, batch=BATCH), loss, rule=Sgd(momentum=0.9))
    engine = _core.Engine(compiled.plan)
    own = {f"{n}": p.detach().numpy().copy() for n, p in module.named_parameters()}
    for key, array in {**weights_of(model), **own}.items():
        engine.view(key)[...] = array
    engine.view("lr")[...] = 0.05
    optimizer = torch.optim.SGD([*net.parameters(), *module.parameters()], lr=0.05, momentum=0.9)
    rng = np.random.default_rng(9)
    held = ["y" if not e.is_floating_point() else n for n, e in zip(names, examples, strict=True)]
    for _ in range(STEPS):
        x, given = rng.normal(size=(BATCH, 7)).astype(np.float32), columns(examples, rng)
        engine.poison()
        for key, array in zip(["x", *held], [x, *given], strict=True):
            engine.view(key)[...] = array
        engine.step()
        optimizer.zero_grad()
        wide = [torch.from_numpy(a).long() if a.dtype == np.int32 else torch.from_numpy(a) for a in given]
        expected = module(net(torch.from_numpy(x)), *wide)
        expected.backward()
        optimizer.step()
        np.testing.assert_allclose(float(engine.view("loss").reshape(())), float(expected.detach()), rtol=2e-5)
    for key, tensor in [*net.state_dict().items(), *module.state_dict().items()]:
        if tensor.is_floating_point():
            np.testing.assert_allclose(engine.view(key), tensor.detach().numpy(), rtol=1e-3, atol=1e-5, err_msg=key)


def test_a_loss_may_read_the_models_input() -> None:
    net = nn.Linear(CLASSES, CLASSES)
    model = export(net, (ROWS,), ["in"])
    loss = export(Both(functional.mse_loss), (ROWS, ROWS), ["output", "x"])
    graph = import_onnx(model, batch=BATCH)
    made = import_loss(loss, graph)
    assert made.columns == ()
    x = np.random.default_rng(0).normal(size=(BATCH, CLASSES)).astype(np.float32)
    outputs = [made.value, *gradients(made.value, list(graph.parameters))]
    got = run_on_engine(outputs, {"x": x, **weights_of(model)})
    expected = functional.mse_loss(net(torch.from_numpy(x)), torch.from_numpy(x))
    np.testing.assert_allclose(got[0], float(expected.detach()), rtol=1e-5)
    want = torch.autograd.grad(expected, list(net.parameters()))
    theirs = {n: d.numpy() for (n, _), d in zip(net.named_parameters(), want, strict=True)}
    for parameter, gradient in zip(graph.parameters, got[1:], strict=True):
        np.testing.assert_allclose(gradient, theirs[parameter.name], rtol=1e-4, atol=1e-6)


def test_what_does_not_fit_a_model_is_said() -> None:
    graph = import_onnx(export(network(), (torch.zeros(2, 7),), ["in"]), batch=BATCH)
    wide = export(Both(lambda z: z.square().mean()), (torch.zeros(2, 4),), ["output"])
    with pytest.raises(ModelError, match=r"'output' of the loss is \[0, 4\], the model's output is \[6, 5\]"):
        import_loss(wide, graph)
    rows = export(Both(lambda z: z.square().mean(1)), (ROWS,), ["output"])
    with pytest.raises(ModelError, match=r"one float32 number .* float32\[6\]"):
        import_loss(rows, graph)
    twice = export(nn.Sequential(nn.Linear(CLASSES, 1), Both(torch.mean)), (ROWS,), ["output"])
    with pytest.raises(ModelError, match=r"0\.bias, 0\.weight of the loss have names of the model's"):
        import_loss(twice, graph)


LANGUAGE: dict[str, tuple[Any, Any]] = {
    "kl": (
        lambda a, b: g.kl_divergence(g.log_softmax(a), g.softmax(b)),
        lambda a, b: functional.kl_div(a.log_softmax(1), b.softmax(1), reduction="batchmean"),
    ),
    "mse": (g.mean_squared_error, functional.mse_loss),
    "soft targets": (
        lambda a, b: g.soft_cross_entropy(a, g.softmax(b)),
        lambda a, b: functional.cross_entropy(a, b.softmax(1)),
    ),
    "info nce": (
        lambda a, b: g.info_nce(
            g.l2_normalize(a), g.l2_normalize(b), g.constant(np.arange(BATCH, dtype=np.int32)), tau=0.2
        ),
        lambda a, b: functional.cross_entropy(
            functional.normalize(a) @ functional.normalize(b).T / 0.2, torch.arange(BATCH)
        ),
    ),
}


@pytest.mark.parametrize("name", LANGUAGE)
def test_a_loss_of_the_language_and_its_gradients_equal_torch(name: str) -> None:
    ours, theirs = LANGUAGE[name]
    rng = np.random.default_rng(1)
    given = {n: rng.normal(size=(BATCH, CLASSES)).astype(np.float32) for n in "ab"}
    leaves = [g.leaf(n, "float32", (BATCH, CLASSES)) for n in "ab"]
    loss = ours(*leaves)
    got = run_on_engine([loss, *gradients(loss, leaves)], given)
    tensors = [torch.from_numpy(v.astype(np.float64)).requires_grad_() for v in given.values()]
    expected = theirs(*tensors)
    for found, want in zip(got, [expected, *torch.autograd.grad(expected, tensors)], strict=True):
        np.testing.assert_allclose(found, want.detach().numpy(), rtol=1e-4, atol=1e-6)
