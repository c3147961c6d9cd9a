"""What the gateway does with a folded update: `(weights, mean, state, plain) -> (weights, state)`.

State is a mapping of tensors that the journal keeps beside the weights of each version; a step without memory has an
empty one. Tensors named in `plain` are running statistics: every step puts them at the average of the devices' own, for
an optimiser's step could make a variance negative. A tensor that the mean does not hold stays as it is, and so does
what the state holds for it. Everything is computed in float64 and rounded once to float32.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coordinator.aggregators import JOINED, Mean, Tensors
from edge_runtime.plan import CONTROL

State = Mapping[str, NDArray[Any]]  # float32, but for sums
ServerStep = Callable[[Tensors, Mean, State, Collection[str]], tuple[dict[str, NDArray[np.float32]], State]]

Wide = NDArray[np.float64]

MEMBERS, CHANGES = "members/", "changes/"
# (mean, what the state holds for this tensor by slot) -> (what is added to the weights, the slots afterwards)
Rule = Callable[[Wide, Mapping[str, Wide]], tuple[Wide, Mapping[str, Wide]]]


def add_mean(server_lr: float) -> ServerStep:
    """The step of FedAvg, `w <- w + server_lr * mean`.

    Args:
        server_lr: Finite and above 0; 1 puts the weights at the average of the devices' weights.
    """
    return _each((), lambda mean, _: (server_lr * mean, {}))


def add_momentum(server_lr: float, beta: float) -> ServerStep:
    """The step of FedAvgM, `v <- beta * v + mean`, `w <- w + server_lr * v`.

    Source: T.-M. H. Hsu, H. Qi, M. Brown: Measuring the Effects of Non-Identical Data Distribution for Federated Visual
    Classification, 2019. The sum form: with beta 0.9 a steady mean moves ten times as far as in the averaging form.
    """

    def rule(mean: Wide, slots: Mapping[str, Wide]) -> tuple[Wide, Mapping[str, Wide]]:
        v = beta * slots["v"] + mean
        return server_lr * v, {"v": v}

    return _each(("v",), rule)


def add_controls(server_lr: float) -> ServerStep:
    """The step of SCAFFOLD: FedAvg's, and for every control variate `c <- (sum of all changes so far) / N`.

    N is how many devices have one of their own, kept in the state under `members/`; the sum, under `changes/`, is
    float64: what float32 rounds away would be the same in every round once devices hardly change theirs.

    Source: S. P. Karimireddy et al.: SCAFFOLD, ICML 2020, Algorithm 1, lines 16 and 17, with N growing.
    """
    move = add_mean(server_lr)

    def step(
        weights: Tensors, mean: Mean, state: State, plain: Collection[str]
    ) -> tuple[dict[str, NDArray[np.float32]], State]:
        changes = {name: total for name, total in mean.items() if name.startswith(CONTROL)}
        trained = {name: total for name, total in mean.items() if not name.startswith((CONTROL, JOINED))}
        _check_fit(weights, changes)
        moved, kept = move(weights, trained, state, plain)
        sums: dict[str, NDArray[np.float64]] = {}
        for name, change in changes.items():
            members = float(state.get(MEMBERS + name, 0.0)) + float(mean.get(JOINED + name, 0.0))
            total = np.asarray(state.get(CHANGES + name, 0.0) + change)
            moved[name] = _narrow(np.asarray(total / max(members, 1.0)))
            sums |= {MEMBERS + name: np.array(members), CHANGES + name: total}
        return moved, {**kept, **sums}

    return step


def add_remembered(server_lr: float) -> ServerStep:
    """The step of EF21, `g <- g + mean`, `w <- w + server_lr * g`."""

    def rule(mean: Wide, slots: Mapping[str, Wide]) -> tuple[Wide, Mapping[str, Wide]]:
        g = slots["g"] + mean
        return server_lr * g, {"g": g}

    return _each(("g",), rule)


def adaptive(second: str, server_lr: float, beta1: float, beta2: float, tau: float) -> ServerStep:
    """The steps of FedOpt: `m <- beta1 m + (1 - beta1) d`, v below, `w <- w + server_lr * m / (sqrt(v) + tau)`.

    Args:
        second: How v follows the squared mean: "adagrad" `v + d^2`; "adam" `beta2 v + (1 - beta2) d^2`; "yogi"
            `v - (1 - beta2) d^2 sign(v - d^2)`. m and v begin at zero, and no bias is corrected.
        server_lr: Above 0.
        beta1: In [0, 1).
        beta2: In [0, 1); not of adagrad.
        tau: Above 0: how little a tensor's values must move to count as noise.

    Source: S. Reddi et al.: Adaptive Federated Optimization, ICLR 2021, Algorithm 2.
    """
    follow = SECOND_MOMENTS[second]

    def rule(mean: Wide, slots: Mapping[str, Wide]) -> tuple[Wide, Mapping[str, Wide]]:
        m = beta1 * slots["m"] + (1 - beta1) * mean
        v = follow(slots["v"], np.square(mean), beta2)
        return server_lr * m / (np.sqrt(v) + tau), {"m": m, "v": v}

    return _each(("m", "v"), rule)


SECOND_MOMENTS: Mapping[str, Callable[[Wide, Wide, float], Wide]] = {
    "adagrad": lambda v, square, _: v + square,
    "adam": lambda v, square, beta2: beta2 * v + (1 - beta2) * square,
    "yogi": lambda v, square, beta2: v - (1 - beta2) * square * np.sign(v - square),
}


def _each(slots: tuple[str, ...], rule: Rule) -> ServerStep:
    """A step that treats every tensor alike, but statistics, and keeps these slots of each, under `slot/name`."""

    def step(
        weights: Tensors, mean: Mean, state: State, plain: Collection[str]
    ) -> tuple[dict[str, NDArray[np.float32]], State]:
        _check_fit(weights, mean)
        moved, kept = dict(weights), dict(state)
        for name, towards in mean.items():
            held = {slot: _held(state, f"{slot}/{name}", towards.shape) for slot in slots}
            added, after = (towards, {}) if name in plain else rule(towards, held)
            moved[name] = _narrow(weights[name].astype(np.float64) + added)
            kept |= {f"{slot}/{name}": _narrow(array) for slot, array in after.items()}
        return moved, kept

    return step


def _held(state: State, key: str, shape: tuple[int, ...]) -> Wide:
    return state[key].astype(np.float64) if key in state else np.zeros(shape)


def _narrow(array: NDArray[Any]) -> NDArray[np.float32]:
    return array.astype(np.float32)


def _check_fit(weights: Tensors, mean: Mean) -> None:
    for name, tensor in mean.items():
        if name not in weights:
            raise ValueError(f"the folded update holds {name!r}, which is no tensor of the model")
        if weights[name].shape != tensor.shape:
            raise ValueError(f"tensor {name!r} has shape {weights[name].shape}, its update {tensor.shape}")
