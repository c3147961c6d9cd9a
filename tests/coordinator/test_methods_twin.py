"""Every method against a float64 twin that sums update by update: unequal parts, steps, examples and staleness."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from coordinator.aggregators import Contribution
from coordinator.methods import METHODS
from coordinator.training_keys import TRAINING, make_training

if TYPE_CHECKING:
    from collections.abc import Mapping


SHAPES: dict[str, tuple[int, ...]] = {"a": (3, 4), "b": (5,), "scalar": (), "mean": (4,)}
STATISTICS = {"mean"}
OPTIONS: dict[str, dict[str, float]] = {
    "fedavg": {"server_lr": 0.7},
    "fedprox": {"server_lr": 0.7, "mu": 0.1},
    "fedavgm": {"server_lr": 0.7, "beta": 0.9},
    "fedadagrad": {"server_lr": 0.05, "beta1": 0.5, "tau": 1e-3},
    "fedadam": {"server_lr": 0.05, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3},
    "fedyogi": {"server_lr": 0.05, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3},
    "fednova": {"server_lr": 0.7},
    "scaffold": {"server_lr": 0.7},
}
Rounds = list[list[Contribution]]


def drawn_rounds(seed: int) -> Rounds:
    """Six rounds of some of six devices, each with a part of the tensors."""
    rng = np.random.default_rng(seed)
    return [[_drawn(rng, f"dev-{i}") for i in rng.permutation(6)[: rng.integers(1, 6)]] for _ in range(6)]


def _drawn(rng: np.random.Generator, device: str) -> Contribution:
    names = [name for name in SHAPES if rng.random() < 0.7] or ["a"]
    tensors = {name: np.asarray(0.1 * rng.standard_normal(SHAPES[name]), np.float32) for name in names}
    counts = {"examples": int(rng.integers(1, 50)), "steps": int(rng.integers(1, 20))}
    return Contribution(device, tensors=tensors, scale=float(rng.choice([1.0, 0.5, 0.3])), **counts)


def length_of(steps: int, momentum: float) -> float:
    """What SGD of unit gradients has walked: eq. 6 of FedNova, step by step."""
    walked, velocity = 0.0, 0.0
    for _ in range(steps):
        velocity = momentum * velocity + 1
        walked += velocity
    return walked


def mean_of(method: str, name: str, updates: list[Contribution], momentum: float) -> Any:
    examples = sum(each.examples for each in updates)
    values = [each.scale * np.asarray(each.tensors[name], np.float64) for each in updates]  # type: ignore[index]
    if method == "scaffold" and name not in STATISTICS:
        return sum(values) / len(values)
    shares = [each.examples / examples for each in updates]
    if method == "fednova" and name not in STATISTICS:
        lengths = [length_of(each.steps, momentum) for each in updates]
        whole = sum(share * length for share, length in zip(shares, lengths, strict=True))
        return whole * sum(s * value / length for s, value, length in zip(shares, values, lengths, strict=True))
    return sum(share * value for share, value in zip(shares, values, strict=True))


def moved(method: str, d: Any, held: dict[str, Any], options: Mapping[str, float]) -> Any:
    """What is added to the weights; `held` is changed."""
    lr = options["server_lr"]
    if method == "fedavgm":
        held["v"] = options["beta"] * held.get("v", 0) + d
        return lr * held["v"]
    if "tau" not in options:
        return lr * d
    v, beta2 = held.get("v", 0 * d), options.get("beta2", 0.0)
    held["m"] = options["beta1"] * held.get("m", 0) + (1 - options["beta1"]) * d
    held["v"] = {
        "fedadagrad": v + d**2,
        "fedadam": beta2 * v + (1 - beta2) * d**2,
        "fedyogi": v - (1 - beta2) * d**2 * np.sign(v - d**2),
    }[method]
    return lr * held["m"] / (np.sqrt(held["v"]) + options["tau"])


def twin(method: str, rounds: Rounds, weights: Mapping[str, Any], momentum: float) -> dict[str, Any]:
    now = {name: np.asarray(array, np.float64) for name, array in weights.items()}
    held: dict[str, dict[str, Any]] = {name: {} for name in SHAPES}
    for updates in rounds:
        for name in SHAPES:
            having = [each for each in updates if name in each.tensors]  # type: ignore[operator]
            if having:
                d = mean_of(method, name, having, momentum)
                now[name] = now[name] + (d if name in STATISTICS else moved(method, d, held[name], OPTIONS[method]))
    return now


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("name", OPTIONS)
def test_six_rounds_are_those_of_the_twin(name: str, momentum: float) -> None:
    rounds, rng = drawn_rounds(seed=3), np.random.default_rng(1)
    weights = {key: np.asarray(rng.standard_normal(shape), np.float32) for key, shape in SHAPES.items()}
    wanted = twin(name, rounds, weights, momentum)
    table = {key: field.default for key, field in TRAINING.items()} | {"momentum": momentum, "lr": 0.1}
    method = METHODS[name].build(OPTIONS[name], make_training(table, 1))
    state: Mapping[str, Any] = {}
    for updates in rounds:
        weights, state = method.server_step(weights, method.aggregate(updates, STATISTICS), state, STATISTICS)
    for key, array in wanted.items():
        np.testing.assert_allclose(weights[key], array, atol=2e-6)


def test_every_method_but_that_which_remembers_has_a_twin() -> None:
    assert OPTIONS.keys() == METHODS.keys() - {"ef21"}
