"""Update rules: what a step does with the gradients, and the state it keeps.

A rule is a record of settings, fixed in the plan, with one function `updates`; the learning rate is a scalar of the
plan, which a task sets.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import models.compiler.graph as g
from models.compiler.errors import CompileError
from models.compiler.ir import Role, Value
from models.compiler.storage import Owner

LEARNING_RATE = "lr"
Pairs = Sequence[tuple[Value, Value]]  # parameter and gradient, in the order they shall be updated


@dataclass(frozen=True)
class Updates:
    """What a rule adds to a step.

    Attributes:
        outputs: the last value of every update, so that all of them are reached.
        owners: the scalars and state tensors among the leaves.
    """

    outputs: list[Value]
    owners: dict[Value, Owner]


def _learning_rate() -> tuple[Value, dict[Value, Owner]]:
    lr = g.leaf(LEARNING_RATE, "float32", ())
    return lr, {lr: Owner(Role.SCALAR, LEARNING_RATE)}


def _state(name: str, shape: tuple[int, ...], owners: dict[Value, Owner]) -> Value:
    """A state tensor; it is zero when an engine starts."""
    slot = g.leaf(name, "float32", shape)
    owners[slot] = Owner(Role.STATE, name)
    return slot


def clipped(pairs: Pairs, max_norm: float | None) -> Pairs:
    """Gradients scaled down so that the norm of all of them together is at most max_norm (arXiv 1211.5063).

    The factor is min(1, max_norm / (norm + 1e-6)), as in torch. All gradients are alive at once then.
    """
    if max_norm is None or not pairs:
        return pairs
    squares = [g.sum(g.square(gradient)) for _, gradient in pairs]
    norm = g.sqrt(sum(squares[1:], start=squares[0]))
    factor = g.minimum(max_norm / (norm + 1e-6), 1.0)
    return [(parameter, gradient * factor) for parameter, gradient in pairs]


def _check_norm(max_norm: float | None) -> None:
    if max_norm is not None and not (math.isfinite(max_norm) and max_norm > 0.0):
        raise CompileError(f"max_norm must be finite and above 0, got {max_norm}")


def _check_decay(weight_decay: float) -> None:
    if not (math.isfinite(weight_decay) and weight_decay >= 0.0):
        raise CompileError(f"weight_decay must be finite and not negative, got {weight_decay}")


@dataclass(frozen=True)
class Sgd:
    """Settings of stochastic gradient descent; they are fixed in the plan, the learning rate is not."""

    momentum: float = 0.9
    weight_decay: float = 0.0
    nesterov: bool = False
    max_norm: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.momentum < 1.0:
            raise CompileError(f"momentum must be in [0, 1), got {self.momentum}")
        _check_decay(self.weight_decay)
        _check_norm(self.max_norm)
        if self.nesterov and not self.momentum:
            raise CompileError("nesterov needs a momentum above 0")

    def updates(self, pairs: Pairs) -> Updates:
        """One `sgd` for each parameter; the velocity of NAME is "momentum/NAME"."""
        lr, owners = _learning_rate()
        outputs = []
        for parameter, gradient in clipped(pairs, self.max_norm):
            velocity = _state(f"momentum/{parameter.name}", parameter.shape, owners) if self.momentum else None
            new = g.sgd(
                parameter,
                gradient,
                lr,
                velocity,
                momentum=self.momentum,
                weight_decay=self.weight_decay,
                nesterov=self.nesterov,
            )
            outputs.append(new[0])
        return Updates(outputs, owners)


@dataclass(frozen=True)
class AdamW:
    """Settings of AdamW (arXiv 1711.05101); bias correction as in torch.optim.AdamW."""

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    max_norm: float | None = None

    def __post_init__(self) -> None:
        if not (0.0 <= self.beta1 < 1.0 and 0.0 <= self.beta2 < 1.0):
            raise CompileError(f"beta1 and beta2 must be in [0, 1), got {self.beta1} and {self.beta2}")
        if not (math.isfinite(self.epsilon) and self.epsilon > 0.0):
            raise CompileError(f"epsilon must be finite and above 0, got {self.epsilon}")
        _check_decay(self.weight_decay)
        _check_norm(self.max_norm)

    def updates(self, pairs: Pairs) -> Updates:
        """One `adamw` for each parameter; moments of NAME are "adam.m/NAME" and "adam.v/NAME", the count "adam.t"."""
        lr, owners = _learning_rate()
        counter = _state("adam.t", (), owners)
        t = counter + 1.0
        outputs = [g.blend(counter, t)]
        for parameter, gradient in clipped(pairs, self.max_norm):
            m, v = (_state(f"adam.{k}/{parameter.name}", parameter.shape, owners) for k in "mv")
            new = g.adamw(
                parameter,
                gradient,
                lr,
                m,
                v,
                t,
                beta1=self.beta1,
                beta2=self.beta2,
                epsilon=self.epsilon,
                weight_decay=self.weight_decay,
            )
            outputs.append(new[0])
        return Updates(outputs, owners)


Rule = Sgd | AdamW
