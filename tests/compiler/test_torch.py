"""Against torch: gradients of operations, and twenty compiled steps of whole exported models."""

import importlib.util
import io
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

import models.compiler.graph as g
from edge_runtime import _core
from models.compiler import compile_training, import_onnx, weights_of, with_weights
from models.compiler.autodiff import gradients
from models.compiler.evaluate import evaluate
from models.compiler.ir import Value, Window

torch = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional
pytestmark = pytest.mark.torch

STEPS, BATCH, CLASSES = 20, 6, 5
HAVE_DYNAMO_EXPORT = importlib.util.find_spec("onnxscript") is not None


def mlp() -> "nn.Module":
    return nn.Sequential(nn.Linear(11, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, CLASSES))


def lenet() -> "nn.Module":
    return nn.Sequential(
        nn.Conv2d(2, 4, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(6 * 2 * 2, CLASSES),
    )


def signal() -> "nn.Module":
    return nn.Sequential(
        nn.Conv1d(3, 8, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool1d(3, stride=2, padding=1),
        nn.Conv1d(8, 6, 3, dilation=2, groups=2),
        nn.ReLU(),
        nn.AvgPool1d(2),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(6, CLASSES),
    )


def odd_windows() -> "nn.Module":
    """Strides, dilation and groups that differ, and pools whose last window hangs over the edge."""
    return nn.Sequential(
        nn.Conv2d(4, 8, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2),
        nn.ReLU(),
        nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True, count_include_pad=True),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.MaxPool2d((2, 3), stride=(3, 2), ceil_mode=True),
        nn.AvgPool2d(2, stride=1, padding=1, count_include_pad=False),
        nn.Flatten(),
        nn.LazyLinear(CLASSES),
    )


class Residual(nn.Module):  # type: ignore[misc, name-defined]
    """An identity path around two convolutions, the mean over the image, and a flattening by the batch's own size."""

    def __init__(self) -> None:
        super().__init__()
        self.inward = nn.Conv2d(2, 6, 3, padding=1)
        self.first = nn.Conv2d(6, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.out = nn.Linear(6, CLASSES)

    def forward(self, x: "torch.Tensor") -> "torch.Tensor":
        x = torch.relu(self.inward(x))
        y = self.second(torch.relu(self.first(x)))
        z = torch.relu(x + y * 0.5 - 0.25).mean(dim=(2, 3))
        return self.out(z.view(z.size(0), -1))


class Shared(nn.Module):  # type: ignore[misc, name-defined]
    """One matrix used three times, once transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.inward = nn.Linear(8, 6)  # without a bias the exporter would store its transpose
        self.square = nn.Linear(6, 6)
        self.gain = nn.Parameter(torch.full((6,), 1.3))
        self.out = nn.Linear(6, CLASSES)

    def forward(self, x: "torch.Tensor") -> "torch.Tensor":
        x = torch.relu(self.square(self.inward(x)))
        x = self.square(x) * self.gain
        return self.out(torch.relu(x @ self.square.weight))


MODELS: dict[str, tuple[Callable[[], "nn.Module"], tuple[int, ...]]] = {
    "mlp": (mlp, (11,)),
    "lenet": (lenet, (2, 12, 12)),
    "signal": (signal, (3, 31)),
    "odd_windows": (odd_windows, (4, 13, 15)),
    "residual": (Residual, (2, 7, 9)),
    "shared": (Shared, (8,)),
}


def export(model: "nn.Module", shape: tuple[int, ...], *, dynamo: bool, symbolic: bool = True) -> bytes:
    file = io.BytesIO()
    axes = {"input": {0: "N"}} if symbolic else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters announce their own changes
        example = torch.zeros(2, *shape)
        torch.onnx.export(model, (example,), file, dynamo=dynamo, input_names=["input"], dynamic_axes=axes)
    return file.getvalue()


def batches(shape: tuple[int, ...]) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int32]]]:
    """Random batches; the last row of every third has no label, as the end of an epoch."""
    rng = np.random.default_rng(7)
    for step in range(STEPS):
        labels = rng.integers(0, CLASSES, BATCH).astype(np.int32)
        if step % 3 == 2:
            labels[-1] = -1
        yield rng.normal(size=(BATCH, *shape)).astype(np.float32), labels


def train_compiled(
    data: bytes, shape: tuple[int, ...], *, lr: float, **settings: object
) -> dict[str, NDArray[np.float32]]:
    compiled = compile_training(import_onnx(data, batch=BATCH), **settings)  # type: ignore[arg-type]
    engine = _core.Engine(compiled.plan)
    weights = weights_of(data)
    for name, value in weights.items():
        engine.view(name)[...] = value
    engine.view("lr")[...] = lr
    losses = []
    for x, y in batches(shape):
        engine.view("x")[...] = x
        engine.view("y")[...] = y
        engine.step()
        losses.append(float(engine.view("loss")))
    return {name: engine.view(name).copy() for name in weights} | {"loss": np.array(losses, np.float32)}


def train_torch(model: "nn.Module", shape: tuple[int, ...], **settings: object) -> dict[str, NDArray[np.float32]]:
    optimizer = torch.optim.SGD(model.parameters(), **settings)
    losses = []
    for x, y in batches(shape):
        logits = model(torch.from_numpy(x).to(next(model.parameters()).dtype))
        loss = functional.cross_entropy(logits, torch.from_numpy(y).long(), ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    trained = {name: value.detach().numpy() for name, value in model.named_parameters()}
    return trained | {"loss": np.array(losses, np.float32)}


def assert_close(ours: dict[str, NDArray[np.float32]], theirs: dict[str, NDArray[np.float32]]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(ours[name], value, rtol=0, atol=1e-5 * scale, err_msg=name)


def prepared(name: str) -> tuple["nn.Module", tuple[int, ...]]:
    torch.manual_seed(3)
    build, shape = MODELS[name]
    model = build()
    model(torch.zeros(2, *shape))  # lazy layers find their size
    return model, shape


OPERATIONS: dict[str, tuple[Callable[..., Value], Callable[..., "torch.Tensor"], list[tuple[int, ...]]]] = {
    "add": (lambda a, b: a + b, lambda a, b: a + b, [(3, 1, 5), (2, 1)]),
    "sub": (lambda a, b: a - b, lambda a, b: a - b, [(), (2, 3)]),
    "mul": (lambda a, b: a * b, lambda a, b: a * b, [(1, 4, 1), (3, 1, 2)]),
    "matmul": (lambda a, b: g.matmul(a, b, trans_b=True), lambda a, b: a @ b.T, [(3, 4), (5, 4)]),
    "relu": (g.relu, torch.relu, [(4, 5)]),
    "mean": (lambda a: g.mean(a, [0, 2]), lambda a: a.mean(dim=(0, 2)), [(2, 3, 4)]),  # 1/8 is exact in float32
    "conv": (
        lambda x, w: g.conv(x, w, Window((2, 3), (1, 2, 1, 2), (2, 1)), groups=2),
        lambda x, w: functional.conv2d(x, w, stride=(2, 3), padding=(1, 2), dilation=(2, 1), groups=2),
        [(2, 4, 7, 8), (6, 2, 3, 2)],
    ),
    "max_pool": (
        lambda x: g.max_pool(x, (3, 2), Window((2, 1), (1, 1, 1, 1), (1, 2))),
        lambda x: functional.max_pool2d(x, (3, 2), stride=(2, 1), padding=(1, 1), dilation=(1, 2)),
        [(2, 3, 7, 8)],
    ),
    "avg_pool": (
        lambda x: g.avg_pool(x, (3, 2), Window((2, 1), (1, 1, 1, 1)), count_include_pad=True),
        lambda x: functional.avg_pool2d(x, (3, 2), stride=(2, 1), padding=1),
        [(2, 3, 7, 8)],
    ),
    "avg_pool_inside": (
        lambda x: g.avg_pool(x, (3, 2), Window((2, 1), (1, 1, 1, 1))),
        lambda x: functional.avg_pool2d(x, (3, 2), stride=(2, 1), padding=1, count_include_pad=False),
        [(2, 3, 7, 8)],
    ),
    "cross_entropy": (
        lambda x: g.softmax_cross_entropy(x, g.leaf("y", "int32", (4,))),
        lambda x: functional.cross_entropy(x, torch.tensor([2, -1, 0, 4]), ignore_index=-1),
        [(4, 5)],
    ),
}


@pytest.mark.parametrize("case", OPERATIONS)
def test_gradient_of_an_operation_equals_torch_in_float64(case: str, rng: np.random.Generator) -> None:
    ours, theirs, shapes = OPERATIONS[case]
    leaves = [g.leaf(f"v{i}", "float32", shape) for i, shape in enumerate(shapes)]
    given = {v.name: rng.normal(size=v.shape) for v in leaves}
    tensors = [torch.from_numpy(given[v.name]).requires_grad_() for v in leaves]
    loss = g.sum(g.square(ours(*leaves)))
    expected = theirs(*tensors).square().sum()
    expected.backward()
    labels = {"y": np.array([2, -1, 0, 4], np.int32)}
    value, *grads = evaluate([loss, *gradients(loss, leaves)], given | labels)
    np.testing.assert_allclose(value, expected.detach().numpy(), rtol=1e-12)
    for grad, tensor in zip(grads, tensors, strict=True):
        np.testing.assert_allclose(grad, tensor.grad.numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("nesterov", [False, True])
def test_twenty_steps_equal_torch(name: str, *, nesterov: bool) -> None:
    model, shape = prepared(name)
    data = export(model, shape, dynamo=False)
    settings = {"lr": 0.03, "momentum": 0.85, "weight_decay": 0.013, "nesterov": nesterov}
    assert_close(train_compiled(data, shape, **settings), train_torch(model, shape, **settings))


def test_twenty_steps_without_momentum_equal_torch() -> None:
    model, shape = prepared("lenet")
    data = export(model, shape, dynamo=False)
    settings = {"lr": 0.07, "momentum": 0.0, "weight_decay": 0.0}
    assert_close(train_compiled(data, shape, **settings), train_torch(model, shape, **settings))


def test_frozen_tensors_stay_and_the_others_follow_torch() -> None:
    model, shape = prepared("lenet")
    data = export(model, shape, dynamo=False)
    before = weights_of(data)
    ours = train_compiled(data, shape, lr=0.05, momentum=0.9, weight_decay=0.01, trainable=["3.*", "7.bias"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in ("3.weight", "7.bias"))
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == 2
    theirs = train_torch(model, shape, lr=0.05, momentum=0.9, weight_decay=0.01)
    assert_close(ours, theirs)
    for name in ("0.weight", "0.bias", "7.weight"):
        np.testing.assert_array_equal(ours[name], before[name])


@pytest.mark.skipif(not HAVE_DYNAMO_EXPORT, reason="torch's newer exporter needs the onnxscript package")
@pytest.mark.parametrize("name", MODELS)
def test_twenty_steps_of_the_newer_exporter_equal_torch(name: str) -> None:
    model, shape = prepared(name)
    data = export(model, shape, dynamo=True)
    settings = {"lr": 0.03, "momentum": 0.85, "weight_decay": 0.013}
    assert_close(train_compiled(data, shape, **settings), train_torch(model, shape, **settings))


@pytest.mark.parametrize("name", ["residual", "lenet", "signal"])
def test_a_model_exported_with_a_fixed_batch_is_compiled_for_another(name: str) -> None:
    model, shape = prepared(name)
    data = export(model, shape, dynamo=False, symbolic=False)
    settings = {"lr": 0.03, "momentum": 0.85, "weight_decay": 0.013}
    assert_close(train_compiled(data, shape, **settings), train_torch(model, shape, **settings))


@pytest.mark.parametrize("name", MODELS)
def test_trained_weights_go_back_into_the_users_onnx(name: str) -> None:
    model, shape = prepared(name)
    data = export(model, shape, dynamo=False)
    theirs = train_torch(model, shape, lr=0.05)
    theirs.pop("loss")
    x = np.random.default_rng(1).normal(size=(4, *shape)).astype(np.float32)
    session = onnxruntime.InferenceSession(with_weights(data, theirs), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input": x})
    expected = model(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
