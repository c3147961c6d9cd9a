"""SCAFFOLD: control variates that take out what unequal data pull local training apart by.

S. P. Karimireddy, S. Kale, M. Mohri, S. J. Reddi, S. U. Stich, A. T. Suresh: SCAFFOLD: Stochastic Controlled Averaging
for Federated Learning, ICML 2020, Algorithm 1 with option II. Device i keeps c_i, the gateway c = mean of all c_i;
local gradients gain c - c_i; formulas in edge_runtime/control.py, the gateway's step in coordinator/server_steps.py.

| tensor | down | up | stays on the device |
| --- | --- | --- | --- |
| trained | float32, all | trained - received, all | nothing |
| c, `control/NAME` | float32, of what gradients train | the change of c_i, the same | c_i, 4 bytes a value |
| running statistics | float32, all | trained - received, all | nothing |

So P values that gradients train take 8 P bytes each way, twice FedAvg's; a device keeps 4 P, and its engine takes 4 P
more. A codec sees both parts as one update, but picks the largest values of each part by itself, and carries nothing of
c_i's change over: the next change is made against what was said, as in EF21, and would say it a second time.

The fold is the plain mean over the devices of a round, as in the paper: every device counts alike, however many
examples it has. `c <- sum of all changes so far / N`, N being how many devices have a c_i by then: the paper's 1 / N
with an N that need not be known beforehand. A device says for which tensors it begins one (metadata `joined`). One that
has lost its state joins again; what it had before stays in c with the weight of one device, as that of a device does
that never comes again.

Deviations from the paper: those of FedAvg but for the weights; option I, a pass over the data at the received weights,
is not there. With momentum the walk is as long as its gradients' weights add up to. AdamW, Nesterov's step, a proximal
pull and moving averages leave no such walk and are refused, and so are updates that are older than a round.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from coordinator.aggregators import uniform_mean
from coordinator.methods.fedavg import SERVER_LR, fedavg
from coordinator.methods.method import Method, MethodKind
from coordinator.server_steps import add_controls
from coordinator.training_keys import Training


def scaffold(server_lr: float = 1.0) -> Method:
    """FedAvg over equal devices, with control variates."""
    return replace(fedavg(), name="scaffold", aggregate=uniform_mean, server_step=add_controls(server_lr), control=True)


def _from_options(options: Mapping[str, Any], _training: Training) -> Method:
    return scaffold(float(options["server_lr"]))


SCAFFOLD = MethodKind(
    options={"server_lr": SERVER_LR},
    build=_from_options,
    optimizers=("sgd",),
    excludes=("nesterov", "proximal", "ema", "personal"),
    synchronous=True,
)
