"""FedProx: federated averaging with a proximal pull on the devices.

T. Li, A. K. Sahu, M. Zaheer, M. Sanjabi, A. Talwalkar, V. Smith: Federated Optimization in Heterogeneous Networks,
MLSys 2020, Algorithm 2. The local loss gains `mu / 2 * ||w - w_t||^2`, w_t being what was received; its gradient
`mu (w - w_t)` is compiled into the plan.

| tensor | down | up | stays on the device |
| --- | --- | --- | --- |
| trained | float32, all | trained - received, all | nothing |
| w_t | nothing | nothing | for the time of a task |

Deviations from the paper: those of FedAvg; the paper also lets stragglers send what they have, here a round's deadline
decides. Running statistics are not pulled. `training.proximal`, which any method may have, adds to mu.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from coordinator.fields import Field, number
from coordinator.methods.fedavg import SERVER_LR, fedavg
from coordinator.methods.method import Method, MethodKind
from coordinator.training_keys import Training


def fedprox(mu: float, server_lr: float = 1.0) -> Method:
    """FedAvg whose devices are pulled back with weight `mu`."""
    return replace(fedavg(server_lr), name="fedprox", proximal=mu)


def _from_options(options: Mapping[str, Any], _training: Training) -> Method:
    return fedprox(float(options["mu"]), float(options["server_lr"]))


FEDPROX = MethodKind(options={"mu": Field(number(0, 1e6)), "server_lr": SERVER_LR}, build=_from_options)
