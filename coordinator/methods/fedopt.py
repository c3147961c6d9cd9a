"""Adaptive server optimisers: FedAdagrad, FedAdam, FedYogi.

S. Reddi, Z. Charles, M. Zaheer, Z. Garrett, K. Rush, J. Konecny, S. Kumar, H. B. McMahan: Adaptive Federated
Optimization, ICLR 2021, Algorithm 2. FedAvg's mean d is a pseudo-gradient: `m <- beta1 m + (1 - beta1) d`, v follows
d^2 by one of three rules, `w <- w + server_lr m / (sqrt(v) + tau)`; formulas in coordinator/server_steps.py.

| tensor | down | up | stays on the device |
| --- | --- | --- | --- |
| trained | float32, all | trained - received, all | nothing |
| m, v | nothing | nothing | nothing: the gateway keeps them, 8 bytes a value |

`tau` decides what counts as noise: in the first round a value moves by about server_lr where its mean is large beside
10 tau, and less below. Start with tau near the median magnitude of the first mean, and server_lr near 0.01.

Deviations from the paper: those of FedAvg; m and v begin at zero, where the paper starts v at tau^2 or above; beta1 of
FedAdagrad is 0 unless set. Running statistics stay outside the optimiser.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from coordinator.fields import Field, number
from coordinator.methods.fedavg import fedavg
from coordinator.methods.method import Method, MethodKind
from coordinator.server_steps import adaptive
from coordinator.training_keys import Training

BETA = number(0, 1, below_high=True)


def fedopt(second: str, server_lr: float = 0.01, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3) -> Method:
    """FedAvg whose server step is adaptive; `second` is "adagrad", "adam" or "yogi"."""
    return replace(fedavg(), name=f"fed{second}", server_step=adaptive(second, server_lr, beta1, beta2, tau))


def _kind(second: str, beta1: float) -> MethodKind:
    options = {
        "server_lr": Field(number(0, 100, above_low=True), required=False, default=0.01),
        "beta1": Field(BETA, required=False, default=beta1),
        "tau": Field(number(0, 1e6, above_low=True), required=False, default=1e-3),
    }
    if second != "adagrad":
        options["beta2"] = Field(BETA, required=False, default=0.99)
    return MethodKind(options=options, build=_builder(second))


def _builder(second: str) -> Callable[[Mapping[str, Any], Training], Method]:
    return lambda options, _: fedopt(second, **{key: float(value) for key, value in options.items()})


FEDADAGRAD, FEDADAM, FEDYOGI = _kind("adagrad", 0.0), _kind("adam", 0.9), _kind("yogi", 0.9)
