"""Update rules: what a step does with the gradients, and the state it keeps.

A rule is a record of settings, fixed in the plan, with one function `updates`; the learning rate is a scalar of the
plan, which a task sets. All rules share `Shared`: what is done to a gradient before it is used, and to a tensor after.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import models.compiler.graph as g
from edge_runtime.plan import ANCHOR, AVERAGE, CONTROL
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
        owners: the scalars and slots among the leaves.
    """

    outputs: list[Value]
    owners: dict[Value, Owner]


def _slot(role: Role, name: str, shape: tuple[int, ...], owners: dict[Value, Owner]) -> Value:
    slot = g.leaf(name, "float32", shape)
    owners[slot] = Owner(role, name)
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


def _check(name: str, value: float, *, above: bool = False) -> None:
    """Refuse what is not finite, is negative, or is 0 where it must be above."""
    if not (math.isfinite(value) and value >= 0.0) or (above and value == 0.0):
        raise CompileError(f"{name} must be finite and {'above 0' if above else 'not negative'}, got {value}")


@dataclass(frozen=True, kw_only=True)
class Shared(ABC):
    """What every rule can do besides its own step.

    Attributes:
        max_norm: all gradients together are scaled down to this Euclidean norm.
        proximal: the objective gains proximal / 2 * |w - w_global|^2 (FedProx, arXiv 1812.06127, eq. 2), whose gradient
            is clipped with the others. w_global is the frozen slot "global/NAME", which a task fills with what it
            received.
        control_variates: the frozen slot "control/NAME", which holds c - c_i, is added to each gradient after clipping
            (SCAFFOLD, arXiv 1910.06378, eq. 3).
        ema: None, or the decay of a moving average of each trained tensor: the trained slot "ema/NAME" becomes
            ema * average + (1 - ema) * tensor after every step.
        rates: (pattern, factor): the learning rate of a tensor is lr times the factor of the first shell pattern that
            matches its name.
    """

    max_norm: float | None = None
    proximal: float = 0.0
    control_variates: bool = False
    ema: float | None = None
    rates: tuple[tuple[str, float], ...] = ()

    def check_shared(self) -> None:
        """Refuse settings out of range."""
        _check("proximal", self.proximal)
        if self.max_norm is not None:
            _check("max_norm", self.max_norm, above=True)
        if self.ema is not None and not 0.0 <= self.ema < 1.0:
            raise CompileError(f"ema must be in [0, 1), got {self.ema}")
        for pattern, factor in self.rates:
            _check(f"the rate of {pattern!r}", factor)

    @abstractmethod
    def steps(self, pairs: Pairs, lr: "LearningRates", owners: dict[Value, Owner]) -> list[tuple[Value, Value]]:
        """Every parameter, and slot of the rule's own, with what it becomes; adds its state to `owners`."""

    def updates(self, pairs: Pairs) -> Updates:
        """The step of every parameter, and what is shared around it."""
        owners: dict[Value, Owner] = {}
        lr = LearningRates(_slot(Role.SCALAR, LEARNING_RATE, (), owners), self.rates)
        lr.check([p.name for p, _ in pairs])
        moved = self.steps(self._corrected(pairs, owners), lr, owners)
        return Updates([new for _, new in moved] + self._averages(pairs, dict(moved), owners), owners)

    def _corrected(self, pairs: Pairs, owners: dict[Value, Owner]) -> Pairs:
        if self.proximal:
            anchors = [_slot(Role.FROZEN, ANCHOR + p.name, p.shape, owners) for p, _ in pairs]
            pairs = [(p, d + (p - w) * self.proximal) for (p, d), w in zip(pairs, anchors, strict=True)]
        pairs = clipped(pairs, self.max_norm)
        if self.control_variates:
            pairs = [(p, d + _slot(Role.FROZEN, CONTROL + p.name, p.shape, owners)) for p, d in pairs]
        return pairs

    def _averages(self, pairs: Pairs, moved: Mapping[Value, Value], owners: dict[Value, Owner]) -> list[Value]:
        """The averages follow the tensors as they are after the step."""
        if self.ema is None:
            return []
        slots = [_slot(Role.TRAINED, AVERAGE + p.name, p.shape, owners) for p, _ in pairs]
        return [g.blend(slot, moved[p], 1.0 - self.ema) for slot, (p, _) in zip(slots, pairs, strict=True)]


@dataclass(frozen=True)
class LearningRates:
    """The learning rate of each tensor: the scalar, times the factor of the first pattern that matches."""

    lr: Value
    rates: tuple[tuple[str, float], ...]

    def check(self, names: Sequence[str]) -> None:
        """Refuse a pattern that matches no trained tensor: it would be a misspelt one."""
        for pattern, _ in self.rates:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise CompileError(f"the rate pattern {pattern!r} matches no trained tensor: {', '.join(names)}")

    def of(self, parameter: Value) -> Value:
        """A scalar."""
        factors = [factor for pattern, factor in self.rates if fnmatchcase(parameter.name, pattern)]
        return self.lr * factors[0] if factors and factors[0] != 1.0 else self.lr


@dataclass(frozen=True)
class Sgd(Shared):
    """Settings of stochastic gradient descent; they are fixed in the plan, the learning rate is not."""

    momentum: float = 0.9
    weight_decay: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        self.check_shared()
        if not 0.0 <= self.momentum < 1.0:
            raise CompileError(f"momentum must be in [0, 1), got {self.momentum}")
        _check("weight_decay", self.weight_decay)
        if self.nesterov and not self.momentum:
            raise CompileError("nesterov needs a momentum above 0")

    def steps(self, pairs: Pairs, lr: LearningRates, owners: dict[Value, Owner]) -> list[tuple[Value, Value]]:
        """One `sgd` for each parameter; the velocity of NAME is "momentum/NAME"."""
        moved = []
        for p, gradient in pairs:
            velocity = _slot(Role.STATE, f"momentum/{p.name}", p.shape, owners) if self.momentum else None
            new = g.sgd(
                p,
                gradient,
                lr.of(p),
                velocity,
                momentum=self.momentum,
                weight_decay=self.weight_decay,
                nesterov=self.nesterov,
            )
            moved.append((p, new[0]))
        return moved


@dataclass(frozen=True)
class AdamW(Shared):
    """Settings of AdamW (arXiv 1711.05101); bias correction as in torch.optim.AdamW.

    With `decoupled` False the decay is added to the gradient instead: Adam (arXiv 1412.6980) as in torch.optim.Adam.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    decoupled: bool = True

    def __post_init__(self) -> None:
        self.check_shared()
        if not (0.0 <= self.beta1 < 1.0 and 0.0 <= self.beta2 < 1.0):
            raise CompileError(f"beta1 and beta2 must be in [0, 1), got {self.beta1} and {self.beta2}")
        _check("epsilon", self.epsilon, above=True)
        _check("weight_decay", self.weight_decay)

    def steps(self, pairs: Pairs, lr: LearningRates, owners: dict[Value, Owner]) -> list[tuple[Value, Value]]:
        """One `adamw` for each parameter; moments of NAME are "adam.m/NAME" and "adam.v/NAME", the count "adam.t"."""
        counter = _slot(Role.STATE, "adam.t", (), owners)
        t = counter + 1.0
        moved = [(counter, g.blend(counter, t))]
        for p, gradient in pairs:
            m, v = (_slot(Role.STATE, f"adam.{k}/{p.name}", p.shape, owners) for k in "mv")
            decayed = self.weight_decay and not self.decoupled
            new = g.adamw(
                p,
                gradient + p * self.weight_decay if decayed else gradient,
                lr.of(p),
                m,
                v,
                t,
                beta1=self.beta1,
                beta2=self.beta2,
                epsilon=self.epsilon,
                weight_decay=self.weight_decay if self.decoupled else 0.0,
            )
            moved.append((p, new[0]))
        return moved


Rule = Sgd | AdamW
