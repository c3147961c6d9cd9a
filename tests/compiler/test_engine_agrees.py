"""A compiled step on the real engine equals the slow twins: every operation, and random graphs."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import models.compiler.graph as g
from edge_runtime import _core
from models.compiler.autodiff import gradients
from models.compiler.evaluate import evaluate
from models.compiler.ir import Value, Window
from models.compiler.ops import OPS
from models.compiler.rules import Sgd
from models.compiler.training import compile_loss

WINDOW = Window(strides=(2, 3), pads=(1, 0, 2, 1), dilations=(2, 1))
POOL = Window(strides=(2, 3), pads=(1, 0, 0, 1))


def test_compiler_and_engine_number_the_same_operations() -> None:
    ours = {name: op.opcode for name, op in OPS.items() if op.opcode is not None}
    assert ours == _core.opcodes()


def f32(name: str, *shape: int) -> Value:
    return g.leaf(name, "float32", shape)


def squared(value: Value) -> Value:
    """A loss with a non-constant gradient."""
    return g.mean(g.square(value + 0.3))


def assert_step_descends_the_gradient(loss: Value, leaves: Sequence[Value], rng: np.random.Generator) -> None:
    """With a rate of 1 and no momentum, a step moves every leaf by its gradient; the second step by the new one."""
    compiled = compile_loss(loss, (), rule=Sgd(momentum=0.0))
    engine = _core.Engine(compiled.plan)
    now = {v.name: rng.normal(size=v.shape).astype(np.float32).astype(np.float64) for v in leaves}
    for name, value in now.items():
        engine.view(name)[...] = value
    engine.view("lr")[...] = 0.125
    for _ in range(2):
        expected, *grads = evaluate([loss, *gradients(loss, leaves)], now)
        engine.poison()  # a step owes nothing to what an earlier one left behind
        engine.step()
        np.testing.assert_allclose(engine.view("loss"), expected, rtol=2e-5, atol=1e-6)
        for leaf, grad in zip(leaves, grads, strict=True):
            now[leaf.name] = now[leaf.name] - 0.125 * grad
            scale = max(1.0, float(np.abs(now[leaf.name]).max()))
            np.testing.assert_allclose(engine.view(leaf.name), now[leaf.name], rtol=0, atol=2e-5 * scale)


CASES = {
    "add": (lambda a, b: a + b, [(3, 1, 5), (2, 1)]),
    "sub": (lambda a, b: a - b, [(2, 1), (3, 2, 4)]),
    "mul": (lambda a, b: a * b, [(4, 1, 3), (1, 5, 1)]),
    "gemm": (lambda a, b: a @ b, [(3, 4), (4, 5)]),
    "gemm-ta": (lambda a, b: g.matmul(a, b, trans_a=True), [(4, 3), (4, 5)]),
    "gemm-tb": (lambda a, b: g.matmul(a, b, trans_b=True), [(3, 4), (5, 4)]),
    "gemm-ta-tb": (lambda a, b: g.matmul(a, b, trans_a=True, trans_b=True), [(4, 3), (5, 4)]),
    "gemm-bias-relu": (lambda a, b, c: g.relu(a @ b + c), [(3, 4), (4, 5), (5,)]),
    "gemm-row-bias": (lambda a, b, c: g.relu(c + a @ b), [(3, 4), (4, 5), (1, 5)]),
    "gemm-column-bias": (lambda a, b, c: g.relu(a @ b + c), [(5, 4), (4, 5), (5, 1)]),
    "relu": (g.relu, [(3, 7)]),
    "relu_grad": (g.relu_grad, [(3, 7), (3, 7)]),
    "reduce_sum": (lambda a: g.sum(a, [0, -1], scale=0.37), [(3, 2, 4)]),
    "reduce_sum-keep": (lambda a: a * g.sum(a, [1], keepdims=True), [(3, 2, 4)]),
    "transpose": (lambda a: g.transpose(a, (2, 0, 1)), [(3, 2, 4)]),
    "transpose-product": (lambda a, b: g.transpose(a) @ g.transpose(b), [(4, 3), (5, 4)]),
    "reshape": (lambda a, b: g.reshape(a, (-1, 8)) @ b, [(3, 2, 4), (8, 2)]),
    "broadcast": (lambda a: g.broadcast_to(a, (5, 3, 4)), [(3, 1)]),
    "conv": (lambda x, w: g.conv(x, w, WINDOW), [(2, 3, 7, 8), (4, 3, 2, 3)]),
    "conv-groups": (lambda x, w: g.conv(x, w, WINDOW, groups=2), [(2, 4, 6, 5), (6, 2, 3, 2)]),
    "conv-depthwise": (lambda x, w: g.conv(x, w, groups=3), [(1, 3, 4, 5), (3, 1, 2, 2)]),
    "conv-bias-relu": (lambda x, w, b: g.relu(g.conv(x, w) + b), [(2, 3, 5, 4), (4, 3, 2, 3), (4, 1, 1)]),
    "conv_grad_x": (lambda d, w: g.conv_grad_x(d, w, (2, 4, 6, 7), WINDOW, 2), [(2, 6, 3, 3), (6, 2, 3, 2)]),
    "conv_grad_w": (lambda d, x: g.conv_grad_w(d, x, (6, 2, 3, 2), WINDOW, 2), [(2, 6, 3, 3), (2, 4, 6, 7)]),
    "maxpool": (lambda x: g.max_pool(x, (3, 2), POOL), [(2, 2, 7, 8)]),
    "maxpool-relu": (lambda x, s: g.max_pool(g.relu(x + s), (3, 2), POOL), [(2, 2, 7, 8), ()]),
    "maxpool-wide": (lambda x: g.max_pool(x, (17, 16), Window(pads=(2, 0, 0, 3))), [(1, 2, 18, 19)]),
    "avgpool": (lambda x: g.avg_pool(x, (3, 2), POOL), [(2, 2, 7, 8)]),
    "avgpool-pad": (lambda x: g.avg_pool(x, (3, 2), POOL, count_include_pad=True), [(2, 2, 7, 8)]),
    "avgpool_grad": (
        lambda d: g.avg_pool_grad(d, (2, 2, 7, 8), (3, 2), POOL, count_include_pad=False),
        [(2, 2, 3, 3)],
    ),
}


INDEX = np.array([[3, 0, 3], [-1, 2, 0]], np.int32)
PLACES = np.array([[[1, 0], [3, 3]], [[2, 2], [-1, 0]], [[0, 1], [1, 1]]], np.int32)
ROWS = np.array([1.0, 0.0, 1.0], np.float32)


def positive(value: Value) -> Value:
    return g.square(value) + 0.2


CASES |= {
    **{f"unary-{f}": (lambda a, f=f: g.unary(f, positive(a * 0.5)), [(3, 7)]) for f in g.UNARY},
    "div": (lambda a, b: a / positive(b), [(3, 1, 5), (2, 1)]),
    "pow": (lambda a, b: g.pow(positive(a * 0.5), g.sigmoid(b)), [(3, 1), (4,)]),
    "minimum": (lambda a, b: g.maximum(a, 0.1) - g.minimum(a, b), [(3, 1), (4,)]),
    "where": (lambda a, b, c: g.where(g.less(c, 0.1), a, b), [(3, 1), (4,), (2, 1, 1)]),
    "max": (lambda a: g.max(a, [0, -1]) - g.min(a, [0, 2]), [(3, 2, 4)]),
    "argmax": (lambda a: g.cast(g.argmax(a, 1), "float32") * g.max(a, [1]), [(3, 5)]),
    "cumsum": (lambda a: g.cumsum(a, 1, exclusive=True), [(2, 5, 3)]),
    "topk": (lambda a: g.topk(a, 3, 1)[0], [(3, 7, 2)]),
    "gather": (lambda a: g.gather(a, g.constant(INDEX), 1), [(3, 4, 2)]),
    "gather-elements": (lambda a: g.gather(a, g.constant(PLACES), 1, elements=True), [(3, 4, 2)]),
    "slice": (lambda a: g.slice(a, [2, 0, 4], [2, 2, 2], [-1, 1, -3]), [(3, 2, 5)]),
    "pad": (lambda a: g.pad(a, [1, 0, 2], [0, 0, 1], 0.7), [(2, 1, 3)]),
    "concat": (lambda a, b, c: g.concat([a, b, a, c], 1), [(2, 1, 3), (2, 4, 3), (2, 2, 3)]),
    "split": (lambda a: g.concat(g.split(a, [1, 3, 2], -1)[::-1], 1), [(3, 6)]),
    "matmul": (lambda a, b: a @ b, [(2, 1, 3, 4), (5, 4, 2)]),
    "matmul-ta-tb": (lambda a, b: g.matmul(a, b, trans_a=True, trans_b=True), [(2, 4, 3), (1, 5, 4)]),
    "softmax": (g.softmax, [(3, 5)]),
    "log_softmax": (lambda a: g.log_softmax(a, 0), [(3, 5)]),
    "gelu": (g.gelu, [(3, 5)]),
    "hard_swish": (lambda a: g.hard_swish(a * 4.0), [(3, 5)]),
    "layer_norm": (lambda a, w, b: g.layer_norm(a, w, b, -2, 0.03), [(3, 2, 4), (2, 4), (2, 4)]),
    "group_norm": (lambda a: g.group_norm(a, 2, 0.03), [(2, 4, 3)]),
    "batch_norm": (
        lambda x, w, b: g.batch_norm(x, w, b, (w, b), g.constant(ROWS), epsilon=0.1).y,
        [(3, 2, 2, 3), (2,), (2,)],
    ),
    "batch_norm-product": (
        lambda x, p, w, b: g.clip(g.batch_norm(g.conv(x, p), w, b, (w, b), g.constant(ROWS), epsilon=0.1).y, 0.0, 0.5),
        [(3, 2, 6, 6), (9, 2, 1, 1), (9,), (9,)],
    ),
    "attention": (g.attention, [(2, 3, 4), (2, 5, 4), (2, 5, 3)]),
    "kl_divergence": (lambda a, b: g.kl_divergence(g.log_softmax(a), g.softmax(b)), [(3, 4), (3, 4)]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_through_each_operation_descends_its_gradient(case: str, rng: np.random.Generator) -> None:
    function, shapes = CASES[case]
    leaves = [f32(f"v{i}", *shape) for i, shape in enumerate(shapes)]
    assert_step_descends_the_gradient(squared(function(*leaves)), leaves, rng)


def test_second_order_steps_run_on_the_engine(rng: np.random.Generator) -> None:
    x, w = f32("x", 2, 2, 5, 6), f32("w", 3, 2, 2, 2)
    (first,) = gradients(squared(g.avg_pool(g.relu(g.conv(x, w)), (2, 2), Window())), [w])
    assert_step_descends_the_gradient(g.sum(g.square(first)), [x, w], rng)


@st.composite
def random_graphs(draw: st.DrawFn) -> tuple[Value, list[Value]]:
    """A loss over a few 4x4 matrices, mixed by operations drawn at random; every value may be used again."""
    leaves = [f32(f"v{i}", *shape) for i, shape in enumerate([(4, 4), (4, 4), (4,), (1, 4), ()])]
    matrices = leaves[:2]
    for _ in range(draw(st.integers(1, 9))):
        a, b = (matrices[draw(st.integers(0, len(matrices) - 1))] for _ in range(2))
        small = leaves[draw(st.integers(2, 4))]
        made = (
            lambda a=a, b=b: a + b,
            lambda a=a, b=b: a - b * 0.5,
            lambda a=a, b=b: g.relu(a * b),
            lambda a=a, b=b: (a @ b) * 0.3,
            lambda a=a, b=b: g.relu(a @ b * 0.3),
            lambda a=a, b=b, s=small: g.relu(a @ g.transpose(b) + s),
            lambda a=a, s=small: a * s,
            lambda a=a: g.reshape(g.transpose(g.reshape(a, (2, 2, 4)), (2, 0, 1)), (4, 4)),
            lambda a=a: g.relu(g.reshape(a, (2, 8))) @ g.reshape(a, (8, 2)),
            lambda a=a, b=b: a - g.mean(b, [1], keepdims=True),
            lambda a=a, b=b: g.broadcast_to(g.sum(b, [0], scale=0.2), (4, 4)) + a,
        )[draw(st.integers(0, 10))]()
        matrices.append(made if made.shape == (4, 4) else g.broadcast_to(g.sum(made, scale=0.1), (4, 4)))
    loss = g.mean(sum((m * 0.25 for m in matrices[-3:-1]), start=matrices[-1]) * 0.1)
    loss = loss + sum((g.mean(v) for v in leaves), start=g.mean(g.square(matrices[-1])) * 0.1)
    return loss, leaves


@settings(max_examples=150, deadline=None, derandomize=True)
@given(random_graphs())
def test_random_graphs_descend_their_gradient(graph: tuple[Value, list[Value]]) -> None:
    loss, leaves = graph
    small = np.random.default_rng(5)
    assert_step_descends_the_gradient(loss, leaves, small)
