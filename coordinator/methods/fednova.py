"""FedNova: federated averaging that is fair to devices which do different numbers of steps.

J. Wang, Q. Liu, H. Liang, G. Joshi, H. V. Poor: Tackling the Objective Inconsistency Problem in Heterogeneous Federated
Optimization, NeurIPS 2020, eqs. 6 to 9; formulas in coordinator/aggregators.py (`normalised_mean`).

| tensor | down | up | stays on the device |
| --- | --- | --- | --- |
| trained | float32, all | trained - received, all; the number of steps | nothing |

Deviations from the paper: those of FedAvg. The path of SGD with momentum is counted as the paper counts it; weight
decay, Nesterov's step and a proximal pull are left out of the count; AdamW has no such count and is refused.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from coordinator.aggregators import normalised_mean
from coordinator.methods.fedavg import SERVER_LR, fedavg
from coordinator.methods.method import Method, MethodKind
from coordinator.training_keys import Training


def fednova(momentum: float, server_lr: float = 1.0) -> Method:
    """FedAvg with normalised updates; `momentum` is that of the local SGD."""
    return replace(fedavg(server_lr), name="fednova", aggregate=normalised_mean(momentum))


def _from_options(options: Mapping[str, Any], training: Training) -> Method:
    return fednova(training.momentum, float(options["server_lr"]))


FEDNOVA = MethodKind(options={"server_lr": SERVER_LR}, build=_from_options, optimizers=("sgd",))
