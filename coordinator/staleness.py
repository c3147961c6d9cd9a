"""What an update weighs that comes late, and how it is put against the weights it finds.

An update is u versions stale when u versions were made between the one its device trained from, x_tau, and the one it
is folded into. Its weight falls with u by s(u) in (0, 1]:

| staleness | s(u) |
| --- | --- |
| constant | 1 |
| polynomial | (u + 1)^-a |
| hinge | 1 where u <= b, else 1 / (a (u - b) + 1) |

FedAsync (C. Xie, S. Koyejo, I. Gupta: Asynchronous Federated Optimization, 2019, Algorithm 1) mixes *models*:
`x <- (1 - alpha_t) x + alpha_t x_new` with `alpha_t = alpha s(u)`, made of the constant alpha every time. With the
device's `delta = x_new - x_tau` that is `x + alpha_t (delta + x_tau - x)`: the update is put against present weights.

FedBuff (J. Nguyen et al.: Federated Learning with Buffered Asynchronous Aggregation, AISTATS 2022, Algorithm 1) adds
*differences*: `x <- x + server_lr / K sum_i s(u_i) delta_i`.

Deviations: FedAsync's paper gives an update that nothing came before the staleness 1, here it has 0; FedBuff's 1 / K is
the share of the update's examples in the buffer, as FedAvg has it; and running statistics of batch normalisation are
mixed as models in both, since a difference to an older version could make a variance negative.
"""

from collections.abc import Callable, Collection, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from coordinator.round_records import ScheduleRules

Tensors = Mapping[str, NDArray[np.float32]]

STALENESS: Mapping[str, Callable[[int, float, float], float]] = {
    "constant": lambda _u, _a, _b: 1.0,
    "polynomial": lambda u, a, _b: (u + 1.0) ** -a,
    "hinge": lambda u, a, b: 1.0 if u <= b else 1.0 / (a * (u - b) + 1.0),
}


def update_weight(rules: ScheduleRules, staleness: int) -> float:
    """What one update weighs, in (0, 1]; 1 in a synchronous round."""
    share = STALENESS[rules.staleness](staleness, rules.a, rules.b)
    return rules.alpha * share


def as_models(rules: ScheduleRules, names: Iterable[str], statistics: Collection[str]) -> frozenset[str]:
    """The tensors of an update that are folded as models: all in FedAsync, running statistics anywhere."""
    return frozenset(names if rules.name == "fedasync" else set(names) & set(statistics))


def against_present(delta: Tensors, models: Collection[str], base: Tensors, present: Tensors) -> Tensors:
    """An update whose `models` are differences to the present weights.

    Args:
        delta: What the device sent: trained minus `base`.
        models: Names of tensors.
        base: The weights it trained from.
        present: The weights it is folded into.

    Returns:
        Float32 tensors of the same names; the values of `delta` where base and present are equal.
    """
    return {name: tensor + (base[name] - present[name]) if name in models else tensor for name, tensor in delta.items()}
