"""The federated methods: one file each, and this table.

A method is a value. A new one is a new file with a function that returns a Method, and a row here.
"""

from collections.abc import Mapping

from coordinator.methods.ef21 import EF21
from coordinator.methods.fedavg import FEDAVG
from coordinator.methods.fedavgm import FEDAVGM
from coordinator.methods.fednova import FEDNOVA
from coordinator.methods.fedopt import FEDADAGRAD, FEDADAM, FEDYOGI
from coordinator.methods.fedprox import FEDPROX
from coordinator.methods.method import Method, MethodKind, PhaseSpec, Upload
from coordinator.methods.scaffold import SCAFFOLD

METHODS: Mapping[str, MethodKind] = {
    "ef21": EF21,
    "fedadagrad": FEDADAGRAD,
    "fedadam": FEDADAM,
    "fedavg": FEDAVG,
    "fedavgm": FEDAVGM,
    "fednova": FEDNOVA,
    "fedprox": FEDPROX,
    "fedyogi": FEDYOGI,
    "scaffold": SCAFFOLD,
}

__all__ = ["METHODS", "Method", "MethodKind", "PhaseSpec", "Upload"]
