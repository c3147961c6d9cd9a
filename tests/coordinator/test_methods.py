"""The contract of every method: a number worked by hand, an invariant of its paper, what is averaged plainly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.aggregators import Contribution, normalised_mean, weighted_mean
from coordinator.methods import METHODS
from coordinator.methods.ef21 import ef21
from coordinator.methods.fedavg import fedavg
from coordinator.methods.fedavgm import fedavgm
from coordinator.methods.fednova import fednova
from coordinator.methods.fedopt import fedopt
from coordinator.methods.fedprox import fedprox
from coordinator.methods.scaffold import scaffold
from coordinator.server_steps import SECOND_MOMENTS, adaptive
from edge_runtime.control import path_length

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from coordinator.methods import Method

WEIGHTS = {"w": np.array([1.0, -2.0], np.float32), "bn.var": np.array([0.5], np.float32)}
PLAIN = frozenset({"bn.var"})


def contributions(steps: tuple[int, int] = (1, 1)) -> list[Contribution]:
    """Two devices of 1 and 3 examples: the weighted mean of w is (2.5, -1), of the variance -0.25."""
    first = {"w": np.array([1.0, 2.0], np.float32), "bn.var": np.array([-0.1], np.float32)}
    second = {"w": np.array([3.0, -2.0], np.float32), "bn.var": np.array([-0.3], np.float32)}
    return [Contribution("a", 1, first, steps[0]), Contribution("b", 3, second, steps[1])]


def two_rounds(method: Method, steps: tuple[int, int] = (1, 1)) -> list[NDArray[np.float32]]:
    """The weights w after one round and after a second one with the same updates."""
    weights, state, seen = dict(WEIGHTS), {}, []
    for _ in range(2):
        mean = method.aggregate(contributions(steps), PLAIN)
        weights, state = method.server_step(weights, mean, state, PLAIN)
        seen.append(weights["w"])
    return seen


@dataclass(frozen=True)
class Row:
    """A method at odd numbers, and w after rounds 1 and 2, worked by hand."""

    method: Method
    first: tuple[float, float]
    second: tuple[float, float]
    steps: tuple[int, int] = (1, 1)


ROWS = {
    # g = the sum over 4 = (1, 0), then twice that; w + 0.7 g.
    "ef21": Row(ef21(4, 0.7), (1.7, -2.0), (3.1, -2.0)),
    # w + 0.7 d, twice.
    "fedavg": Row(fedavg(0.7), (2.75, -2.7), (4.5, -3.4)),
    "fedprox": Row(fedprox(0.3, 0.7), (2.75, -2.7), (4.5, -3.4)),
    # v = d, then 0.6 d + d = 1.6 d; w + 0.7 v.
    "fedavgm": Row(fedavgm(0.6, 0.7), (2.75, -2.7), (5.55, -3.82)),
    # m = 0.4 d, then 0.24 d + 0.4 d = 0.64 d; v = d^2, 2 d^2; w + 0.7 m / (sqrt(v) + 0.5).
    "fedadagrad": Row(
        fedopt("adagrad", 0.7, 0.6, tau=0.5),
        (1 + 0.7 * 1.0 / 3.0, -2 - 0.7 * 0.4 / 1.5),
        (
            1 + 0.7 * 1.0 / 3.0 + 0.7 * 1.6 / (2.5 * math.sqrt(2) + 0.5),
            -2 - 0.7 * 0.4 / 1.5 - 0.7 * 0.64 / (math.sqrt(2) + 0.5),
        ),
    ),
    # v = 0.2 d^2, then 0.16 d^2 + 0.2 d^2 = 0.36 d^2, whose root is 0.6 |d|.
    "fedadam": Row(
        fedopt("adam", 0.7, 0.6, 0.8, 0.5),
        (1 + 0.7 / (2.5 * math.sqrt(0.2) + 0.5), -2 - 0.7 * 0.4 / (math.sqrt(0.2) + 0.5)),
        (
            1 + 0.7 / (2.5 * math.sqrt(0.2) + 0.5) + 0.7 * 1.6 / (1.5 + 0.5),
            -2 - 0.7 * 0.4 / (math.sqrt(0.2) + 0.5) - 0.7 * 0.64 / (0.6 + 0.5),
        ),
    ),
    # v = 0.2 d^2, then 0.2 d^2 + 0.2 d^2 = 0.4 d^2, since v is below d^2.
    "fedyogi": Row(
        fedopt("yogi", 0.7, 0.6, 0.8, 0.5),
        (1 + 0.7 / (2.5 * math.sqrt(0.2) + 0.5), -2 - 0.7 * 0.4 / (math.sqrt(0.2) + 0.5)),
        (
            1 + 0.7 / (2.5 * math.sqrt(0.2) + 0.5) + 0.7 * 1.6 / (2.5 * math.sqrt(0.4) + 0.5),
            -2 - 0.7 * 0.4 / (math.sqrt(0.2) + 0.5) - 0.7 * 0.64 / (math.sqrt(0.4) + 0.5),
        ),
    ),
    # p = 1/4, 3/4; steps 2 and 5: mean path 17/4, sum p d/a = (1/8 + 9/20, 1/4 - 3/10); w + 0.7 * product.
    "fednova": Row(
        fednova(0.0, 0.7),
        (1 + 0.7 * 4.25 * 0.575, -2 - 0.7 * 4.25 * 0.05),
        (1 + 1.4 * 4.25 * 0.575, -2 - 1.4 * 4.25 * 0.05),
        steps=(2, 5),
    ),
    # Devices count alike: d = (2, 0); w + 0.7 d, twice.
    "scaffold": Row(scaffold(0.7), (2.4, -2.0), (3.8, -2.0)),
}


def test_every_method_has_its_row() -> None:
    assert ROWS.keys() == METHODS.keys()


@pytest.mark.parametrize("name", ROWS)
def test_two_rounds_give_the_numbers_worked_by_hand(name: str) -> None:
    row = ROWS[name]
    first, second = two_rounds(row.method, row.steps)
    np.testing.assert_allclose(first, row.first, rtol=1e-6)
    np.testing.assert_allclose(second, row.second, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(ROWS.keys() - {"ef21"}))
def test_running_statistics_are_the_average_of_the_devices_own(name: str) -> None:
    row = ROWS[name]
    mean = row.method.aggregate(contributions(row.steps), PLAIN)
    weights, state = row.method.server_step(WEIGHTS, mean, {}, PLAIN)
    np.testing.assert_allclose(weights["bn.var"], [0.25], rtol=1e-6)  # (0.4 + 3 * 0.2) / 4
    assert not [key for key in state if "bn.var" in key]


@pytest.mark.parametrize("name", ROWS)
def test_a_tensor_nobody_trained_keeps_its_value_and_its_state(name: str) -> None:
    row = ROWS[name]
    mean = row.method.aggregate(contributions(row.steps), PLAIN)
    weights, state = row.method.server_step(WEIGHTS, mean, {}, PLAIN)
    later, kept = row.method.server_step(weights, {"bn.var": mean["bn.var"]}, state, PLAIN)
    assert later["w"].tobytes() == weights["w"].tobytes()
    for key in state.keys() - {"g/bn.var"}:  # which ef21 remembers, and which was trained
        assert kept[key].tobytes() == state[key].tobytes()


def test_fedadam_without_memory_and_with_a_large_tau_is_fedavg() -> None:
    tau = 1e9
    step = adaptive("adam", tau, 0.0, 0.0, tau)
    mean = weighted_mean(contributions())
    plain, _ = fedavg().server_step(WEIGHTS, mean, {}, PLAIN)
    adam, _ = step(WEIGHTS, mean, {}, PLAIN)
    np.testing.assert_allclose(adam["w"], plain["w"], rtol=1e-6)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30), st.floats(0, 0.999))
@settings(deadline=None)
def test_yogis_second_moment_never_turns_negative_and_moves_by_at_most_the_square(
    means: list[float], beta2: float
) -> None:
    v = np.zeros(1)
    for mean in means:
        before, square = v, np.square(np.array([mean]))
        v = SECOND_MOMENTS["yogi"](before, square, beta2)
        assert v >= -1e-9
        assert np.abs(v - before) <= (1 - beta2) * square + 1e-9


@given(st.integers(1, 50), st.sampled_from([0.0, 0.3, 0.9]))
@settings(deadline=None)
def test_fednova_with_equally_many_steps_is_the_weighted_mean(steps: int, momentum: float) -> None:
    nova = normalised_mean(momentum)(contributions((steps, steps)), PLAIN)
    mean = weighted_mean(contributions())
    for name, tensor in mean.items():
        np.testing.assert_allclose(nova[name], tensor, rtol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.35, 0.9])
def test_a_path_is_as_long_as_sgd_of_unit_gradients_walks(momentum: float) -> None:
    for steps in (1, 2, 7, 20):
        velocity = walked = 0.0
        for _ in range(steps):
            velocity = momentum * velocity + 1.0
            walked += velocity
        assert path_length(steps, momentum) == pytest.approx(walked, rel=1e-12)


def test_fednova_takes_out_what_more_steps_add() -> None:
    """Devices whose every step moves them by their own vector: the direction is p-weighted, not step-weighted."""
    directions, steps, examples = (np.array([1.0, 0.0]), np.array([0.0, 1.0])), (2, 30), (1, 1)
    given_ = [
        Contribution(name, n, {"w": (count * direction).astype(np.float32)}, count)
        for name, n, count, direction in zip("ab", examples, steps, directions, strict=True)
    ]
    folded = normalised_mean(0.0)(given_, ())["w"]
    assert folded[0] == pytest.approx(folded[1])
    plain = weighted_mean(given_)["w"]
    assert plain[1] == pytest.approx(15 * plain[0])
