"""Replacing what no kernel does: the last rewriting before kernels are put in order."""

from collections.abc import Sequence

import numpy as np

import models.compiler.graph as g
from models.compiler.ir import Node, Value, rewrite
from models.compiler.ops import OPS


def lower(outputs: Sequence[Value]) -> tuple[Value, ...]:
    """Broadcasts become multiplications, other views of slots become copies."""
    return rewrite(outputs, _lower)


def own(value: Value) -> Value:
    """A value that is an output: with bytes of its own, not a view of others'."""
    return value if value.node.op in OPS and OPS[value.node.op].opcode is not None else g.copy(value, value.shape)


def _lower(node: Node, inputs: tuple[Value | None, ...]) -> Sequence[Value] | None:
    x = inputs[0]
    if x is None or OPS[node.op].opcode is not None:
        return None
    if node.op == "broadcast":
        return [_repeated(x, node.types[0].shape)]
    if node.op == "detach":
        return [x]
    # A slot owns its bytes: the plan format lets no other tensor show them, not even under another shape.
    if node.op == "reshape" and (x.node.op == "leaf" or (x.node.op in OPS and OPS[x.node.op].overwrites)):
        return [g.copy(x, node.types[0].shape)]
    return None


def _repeated(x: Value, shape: tuple[int, ...]) -> Value:
    """Multiply x by ones of size 1 along every axis that x has already: as few as broadcasting allows."""
    have = (1,) * (len(shape) - len(x.shape)) + x.shape
    return x * g.constant(np.ones([1 if h == n else n for h, n in zip(have, shape, strict=True)], np.float32))
