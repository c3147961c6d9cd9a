"""Taking the bias and the relu after a matrix product or a convolution into its kernel, and a relu's upper limit.

The kernel adds the bias and clips while its result is still in registers, so two passes over memory go away. Runs after
differentiation: the gradients are those of the separate operations, and relu's needs only its output. Where a relu is
limited, its gradient and that of the limit can be told from the limited value as well, so that nothing else is kept.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import models.compiler.graph as g
from models.compiler.ir import Node, Value, rewrite, topological, uses, with_attrs
from models.compiler.map_region import number_of

PRODUCTS = ("gemm", "conv")
Inputs = tuple[Value | None, ...]


def fuse(outputs: Sequence[Value]) -> tuple[Value, ...]:
    """Fuse where the intermediate result has no other reader."""
    counts, limits = uses(outputs), _limits(outputs)
    limited: dict[Value, Value] = {}  # of each convolution with a relu, the one with the limit as well

    def rule(node: Node, inputs: Inputs) -> Sequence[Value] | None:
        for before, x in zip(node.inputs, inputs, strict=True):
            if before in limits and x is not None and _may_be_limited(x):
                whole = limited.setdefault(x, with_attrs(x.node, x.node.inputs, {"limit": limits[before]}).out())
                served = tuple(whole if v is x else v for v in inputs)
                return [whole] if _is(node, "min") else [with_attrs(node, served, {}).out()]
        if node.op == "relu":
            fused = _with_relu(node, inputs, counts)
        elif node.op == "add":
            fused = _with_bias(node, inputs, counts, 0) or _with_bias(node, inputs, counts, 1)
        else:
            return None
        return None if fused is None else [fused.out()]

    return rewrite(outputs, rule)


def _with_relu(node: Node, inputs: Inputs, counts: Counter[Value]) -> Node | None:
    before, x = node.inputs[0], inputs[0]
    assert before is not None
    assert x is not None
    if counts[before] != 1 or x.node.op not in PRODUCTS or x.node.attrs["relu"]:
        return None
    return with_attrs(x.node, x.node.inputs, {"relu": True})


def _with_bias(node: Node, inputs: Inputs, counts: Counter[Value], side: int) -> Node | None:
    """add(product, bias) as a product with a bias; `side` says which operand is the product."""
    before, x, bias = node.inputs[side], inputs[side], inputs[1 - side]
    assert before is not None
    assert x is not None
    assert bias is not None
    if counts[before] != 1 or x.node.op not in PRODUCTS or x.node.attrs["relu"] or len(x.node.inputs) > 2:
        return None
    channel_axis = 1  # of (M, N) and of (N, O, H, W) alike
    channels = x.shape[channel_axis]
    wanted = (channels, *(1,) * (len(x.shape) - 2))
    if x.shape != node.types[0].shape or (1,) * (len(x.shape) - len(bias.shape)) + bias.shape != (1, *wanted):
        return None
    return with_attrs(x.node, (*x.node.inputs, g.reshape(bias, (channels,))), {})


LEAST_LIMIT = 2.0**-126  # of the plan format


def _limits(outputs: Sequence[Value]) -> Mapping[Value | None, float]:
    """The limit of each relu that is read by min(relu, limit) and else by what the limited value serves as well."""
    readers: dict[Value, list[Node]] = {}
    for node in topological(outputs):
        for v in dict.fromkeys(v for v in node.inputs if v is not None and v.node.op == "relu"):
            readers.setdefault(v, []).append(node)
    limits = {v: next((_number(n, 1) for n in nodes if _is(n, "min")), None) for v, nodes in readers.items()}
    return {
        v: limit
        for v, limit in limits.items()
        if limit is not None
        and limit >= LEAST_LIMIT
        and v not in outputs
        and all(_serves(n, v, limit) for n in readers[v])
    }


def _is(node: Node, function: str) -> bool:
    return node.op == "binary" and node.attrs["function"] == function


def _number(node: Node, place: int) -> float | None:
    operand = node.inputs[place]
    return None if operand is None else number_of(operand)


def _serves(node: Node, v: Value, limit: float) -> bool:
    """Whether an operation that reads a relu's result v has the same result of min(v, limit)."""
    if node.op == "relu_grad":
        return node.inputs[0] != v
    return (_is(node, "min") or _is(node, "less")) and node.inputs[0] == v and _number(node, 1) == limit


def _may_be_limited(x: Value) -> bool:
    """Whether x is a convolution with a relu whose kernel has a limit too."""
    if x.node.op != "conv" or not x.node.attrs["relu"] or x.node.attrs["limit"] is not None:
        return False
    w, window = x.node.inputs[1], x.node.attrs["window"]
    assert w is not None
    depthwise = w.shape[:2] == (x.node.attrs["groups"], 1)
    return w.shape[2:] == (1, 1) and window.pads == (0, 0, 0, 0) and not depthwise
