"""Updates that take their gradient's product in, and those that must not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

import models.compiler.graph as g
from edge_runtime import _core
from edge_runtime.profile.anatomy import anatomy
from models.compiler import compile_loss, training
from models.compiler.rules import AdamW, Rule, Sgd

if TYPE_CHECKING:
    from models.compiler.ir import Value
    from models.compiler.training import Compiled

ROWS, WIDE, NARROW = 300, 400, 10
GRADIENT_BYTES = 4 * ROWS * WIDE


def f32(name: str, *shape: int) -> Value:
    return g.leaf(name, "float32", shape)


def two_layers(batch: int, rows: int = ROWS) -> tuple[Value, Value]:
    """A loss, and its batch: a wide layer and a narrow one, so that the wide one's old weights have no late reader."""
    x = f32("x", batch, rows)
    hidden = g.relu(x @ f32("w", rows, WIDE) + f32("bias", WIDE))
    return g.mean(g.square(hidden @ f32("v", WIDE, NARROW) + 0.3)), x


def operations(compiled: Compiled) -> list[str]:
    return [op["op"] for op in _core.describe(compiled.plan)["ops"]]


def trained(compiled: Compiled, x: Value) -> dict[str, bytes]:
    """The bits of every tensor that three steps change."""
    engine, rng = _core.Engine(compiled.plan), np.random.default_rng(3)
    report = compiled.report
    for name in (x.name, *report.trained):
        engine.view(name)[...] = rng.normal(size=engine.view(name).shape)
    engine.view("lr")[...] = 0.01
    for _ in range(3):
        engine.poison()
        engine.step()
    assert np.isfinite(engine.view("w")).all()
    return {name: engine.view(name).tobytes() for name in (*report.trained, "loss")}


def apart(monkeypatch: pytest.MonkeyPatch, loss: Value, x: Value, rule: Rule) -> Compiled:
    """The plan without the pass."""
    with monkeypatch.context() as patch:
        patch.setattr(training, "fuse_updates", tuple)
        return compile_loss(loss, (x,), rule=rule)


@pytest.mark.parametrize(
    "rule",
    [Sgd(), Sgd(momentum=0.0, weight_decay=0.1), Sgd(0.8, 0.01, nesterov=True), Sgd(ema=0.9), Sgd(rates=(("w", 2.0),))],
    ids=["momentum", "plain", "nesterov", "average", "rates"],
)
def test_a_large_gradient_is_nowhere_and_the_training_has_the_same_bits(
    rule: Rule, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, x = two_layers(batch=8)
    at_once, before = compile_loss(loss, (x,), rule=rule), apart(monkeypatch, loss, x, rule)
    assert operations(at_once).count("gemm_sgd") == 1
    assert "gemm_sgd" not in operations(before)
    assert at_once.report.temporaries_bytes < GRADIENT_BYTES < before.report.temporaries_bytes
    assert at_once.report.multiply_adds == before.report.multiply_adds
    assert trained(at_once, x) == trained(before, x)


@pytest.mark.parametrize(
    "rule", [Sgd(max_norm=1.0), Sgd(proximal=0.1), AdamW()], ids=["clipped", "proximal", "another rule"]
)
def test_a_gradient_that_is_more_than_a_step_s_product_stays(rule: Rule) -> None:
    loss, x = two_layers(batch=8)
    assert "gemm_sgd" not in operations(compile_loss(loss, (x,), rule=rule))


def test_a_gradient_smaller_than_what_would_wait_for_its_update_stays() -> None:
    loss, x = two_layers(batch=ROWS)
    assert "gemm_sgd" not in operations(compile_loss(loss, (x,)))


def test_a_gradient_of_the_size_of_a_block_stays() -> None:
    loss, x = two_layers(batch=8, rows=40)
    assert "gemm_sgd" not in operations(compile_loss(loss, (x,)))


def test_a_product_with_a_tensor_that_is_updated_too_is_not_delayed(monkeypatch: pytest.MonkeyPatch) -> None:
    w, v = f32("w", ROWS, WIDE), f32("v", WIDE, NARROW)
    x = f32("x", ROWS, NARROW)
    loss = g.mean(g.square(w @ v - x))
    compiled = compile_loss(loss, (x,))
    assert "gemm_sgd" not in operations(compiled)
    assert trained(compiled, x) == trained(apart(monkeypatch, loss, x, Sgd()), x)


def test_the_old_weights_are_read_before_their_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of the first layer goes through the second, whose update waits for it."""
    x = f32("x", 8, 90)
    hidden = g.tanh(x @ f32("first", 90, ROWS))
    loss = g.mean(g.square(hidden @ f32("w", ROWS, WIDE)))
    compiled = compile_loss(loss, (x,))
    assert operations(compiled).count("gemm_sgd") == 1
    assert trained(compiled, x) == trained(apart(monkeypatch, loss, x, Sgd()), x)


def test_a_profile_counts_the_products_of_an_update() -> None:
    loss, x = two_layers(batch=8)
    compiled = compile_loss(loss, (x,))
    (update,) = [op for op in anatomy(_core.describe(compiled.plan)).operations if op.name == "gemm_sgd"]
    assert update.phase == "update"
    assert update.multiply_adds == 8 * ROWS * WIDE
    assert sum(op.multiply_adds for op in anatomy(_core.describe(compiled.plan)).operations) == sum(
        compiled.report.multiply_adds
    )
