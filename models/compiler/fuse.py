"""Taking the bias and the relu after a matrix product or a convolution into its kernel.

The kernel adds the bias and clips while its result is still in registers, so two passes over memory go away. Runs after
differentiation: the gradients are those of the separate operations, and relu's needs only its output.
"""

from collections import Counter
from collections.abc import Sequence

import models.compiler.graph as g
from models.compiler.ir import Node, Value, rewrite, uses, with_attrs

PRODUCTS = ("gemm", "conv")
Inputs = tuple[Value | None, ...]


def fuse(outputs: Sequence[Value]) -> tuple[Value, ...]:
    """Fuse where the intermediate result has no other reader."""
    counts = uses(outputs)

    def rule(node: Node, inputs: Inputs) -> Sequence[Value] | None:
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
