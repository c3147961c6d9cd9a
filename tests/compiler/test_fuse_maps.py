"""What becomes one kernel, and what must not."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest

import models.compiler.graph as g
from edge_runtime import _core
from models.compiler import compile_loss
from models.compiler.autodiff import gradients
from models.compiler.evaluate import evaluate
from models.compiler.fuse_maps import fuse_maps
from models.compiler.ir import Value, topological
from models.compiler.rules import Sgd
from models.compiler.shallow_sums import shallow_sums
from models.compiler.simplify import simplify

if TYPE_CHECKING:
    from models.compiler.map_program import MapProgram


def f32(name: str, *shape: int) -> Value:
    return g.leaf(name, "float32", shape)


def fused(*outputs: Value) -> tuple[Value, ...]:
    return fuse_maps(simplify(shallow_sums(simplify(outputs))))


def kinds(outputs: tuple[Value, ...]) -> Counter[str]:
    return Counter(n.op for n in topological(outputs) if n.inputs and n.op not in {"reshape", "broadcast"})


def programs(outputs: tuple[Value, ...]) -> list[MapProgram]:
    return [n.attrs["program"] for n in topological(outputs) if n.op == "map"]


def normalised(x: Value) -> Value:
    channels = x.shape[1]
    running = (f32("mean", channels), f32("variance", channels))
    made = g.batch_norm(x, f32("gain", channels), f32("bias", channels), running, f32("rows", x.shape[0]))
    return g.relu(made.y)


X = f32("x", 4, 6, 5, 5)
LAYERS = {
    "softmax": g.softmax(f32("x", 7, 9)),
    "log_softmax": g.log_softmax(f32("x", 7, 3, 9), 1),
    "gelu": g.gelu(f32("x", 7, 9)),
    "layer_norm": g.layer_norm(f32("x", 7, 9), f32("gain", 9), f32("bias", 9)),
    "group_norm": g.group_norm(X, 3),
    "batch_norm": normalised(X),
    "hard_swish": g.hard_swish(X),
}


def given(outputs: tuple[Value, ...], rng: np.random.Generator) -> dict[str, np.ndarray]:
    leaves = (n for n in topological(outputs) if n.op == "leaf")
    return {n.attrs["name"]: rng.normal(size=n.types[0].shape) ** 2 + 0.1 for n in leaves}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_one_map(name: str) -> None:
    count_of_rows = {"reduce_sum": 1} if name == "batch_norm" else {}
    assert kinds(fused(LAYERS[name])) == {"map": 1, **count_of_rows}


@pytest.mark.parametrize("name", LAYERS)
def test_fusing_a_layer_and_its_gradient_changes_no_value(name: str, rng: np.random.Generator) -> None:
    y = LAYERS[name]
    leaves = [n.out() for n in topological([y]) if n.op == "leaf" and n.attrs["name"] in {"x", "gain", "bias"}]
    loss = g.sum(g.square(y) * f32("weights", *y.shape))
    plain = (loss, *gradients(loss, leaves))
    made = fused(*plain)
    assert sum(kinds(made).values()) <= 5
    values = given(plain, rng)
    for got, want in zip(evaluate(made, values), evaluate(plain, values), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9 * np.abs(want).max())


def test_the_gradient_of_a_normalisation_takes_two_passes() -> None:
    y = normalised(X)
    loss = g.sum(y * f32("weights", *y.shape))
    (d_x,) = gradients(loss, [X])
    program = next(p for p in programs(fused(loss, d_x)) if len(p.results) and p.results[-1] == last_value(p))
    depth: dict[int, int] = {}
    for number, step in enumerate(program.steps, len(program.operands) + len(program.constants)):
        above = max((depth.get(o, 0) for o in step.operands), default=0)
        depth[number] = above + (step.function in {"sum", "maximum", "minimum"})
    # Mean, variance, and the sums of the gradient.
    assert max(depth.values()) <= 3


def last_value(program: MapProgram) -> int:
    return len(program.operands) + len(program.constants) + len(program.steps) - 1


def test_no_map_waits_for_what_waits_for_it() -> None:
    x, w = f32("x", 8, 8), f32("w", 8, 8)
    y = g.exp(x)
    z = g.tanh(g.matmul(y, w)) + y  # y before the product, the sum after it
    made = fused(z)
    assert kinds(made)["map"] <= 2
    values = given(made, np.random.default_rng(1))
    np.testing.assert_allclose(
        evaluate(made, values)[0], np.tanh(np.exp(values["x"]) @ values["w"]) + np.exp(values["x"])
    )


def test_a_sum_over_rows_and_one_over_columns_are_two_maps() -> None:
    x = f32("x", 8, 9)
    y = g.exp(x)
    made = fused(g.tanh(g.sum(y, [0])), g.tanh(g.sum(y, [1])))
    assert kinds(made) == {"map": 2}  # each computes y again: nothing of its size is stored


def test_a_value_from_two_large_tensors_is_stored_rather_than_read_twice() -> None:
    a, b = f32("a", 64, 9), f32("b", 64, 9)
    y = a * b
    made = fused(g.tanh(g.sum(y, [0])), g.tanh(g.sum(y, [1])))
    assert sorted(len(p.operands) for p in programs(made)) == [1, 2]


def test_more_steps_than_a_map_may_have_become_several() -> None:
    x = w = f32("w", 40)
    for _ in range(200):
        x = g.tanh(x) + w
    compiled = compile_loss(g.sum(x), (), rule=Sgd())
    found = [op for op in _core.describe(compiled.plan)["ops"] if op["op"] == "map"]
    assert 4 <= len(found) < 100  # of some eight hundred steps
