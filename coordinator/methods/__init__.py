"""The federated methods: one file each, and this table.

A method is a value. A new one is a new file with a function that returns a Method, and a row here.
"""

from collections.abc import Mapping

from coordinator.methods.fedavg import FEDAVG
from coordinator.methods.method import Method, MethodKind, PhaseSpec, Upload

METHODS: Mapping[str, MethodKind] = {"fedavg": FEDAVG}

__all__ = ["METHODS", "Method", "MethodKind", "PhaseSpec", "Upload"]
