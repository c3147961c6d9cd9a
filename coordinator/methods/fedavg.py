"""Federated averaging.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agueera y Arcas: Communication-Efficient Learning of Deep Networks
from Decentralized Data, AISTATS 2017, Algorithm 1. Each round t, every device k of the cohort starts from w_t, runs
E epochs of SGD in batches of B on its n_k examples, and the gateway sets `w_{t+1} = sum_k (n_k / n) w_{t+1}^k`, where
n sums over the cohort.

| tensor | down | up | stays on the device |
| --- | --- | --- | --- |
| trained | float32, all | trained - received, float32, all | nothing |
| frozen | float32, all | nothing | nothing |
| momentum | nothing | nothing | nothing: zero at the start of every task |

Deviations from the paper:

- Devices send `delta_k = w_{t+1}^k - w_t`, not weights; `w_{t+1} = w_t + server_lr * sum_k (n_k / n) delta_k`. With
  server_lr = 1 this is the paper's average, up to float32 rounding of the difference.
- n sums over the devices whose updates were accepted, so the weights always add up to one.
- The last batch of an epoch may be short; its gradient is the mean over its own rows.
- Running statistics of batch normalisation are averaged as they are, whatever server_lr is.
- The paper's local solver is plain SGD; the job file may add momentum, weight decay and Nesterov's step.
"""

from collections.abc import Mapping
from typing import Any

from coordinator.aggregators import weighted_mean
from coordinator.fields import Field, number
from coordinator.methods.method import Method, MethodKind, PhaseSpec, Upload
from coordinator.server_steps import add_mean
from coordinator.training_keys import Training


def fedavg(server_lr: float = 1.0) -> Method:
    """FedAvg with a server learning rate; 1.0 is the paper's."""
    return Method(
        name="fedavg",
        phases=(PhaseSpec(plan="train", objective="softmax_cross_entropy", scalars={"lr": "lr"}),),
        upload=Upload(form="delta", codec=("dense",)),
        aggregate=weighted_mean,
        server_step=add_mean(server_lr),
    )


def _from_options(options: Mapping[str, Any], _training: Training) -> Method:
    return fedavg(server_lr=float(options["server_lr"]))


SERVER_LR = Field(number(0, 100, above_low=True), required=False, default=1.0)
FEDAVG = MethodKind(
    options={"server_lr": SERVER_LR},
    build=_from_options,
)
