"""Losses that contain a gradient step: they compile, run on the engine, and equal torch's double backward."""

from typing import Any

import numpy as np
import pytest
from forward import run_on_engine
from numpy.typing import NDArray

import models.compiler.graph as g
from edge_runtime import _core
from models.compiler.autodiff import gradients
from models.compiler.ir import Value, Window
from models.compiler.rules import Sgd
from models.compiler.training import compile_loss

torch = pytest.importorskip("torch")
functional = torch.nn.functional
pytestmark = pytest.mark.torch

BATCH, CLASSES = 6, 4
SHAPES = {
    "conv1.weight": (5, 2, 3, 3),
    "conv1.bias": (5,),
    "conv2.weight": (6, 5, 3, 3),
    "conv2.bias": (6,),
    "fc.weight": (CLASSES, 24),
    "fc.bias": (CLASSES,),
}
IMAGE = (2, 8, 9)
INNER_RATE = 0.1
Array = NDArray[Any]


def logits(w: dict[str, Value], x: Value) -> Value:
    """Two convolutions with relu and maximum pools (the second one's windows overlap), then a linear layer."""
    h = g.relu(g.conv(x, w["conv1.weight"], Window(pads=(1, 1, 1, 1))) + g.reshape(w["conv1.bias"], (-1, 1, 1)))
    h = g.max_pool(h, (2, 2), Window(strides=(2, 2)))
    h = g.relu(g.conv(h, w["conv2.weight"], Window(pads=(1, 1, 1, 1))) + g.reshape(w["conv2.bias"], (-1, 1, 1)))
    h = g.max_pool(h, (3, 2), Window(strides=(2, 2), pads=(1, 0, 0, 0)))
    return g.matmul(g.reshape(h, (h.shape[0], -1)), w["fc.weight"], trans_b=True) + w["fc.bias"]


def torch_logits(w: dict[str, Any], x: Any) -> Any:
    h = functional.conv2d(x, w["conv1.weight"], w["conv1.bias"], padding=1).relu()
    h = functional.max_pool2d(h, 2)
    h = functional.conv2d(h, w["conv2.weight"], w["conv2.bias"], padding=1).relu()
    h = functional.max_pool2d(functional.pad(h, (0, 0, 1, 0), value=-torch.inf), (3, 2), 2)
    return functional.linear(h.flatten(1), w["fc.weight"], w["fc.bias"])


def stepped(w: dict[str, Value], x: Value, y: Value, rate: Value | float) -> dict[str, Value]:
    """The weights after one step of gradient descent on a batch."""
    first = gradients(g.softmax_cross_entropy(logits(w, x), y), list(w.values()))
    return {name: v - rate * d for (name, v), d in zip(w.items(), first, strict=True)}


def torch_stepped(w: dict[str, Any], x: Any, y: Any, rate: Any) -> dict[str, Any]:
    loss = functional.cross_entropy(torch_logits(w, x), y, ignore_index=-1)
    first = torch.autograd.grad(loss, list(w.values()), create_graph=True)
    return {name: v - rate * d for (name, v), d in zip(w.items(), first, strict=True)}


def arrays() -> dict[str, Array]:
    """Weights and two batches; one row of the first has no label."""
    rng = np.random.default_rng(4)
    weights = {n: rng.normal(size=s).astype(np.float32) * np.float32(0.25) for n, s in SHAPES.items()}
    images = {n: rng.normal(size=(BATCH, *IMAGE)).astype(np.float32) for n in ("x1", "x2")}
    labels = {n: rng.integers(0, CLASSES, BATCH).astype(np.int32) for n in ("y1", "y2")}
    labels["y1"][2] = -1
    return {**weights, **images, **labels}


def leaves(given: dict[str, Array]) -> dict[str, Value]:
    return {name: g.leaf(name, str(a.dtype), a.shape) for name, a in given.items()}


def double(given: dict[str, Array], wrt: list[str]) -> dict[str, Any]:
    """Float64 tensors, and int64 labels; those of `wrt` ask for a gradient."""
    tensors = {
        n: torch.from_numpy(a.astype(np.float64 if a.dtype == np.float32 else np.int64)) for n, a in given.items()
    }
    return {n: t.requires_grad_() if n in wrt else t for n, t in tensors.items()}


def assert_equal_torch(
    loss: Value, wrt: list[Value], given: dict[str, Array], expected: Any, tensors: list[Any]
) -> None:
    """Loss and gradients on the engine equal torch's in float64 to 1e-4 of the largest element."""
    want = [expected, *torch.autograd.grad(expected, tensors)]
    for got, value in zip(run_on_engine([loss, *gradients(loss, wrt)], given), want, strict=True):
        target = value.detach().numpy()
        assert np.abs(target).max() > 1e-3
        np.testing.assert_allclose(got, target, rtol=0, atol=1e-4 * np.abs(target).max())


@pytest.mark.parametrize("inner_steps", [1, 2])
def test_the_gradient_through_inner_steps_equals_torch(inner_steps: int) -> None:
    """Model-agnostic meta-learning (arXiv 1703.03400, eq. 1), without the first-order shortcut."""
    given = arrays()
    v, names = leaves(given), list(SHAPES)
    w, t = {n: v[n] for n in names}, double(given, names)
    tw = {n: t[n] for n in names}
    for _ in range(inner_steps):
        w, tw = stepped(w, v["x1"], v["y1"], INNER_RATE), torch_stepped(tw, t["x1"], t["y1"], INNER_RATE)
    loss = g.softmax_cross_entropy(logits(w, v["x2"]), v["y2"])
    expected = functional.cross_entropy(torch_logits(tw, t["x2"]), t["y2"])
    assert_equal_torch(loss, [v[n] for n in names], given, expected, [t[n] for n in names])


def test_the_gradient_of_synthetic_images_and_their_rate_equals_torch() -> None:
    """Data-set distillation (arXiv 1811.10959, eq. 3): the images and the inner rate are learned."""
    given = {**arrays(), "rate": np.array(INNER_RATE, np.float32)}
    v, t = leaves(given), double(given, ["x1", "rate", *SHAPES])
    w = stepped({n: v[n] for n in SHAPES}, v["x1"], v["y1"], v["rate"])
    tw = torch_stepped({n: t[n] for n in SHAPES}, t["x1"], t["y1"], t["rate"])
    loss = g.softmax_cross_entropy(logits(w, v["x2"]), v["y2"])
    expected = functional.cross_entropy(torch_logits(tw, t["x2"]), t["y2"])
    assert_equal_torch(loss, [v["x1"], v["rate"]], given, expected, [t["x1"], t["rate"]])


def test_a_plan_that_distils_learns_images_that_train_better() -> None:
    given = {**arrays(), "rate": np.array(INNER_RATE, np.float32)}
    v = leaves(given)
    w = stepped({n: v[n] for n in SHAPES}, v["x1"], v["y1"], v["rate"])
    loss = g.softmax_cross_entropy(logits(w, v["x2"]), v["y2"])
    batch = [v[n] for n in (*SHAPES, "y1", "x2", "y2")]
    engine = _core.Engine(compile_loss(loss, batch, rule=Sgd(momentum=0.0, max_norm=0.1)).plan)
    for name, array in {**given, "lr": np.array(1.0, np.float32)}.items():
        engine.view(name)[...] = array
    losses = []
    for _ in range(40):
        engine.step()
        losses.append(float(engine.view("loss").reshape(())))
    assert losses[-1] < 0.7 * losses[0]
    assert all(np.array_equal(engine.view(n), given[n]) for n in SHAPES)


def test_a_first_order_step_stops_at_detach() -> None:
    given = arrays()
    v = leaves(given)
    w = {n: v[n] for n in SHAPES}
    first = gradients(g.softmax_cross_entropy(logits(w, v["x1"]), v["y1"]), list(w.values()))
    moved = {n: value - g.detach(d) * INNER_RATE for (n, value), d in zip(w.items(), first, strict=True)}
    loss = g.softmax_cross_entropy(logits(moved, v["x2"]), v["y2"])
    t = double(given, list(SHAPES))
    tw = {n: t[n] for n in SHAPES}
    plain = torch.autograd.grad(
        functional.cross_entropy(torch_logits(tw, t["x1"]), t["y1"], ignore_index=-1), list(tw.values())
    )
    tm = {n: value - d * INNER_RATE for (n, value), d in zip(tw.items(), plain, strict=True)}
    expected = functional.cross_entropy(torch_logits(tm, t["x2"]), t["y2"])
    assert_equal_torch(loss, list(w.values()), given, expected, list(tw.values()))
