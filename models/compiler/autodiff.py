"""Reverse-mode differentiation: a graph in, a larger graph out.

The result is made of ordinary operations, so it can be differentiated again as far as the operations allow.
"""

from collections.abc import Collection, Sequence

from models.compiler.errors import CompileError
from models.compiler.graph import broadcast_to
from models.compiler.ir import Node, Value, constant, topological
from models.compiler.ops import OPS


def gradients(loss: Value, wrt: Sequence[Value]) -> tuple[Value, ...]:
    """The gradient of a scalar with respect to each of `wrt`.

    The walk visits only nodes that lie between `wrt` and the loss, so the backward program ends at the shallowest
    value asked for.

    Raises:
        CompileError: the loss is no float32 scalar, or does not depend on a value asked for.
        NotDifferentiable: an operation on the way has no gradient; the error names it.
    """
    if loss.type.dtype != "float32" or loss.shape != ():
        raise CompileError(f"a loss is a float32 scalar, got {loss.type}; reduce it, for example with mean()")
    order = topological([loss])
    ancestors = set(order)
    on_path = _reached_from(order, wrt)
    d: dict[Value, Value] = {loss: constant(1.0)}
    for node in reversed(order):
        d_outputs = [d.get(Value(node, i)) for i in range(len(node.types))]
        if node in on_path and node.inputs and any(v is not None for v in d_outputs):
            _accumulate(d, node, on_path, OPS[node.op].grad(node, d_outputs))
    for v in wrt:
        if v.node not in ancestors:
            raise CompileError(f"the loss does not depend on {v.name or v.node.op}")
    # Without an entry the loss depends on it only where it is flat, as on the sign that relu's gradient looks at.
    return tuple(d[v] if v in d else broadcast_to(constant(0.0), v.shape) for v in wrt)


def _reached_from(order: Sequence[Node], wrt: Sequence[Value]) -> set[Node]:
    """Nodes of `order` whose outputs depend on a value of `wrt`, and the nodes of `wrt` themselves."""
    reached = {v.node for v in wrt}
    for node in order:
        if any(v is not None and v.node in reached for v in node.inputs):
            reached.add(node)
    return reached


def _accumulate(d: dict[Value, Value], node: Node, on_path: Collection[Node], parts: Sequence[Value | None]) -> None:
    """Add each input's part of the gradient to what is there."""
    for value, part in zip(node.inputs, parts, strict=False):
        if value is None or part is None or value.node not in on_path:
            continue
        d[value] = d[value] + part if value in d else part
