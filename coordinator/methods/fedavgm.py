"""Federated averaging with server momentum.

T.-M. H. Hsu, H. Qi, M. Brown: Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification, 2019 (arXiv 1909.06335), eq. 2: `v <- beta v + mean`, `w <- w + server_lr v`, where mean is FedAvg's.

| tensor | down | up | stays on the device |
| --- | --- | --- | --- |
| trained | float32, all | trained - received, all | nothing |
| v | nothing | nothing | nothing: the gateway keeps it, 4 bytes a value |

Deviations from the paper: those of FedAvg; a tensor that no device of a round trained keeps its v.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from coordinator.fields import Field, number
from coordinator.methods.fedavg import SERVER_LR, fedavg
from coordinator.methods.method import Method, MethodKind
from coordinator.server_steps import add_momentum
from coordinator.training_keys import Training


def fedavgm(beta: float = 0.9, server_lr: float = 1.0) -> Method:
    """FedAvg whose server step has momentum `beta`, in [0, 1)."""
    return replace(fedavg(), name="fedavgm", server_step=add_momentum(server_lr, beta))


def _from_options(options: Mapping[str, Any], _training: Training) -> Method:
    return fedavgm(float(options["beta"]), float(options["server_lr"]))


FEDAVGM = MethodKind(
    options={"beta": Field(number(0, 1, below_high=True), required=False, default=0.9), "server_lr": SERVER_LR},
    build=_from_options,
)
