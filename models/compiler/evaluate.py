"""Running a graph in NumPy, node by node, with the board's slow twins.

The compiler folds constants with it; tests judge gradients by it, in float64.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.kernels import reference
from models.compiler.ir import Node, Value, topological
from models.compiler.ops import OPS

Array = NDArray[Any]


def evaluate(outputs: Sequence[Value], given: Mapping[str, Array]) -> list[Array]:
    """The values of `outputs`, with leaves taken from `given` by name.

    Constants follow the float type of the given arrays, so that float64 data are computed in float64 throughout.

    Raises:
        KeyError: a leaf is not given.
    """
    wide = any(a.dtype == np.float64 for a in given.values())
    known: dict[Value, Array] = {}
    for node in topological(outputs):
        if node.op == "leaf":
            results = [given[node.attrs["name"]]]
        elif node.op == "constant":
            array = node.attrs["value"]
            results = [array.astype(np.float64) if wide and array.dtype == np.float32 else array]
        else:
            results = run_node(node, [None if v is None else known[v] for v in node.inputs])
        known.update((Value(node, i), a) for i, a in enumerate(results))
    return [known[v] for v in outputs]


def run_node(node: Node, inputs: Sequence[Array | None]) -> list[Array]:
    """The outputs of one operation; its float outputs have the type of its widest float input."""
    op = OPS[node.op]
    present = [a.dtype for a in inputs if a is not None and a.dtype.kind == "f"]
    floating = max(present, key=lambda t: t.itemsize) if present else np.dtype(np.float32)
    wanted = [(t.shape, floating if t.dtype == "float32" else np.dtype(t.dtype)) for t in node.types]
    if op.opcode is None:  # a view: of the same elements, or of repeated ones
        x = next(a for a in inputs if a is not None)
        view = x.reshape(wanted[0][0]) if x.size == node.types[0].size else np.broadcast_to(x, wanted[0][0])
        return [np.array(view)]
    operands = [*inputs, *[None] * ((op.operands or (len(inputs),))[0] - len(inputs))]
    return reference.run(node.op, operands, op.encode(node), wanted)
