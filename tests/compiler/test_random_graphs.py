"""Random small graphs of everything the language has: loss and every gradient equal torch's, on the engine too."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from forward import run_on_engine
from hypothesis import given, settings
from hypothesis import strategies as st

import models.compiler.graph as g
from models.compiler.autodiff import gradients
from models.compiler.evaluate import evaluate
from models.compiler.ir import Value, Window
from models.compiler.onnx_import import CONVERTERS
from models.compiler.onnx_nodes import ModelNode, Training

torch = pytest.importorskip("torch")
functional = torch.nn.functional
pytestmark = pytest.mark.torch

ROWS, COLUMNS = 3, 4
INDEX = np.array([2, 0, 2], np.int32)


@dataclass(frozen=True)
class Pair:
    """The same step in our language and in torch, of one or two 3 x 4 matrices."""

    ours: Callable[..., Value]
    theirs: Callable[..., Any]


PLACES = np.array([[3, 0, 3, 1], [2, 2, 2, 0], [0, 1, 3, 3]])
POINTS = np.array([[2, 1], [0, 3], [1, 1]])
LABELS = np.array([3, -1, 0], np.int32)
ONE_AROUND = Window(pads=(1, 1, 1, 1))


def _ours_by_onnx(op: str, attrs: dict[str, Any], *terms: Any) -> Value:
    """What the importer makes of one ONNX operator."""
    training = Training(batch_statistics=True, rows=g.leaf("rows", "float32", (ROWS,)))
    made = CONVERTERS[op](ModelNode(op, op, attrs, 1, 18, ROWS, None, [], training, 1), terms)
    assert isinstance(made, Value)
    return made


def _row_of(b: Value) -> Value:
    return g.reshape(g.slice(b, [0, 0], [1, 3], [1, 1]), (3,))


def _image(a: Value) -> Value:
    return g.reshape(a, (1, 1, *a.shape))


def _spread(x: Any) -> Any:
    return x.reshape(2, 2, 3).permute(2, 0, 1).reshape(ROWS, COLUMNS)


STEPS = [
    Pair(lambda a, b: a + b, lambda a, b: a + b),
    Pair(lambda a, b: a * b, lambda a, b: a * b),
    Pair(lambda a, b: a / (g.square(b) + 0.7), lambda a, b: a / (b.square() + 0.7)),
    Pair(g.maximum, torch.maximum),
    Pair(lambda a, b: g.minimum(a, b - 0.2), lambda a, b: torch.minimum(a, b - 0.2)),
    Pair(lambda a, b: g.where(g.less(a, b), a * 0.5, b), lambda a, b: torch.where(a < b, a * 0.5, b)),
    Pair(lambda a, b: g.matmul(a, b, trans_b=True) @ b, lambda a, b: a @ b.T @ b),
    Pair(lambda a, _: g.tanh(a), lambda a, _: torch.tanh(a)),
    Pair(lambda a, _: g.sigmoid(a), lambda a, _: torch.sigmoid(a)),
    Pair(lambda a, _: g.gelu(a), lambda a, _: functional.gelu(a)),
    Pair(lambda a, _: g.softplus(a), lambda a, _: functional.softplus(a)),
    Pair(lambda a, _: g.exp(g.tanh(a)), lambda a, _: torch.exp(torch.tanh(a))),
    Pair(lambda a, _: g.log(g.abs(a) + 0.5), lambda a, _: torch.log(a.abs() + 0.5)),
    Pair(lambda a, _: g.sqrt(g.square(a) + 0.3), lambda a, _: torch.sqrt(a.square() + 0.3)),
    Pair(lambda a, _: g.leaky_relu(a, 0.2), lambda a, _: functional.leaky_relu(a, 0.2)),
    Pair(lambda a, _: g.clip(a, -0.7, 0.9), lambda a, _: torch.clamp(a, -0.7, 0.9)),
    Pair(lambda a, _: g.softmax(a, 0), lambda a, _: torch.softmax(a, 0)),
    Pair(lambda a, _: g.log_softmax(a), lambda a, _: torch.log_softmax(a, -1)),
    Pair(lambda a, _: a - g.max(a, [1], keepdims=True), lambda a, _: a - a.amax(1, keepdim=True)),
    Pair(lambda a, _: a * g.mean(a, [0], keepdims=True), lambda a, _: a * a.mean(0, keepdim=True)),
    Pair(lambda a, _: g.cumsum(a, 1), lambda a, _: torch.cumsum(a, 1)),
    Pair(lambda a, _: g.layer_norm(a, None, None, -1, 0.1), lambda a, _: functional.layer_norm(a, (COLUMNS,), eps=0.1)),
    Pair(
        lambda a, b: g.concat(g.split(g.concat([a, b], 1), [3, 4, 1], 1)[1:2], 1),
        lambda a, b: torch.cat([a, b], 1)[:, 3:7],
    ),
    Pair(lambda a, b: g.concat([g.flip(a, [0]), b], 0), lambda a, b: torch.cat([a.flip(0), b], 0)),
    Pair(lambda a, _: g.slice(a, [2, 0], [2, 2], [-2, 3]), lambda a, _: a.flip(0)[::2, ::3]),
    Pair(lambda a, _: g.gather(a, g.constant(INDEX), 0), lambda a, _: a[torch.from_numpy(INDEX).long()]),
    Pair(
        lambda a, b: _ours_by_onnx("Einsum", {"equation": "ij,kj->ki"}, a, b) * 0.3,
        lambda a, b: torch.einsum("ij,kj->ki", a, b) * 0.3,
    ),
    Pair(
        lambda a, b: _ours_by_onnx("ScatterElements", {"axis": 1, "reduction": "add"}, a, PLACES, b),
        lambda a, b: a.scatter_add(1, torch.from_numpy(PLACES), b),
    ),
    Pair(
        lambda a, b: _ours_by_onnx("ScatterND", {}, a, POINTS, _row_of(b)),
        lambda a, b: a.index_put(tuple(torch.from_numpy(POINTS.T)), b[0, :3]),
    ),
    Pair(
        lambda a, _: _ours_by_onnx("GatherND", {}, a, POINTS[:, :1]),
        lambda a, _: a[torch.from_numpy(POINTS[:, 0])],
    ),
    Pair(
        lambda a, _: _ours_by_onnx("GatherElements", {"axis": 1}, a, PLACES),
        lambda a, _: a.gather(1, torch.from_numpy(PLACES)),
    ),
    Pair(
        lambda a, _: g.reshape(g.max_pool(_image(a), (2, 2), ONE_AROUND), (-1, COLUMNS + 1)),
        lambda a, _: functional.max_pool2d(a[None, None], 2, 1, 1)[0, 0],
    ),
    Pair(
        lambda a, _: g.reshape(g.avg_pool(_image(a), (2, 2), ONE_AROUND), (-1, COLUMNS + 1)),
        lambda a, _: functional.avg_pool2d(a[None, None], 2, 1, 1, count_include_pad=False)[0, 0],
    ),
    Pair(
        lambda a, b: g.reshape(g.conv(_image(a), _image(b * 0.3), Window(pads=(1, 1, 1, 2))), (-1, COLUMNS)),
        lambda a, b: functional.conv2d(functional.pad(a[None, None], (1, 2, 1, 1)), b[None, None] * 0.3)[0, 0],
    ),
    Pair(
        lambda a, b: g.softmax_xent(a, g.constant(LABELS))[1] + g.softmax_cross_entropy(b, g.constant(LABELS)),
        lambda a, b: a.softmax(1) + functional.cross_entropy(b, torch.from_numpy(LABELS).long(), ignore_index=-1),
    ),
    Pair(
        lambda a, _: g.reshape(g.group_norm(g.reshape(a, (1, 4, 3)), 2, 0.1), (ROWS, COLUMNS)),
        lambda a, _: functional.group_norm(a.reshape(1, 4, 3), 2, eps=0.1).reshape(ROWS, COLUMNS),
    ),
    Pair(
        lambda a, _: g.max(a, [0], keepdims=True) * g.sum(a, [1], keepdims=True),
        lambda a, _: a.amax(0, keepdim=True) * a.sum(1, keepdim=True),
    ),
    Pair(lambda a, _: g.topk(a, 2, 0)[0], lambda a, _: torch.topk(a, 2, 0)[0]),
    Pair(
        lambda a, _: g.reshape(g.transpose(g.reshape(a, (2, 2, 3)), (2, 0, 1)), (ROWS, COLUMNS)),
        lambda a, _: _spread(a),
    ),
]


def fitted(value: Value) -> Value:
    """A matrix of 3 x 4 again: padded, then cut."""
    rows, columns = value.shape
    padded = g.pad(value, [0, 0], [max(ROWS - rows, 0), max(COLUMNS - columns, 0)], 0.25)
    return g.slice(padded, [0, 0], [ROWS, COLUMNS], [1, 1])


def fitted_in_torch(value: Any) -> Any:
    rows, columns = value.shape
    padded = functional.pad(value, (0, max(COLUMNS - columns, 0), 0, max(ROWS - rows, 0)), value=0.25)
    return padded[:ROWS, :COLUMNS]


Choice = tuple[int, int, int]


def built(choices: list[Choice], leaves: list[Any], *, ours: bool) -> Any:
    """The loss: every step reads two values made so far; all that were made count."""
    made = list(leaves)
    for step, first, second in choices:
        a, b = made[first % len(made)], made[second % len(made)]
        pair = STEPS[step]
        made.append(fitted(pair.ours(a, b)) if ours else fitted_in_torch(pair.theirs(a, b)))
    if ours:
        return sum((g.mean(g.square(m - 0.1)) for m in made), start=g.constant(0.0))
    return sum((m - 0.1).square().mean() for m in made)


choices = st.lists(
    st.tuples(st.integers(0, len(STEPS) - 1), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=7
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(choices, st.integers(0, 2**31))
def test_random_graphs_equal_torch(drawn: list[Choice], seed: int) -> None:
    values = {f"v{i}": np.random.default_rng([seed, i]).normal(size=(ROWS, COLUMNS)) for i in range(2)}
    values = {name: v.astype(np.float32).astype(np.float64) for name, v in values.items()}
    leaves = [g.leaf(name, "float32", (ROWS, COLUMNS)) for name in values]
    loss = built(drawn, list(leaves), ours=True)
    outputs = [loss, *gradients(loss, leaves)]
    tensors = [torch.from_numpy(v).requires_grad_() for v in values.values()]
    expected = built(drawn, list(tensors), ours=False)
    expected.backward()
    want = [expected.detach().numpy(), *(t.grad.numpy() for t in tensors)]
    for got, value in zip(evaluate(outputs, values), want, strict=True):
        np.testing.assert_allclose(got, value, rtol=2e-5, atol=1e-6 * max(1.0, np.abs(value).max()))
    if max(np.abs(w).max() for w in want) > 1e4:
        return  # float32 cannot follow: products of products
    narrow = {name: v.astype(np.float32) for name, v in values.items()}
    for got, value in zip(run_on_engine(outputs, narrow), want, strict=True):
        np.testing.assert_allclose(got, value, rtol=0, atol=5e-4 * max(1.0, np.abs(value).max()))
