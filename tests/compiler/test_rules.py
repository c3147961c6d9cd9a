"""Update rules: their settings, their state in the plan, and clipping by a worked number."""

from collections.abc import Callable

import numpy as np
import pytest

import models.compiler.graph as g
from edge_runtime import _core
from edge_runtime.plan import with_averages
from models.compiler import import_onnx, weights_of
from models.compiler.errors import CompileError
from models.compiler.ir import Role
from models.compiler.rules import AdamW, Rule, Sgd
from models.compiler.training import compile_loss, compile_training
from models.zoo import build

BAD_SETTINGS: list[tuple[Callable[[], Rule], str]] = [
    (lambda: AdamW(beta1=1.0), "beta1 and beta2"),
    (lambda: AdamW(beta2=-0.1), "beta1 and beta2"),
    (lambda: AdamW(epsilon=0.0), "epsilon"),
    (lambda: AdamW(weight_decay=float("nan")), "weight_decay"),
    (lambda: AdamW(max_norm=0.0), "max_norm"),
    (lambda: Sgd(max_norm=float("inf")), "max_norm"),
    (lambda: Sgd(momentum=1.0), "momentum"),
    (lambda: Sgd(proximal=-1.0), "proximal"),
    (lambda: AdamW(ema=1.0), "ema"),
    (lambda: Sgd(rates=(("*", float("nan")),)), "rate"),
]


@pytest.mark.parametrize(("make", "what"), BAD_SETTINGS)
def test_settings_out_of_range_are_refused(make: Callable[[], Rule], what: str) -> None:
    with pytest.raises(CompileError, match=what):
        make()


def test_the_state_of_adamw_is_two_moments_a_tensor_and_one_count() -> None:
    w, b = g.leaf("w", "float32", (3, 2)), g.leaf("b", "float32", (2,))
    compiled = compile_loss(g.sum(g.square(w) + b), (), rule=AdamW())
    state = {t["name"] for t in _core.describe(compiled.plan)["tensors"] if t["role"] == Role.STATE}
    assert state == {"adam.t", "adam.m/w", "adam.v/w", "adam.m/b", "adam.v/b"}
    engine = _core.Engine(compiled.plan)
    for steps in (1, 2, 3):
        engine.step()
        assert engine.view("adam.t") == steps


@pytest.mark.parametrize(("gradient", "moved"), [(30.0, 0.5), (0.3, 0.3)])
def test_gradients_are_scaled_to_their_common_norm_only_where_it_is_larger(gradient: float, moved: float) -> None:
    a, b = g.leaf("a", "float32", (1,)), g.leaf("b", "float32", (4,))
    loss = g.sum(a) * gradient + g.sum(b) * 0.0
    engine = _core.Engine(compile_loss(loss, (), rule=Sgd(momentum=0.0, max_norm=0.5)).plan)
    engine.view("lr")[...] = 1.0
    engine.step()
    np.testing.assert_allclose(engine.view("a"), -moved, rtol=1e-5)
    np.testing.assert_array_equal(engine.view("b"), 0.0)


def test_frozen_running_statistics_stay_and_are_not_computed() -> None:
    w, slot = g.leaf("w", "float32", (3,)), g.leaf("running", "float32", (3,))
    moved = [(slot, slot + (g.detach(w) - slot) * 0.5)]
    loss = g.sum(g.square(w))
    for frozen, want in ((("running",), 4.0), ((), 3.0)):
        compiled = compile_loss(loss, (), rule=Sgd(momentum=0.0), updates=moved, frozen=frozen)
        engine = _core.Engine(compiled.plan)
        engine.view("w")[...], engine.view("running")[...] = 2.0, 4.0
        engine.step()
        np.testing.assert_array_equal(engine.view("running"), want)
        assert ("running" in compiled.report.trained) == (not frozen)


def stepped(rule: Rule, gradient: float, slots: dict[str, float], steps: int = 3) -> dict[str, float]:
    """What a weight of 2 with a constant gradient becomes, and every slot beside it."""
    w = g.leaf("w", "float32", (2,))
    engine = _core.Engine(compile_loss(g.sum(w) * gradient, (), rule=rule).plan)
    given = {"w": 2.0, "lr": 0.1, **slots}
    for name, value in given.items():
        engine.view(name)[...] = value
    for _ in range(steps):
        engine.step()
    return {name: float(engine.view(name).reshape(-1)[0]) for name in given}


def test_a_proximal_pull_draws_towards_the_received_tensor() -> None:
    want = 2.0
    for _ in range(3):
        want -= 0.1 * (0.7 + 0.5 * (want - 1.2))
    got = stepped(Sgd(momentum=0.0, proximal=0.5), 0.7, {"global/w": 1.2})
    assert got["w"] == pytest.approx(want, rel=1e-6)
    assert got["global/w"] == pytest.approx(1.2)


def test_control_variates_are_added_after_clipping() -> None:
    norm = np.sqrt(2 * 0.7**2)
    want = 2.0 - 3 * 0.1 * (0.7 * 0.5 / norm - 0.3)
    got = stepped(Sgd(momentum=0.0, control_variates=True, max_norm=0.5), 0.7, {"control/w": -0.3})
    assert got["w"] == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("rule", [Sgd(momentum=0.5, ema=0.75), AdamW(ema=0.75)])
def test_an_average_follows_the_tensor_as_it_is_after_each_step(rule: Rule) -> None:
    average = 2.0
    for steps in (1, 2, 3):
        average += 0.25 * (stepped(rule, 0.7, {"ema/w": 2.0}, steps)["w"] - average)
    assert stepped(rule, 0.7, {"ema/w": 2.0})["ema/w"] == pytest.approx(average, rel=1e-6)


def test_averages_start_as_their_tensors_and_travel_with_the_weights() -> None:
    w = g.leaf("w", "float32", (2,))
    compiled = compile_loss(g.sum(w), (), rule=Sgd(ema=0.9))
    assert set(compiled.report.trained) == {"w", "ema/w"}
    assert with_averages({"w": 1, "b": 2}, compiled.report.trained) == {"w": 1, "b": 2, "ema/w": 1}


def test_the_first_rate_that_matches_scales_the_learning_rate() -> None:
    a, b = g.leaf("a.weight", "float32", ()), g.leaf("b.weight", "float32", ())
    rule = Sgd(momentum=0.0, rates=(("a.*", 0.25), ("*.weight", 3.0)))
    engine = _core.Engine(compile_loss(a + b, (), rule=rule).plan)
    engine.view("lr")[...] = 0.5
    engine.step()
    assert (float(engine.view("a.weight")), float(engine.view("b.weight"))) == (-0.125, -1.5)
    with pytest.raises(CompileError, match=r"'c\.\*' matches no trained tensor: .*a\.weight"):
        compile_loss(a + b, (), rule=Sgd(rates=(("c.*", 1.0),)))


def test_a_slow_copy_for_a_momentum_encoder_is_an_update_of_its_own() -> None:
    """As in arXiv 1911.05722, eq. 2: the keys' weight moves towards the queries' weight, without a gradient."""
    query, key = g.leaf("query", "float32", (2,)), g.leaf("key", "float32", (2,))
    loss = g.sum(query * g.detach(key))
    compiled = compile_loss(loss, (), rule=Sgd(momentum=0.0), updates=[(key, key + (query - key) * 0.25)])
    engine = _core.Engine(compiled.plan)
    engine.view("query")[...], engine.view("key")[...], engine.view("lr")[...] = 2.0, 1.0, 0.5
    engine.step()
    np.testing.assert_allclose(engine.view("query"), 1.5)
    np.testing.assert_allclose(engine.view("key"), 1.25)


@pytest.mark.torch
def test_decay_in_the_gradient_is_the_adam_of_torch() -> None:
    torch = pytest.importorskip("torch")
    w = torch.full((2,), 2.0, requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=0.1, weight_decay=0.3)
    for _ in range(3):
        optimizer.zero_grad()
        (w.sum() * 0.7).backward()
        optimizer.step()
    assert stepped(AdamW(weight_decay=0.3, decoupled=False), 0.7, {})["w"] == pytest.approx(
        float(w.detach()[0]), rel=1e-6
    )


@pytest.mark.parametrize("rule", [Sgd, AdamW])
def test_everything_around_a_rule_is_the_same_in_slices_of_a_batch(rule: type[Sgd] | type[AdamW]) -> None:
    settings = rule(max_norm=0.5, proximal=0.3, control_variates=True, ema=0.8, rates=(("*bias", 2.0),))
    data = build("mlp", (5,), 3, 1)
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(8, 5)).astype(np.float32), rng.integers(0, 3, 8).astype(np.int32)
    results = []
    for batch, slices in ((8, 1), (2, 4)):
        compiled = compile_training(import_onnx(data, batch=batch), rule=settings, micro_batches=slices)
        engine = _core.Engine(compiled.plan)
        engine.poison()
        weights = with_averages(weights_of(data), compiled.report.trained)
        plain = [name for name in weights if not name.startswith("ema/")]
        for name, array in weights.items():
            engine.view(name)[...] = array
        for name in plain:
            engine.view(f"global/{name}")[...] = weights[name] * np.float32(0.9)
            engine.view(f"control/{name}")[...] = 0.01
        engine.view("x")[...], engine.view("y")[...], engine.view("lr")[...] = x, y, 0.1
        for _ in range(4):
            engine.step()
        results.append({name: engine.view(name).copy() for name in weights})
        assert any(not np.array_equal(results[-1][f"ema/{name}"], results[-1][name]) for name in plain)
    for name, array in results[0].items():
        np.testing.assert_allclose(results[1][name], array, rtol=2e-4, atol=2e-6, err_msg=name)
