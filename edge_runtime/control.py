"""SCAFFOLD on the device: what local gradients are corrected by, and what the device sends for it.

Received is c, under `control/NAME` beside the weights NAME; kept is the device's own c_i, zero at first. Every gradient
gains c - c_i. After a task of `steps` steps of SGD from x to y

    change of c_i = -c + (x - y) / (lr * a)      a = the sum of the weights SGD gives its gradients, `path_length`

which is the mean gradient along the way, less c_i (option II). It is sent under `control/NAME`; c_i itself never is,
and it advances by what the bytes said once the update counts (edge_runtime/slots.py): c stays the mean of all c_i
whatever becomes of an update and however it is coded.

Source: S. P. Karimireddy et al.: SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, ICML 2020, eqs. 3
to 5. Momentum: a_i as in J. Wang et al., NeurIPS 2020, eq. 6; without momentum it is the number of steps.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.plan import CONTROL

__all__ = ["JOINED", "changes", "corrections", "path_length"]

Arrays = Mapping[str, NDArray[Any]]

JOINED = "joined"  # in an update's metadata: the control variates that the device begins with it, as a JSON list


def corrections(wanted: Iterable[str], received: Arrays, own: Arrays) -> dict[str, NDArray[np.float32]]:
    """What gradients gain: c - c_i, for those of a plan's tensors that are `control/NAME`.

    Args:
        wanted: Names of the plan's tensors.
        received: c, by `control/NAME`.
        own: c_i, by NAME; zero where it has none.
    """
    names = [name for name in wanted if name.startswith(CONTROL) and name in received]
    return {name: received[name] - own.get(name.removeprefix(CONTROL), np.float32(0)) for name in names}


def changes(
    controls: Iterable[str], received: Arrays, own: Arrays, delta: Arrays, walked: float
) -> dict[str, NDArray[np.float32]]:
    """The change of every c_i, by `control/NAME`: the difference of two float32, so that c_i can follow it to the bit.

    Args:
        controls: The names of the plan's `control/NAME`.
        received: c, by these names.
        own: c_i, by NAME; zero where it has none.
        delta: y - x, by NAME.
        walked: lr * a, above 0.
    """
    made = {}
    for name in controls:
        bare = name.removeprefix(CONTROL)
        before = own.get(bare, np.float32(0))
        after = np.divide(delta[bare], -walked, dtype=np.float64)
        after += before - received[name].astype(np.float64)
        # Rounded here and not when it is added: what c_i could not follow would be lost alike in every round.
        made[name] = after.astype(np.float32) - before
    return made


def path_length(steps: int, momentum: float) -> float:
    """The sum of the weights that so many steps of SGD with momentum give to their gradients, at least 1."""
    if momentum == 0:
        return float(steps)
    return (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)
