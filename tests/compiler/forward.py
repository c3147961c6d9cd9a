"""Running the outputs of a graph on the engine, without a loss or an update."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime import _core
from models.compiler.emit import program, write
from models.compiler.fuse import fuse
from models.compiler.ir import Role, Value, topological
from models.compiler.lower import lower, own
from models.compiler.simplify import simplify
from models.compiler.storage import Owner, lay_out

Array = NDArray[Any]


def run_on_engine(outputs: Sequence[Value], given: Mapping[str, Array], isa: str = "auto") -> list[Array]:
    """The values of `outputs`, with leaves taken from `given` by name; everything else starts as NaN."""
    owners = {n.out(): Owner(Role.BATCH, n.out().name) for n in topological(outputs) if n.op == "leaf"}
    lowered = lower([own(v) for v in simplify(fuse(simplify(outputs)))])
    owners |= {v: Owner(Role.OUTPUT, f"out{i}") for i, v in enumerate(lowered)}
    made = program(lay_out(lowered, owners))
    scratch = [_core.workspace_bytes(op.opcode, made.shapes(op), list(op.attrs)) for op in made.operations]
    engine = _core.Engine(write(made, max(scratch, default=0)), 1, isa)
    engine.poison()
    for leaf, owner in owners.items():
        if owner.role is Role.BATCH:
            engine.view(leaf.name)[...] = np.asarray(given[leaf.name]).reshape(leaf.shape)
    engine.step()
    return [engine.view(owners[v].name).copy() for v in lowered]
