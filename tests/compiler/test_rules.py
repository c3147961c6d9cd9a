"""Update rules: their settings, their state in the plan, and clipping by a worked number."""

from collections.abc import Callable

import numpy as np
import pytest

import models.compiler.graph as g
from edge_runtime import _core
from models.compiler.errors import CompileError
from models.compiler.ir import Role
from models.compiler.rules import AdamW, Rule, Sgd
from models.compiler.training import compile_loss

BAD_SETTINGS: list[tuple[Callable[[], Rule], str]] = [
    (lambda: AdamW(beta1=1.0), "beta1 and beta2"),
    (lambda: AdamW(beta2=-0.1), "beta1 and beta2"),
    (lambda: AdamW(epsilon=0.0), "epsilon"),
    (lambda: AdamW(weight_decay=float("nan")), "weight_decay"),
    (lambda: AdamW(max_norm=0.0), "max_norm"),
    (lambda: Sgd(max_norm=float("inf")), "max_norm"),
    (lambda: Sgd(momentum=1.0), "momentum"),
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
