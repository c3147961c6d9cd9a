"""Taking a scale and a shift for each channel into the convolution or matrix product before them.

A normalisation by running statistics is such a scale and shift. Folded, it costs one pass over the weights instead of
two over the activations, and nothing is kept for it: conv(x, w) * s + b = conv(x, w * s) + b. The numbers differ from
the separate operations' by rounding.
"""

from collections.abc import Collection, Mapping, Sequence

import models.compiler.graph as g
from models.compiler.fuse import PRODUCTS
from models.compiler.ir import Node, Value, depending, rewrite, uses

Inputs = tuple[Value | None, ...]


def fold(outputs: Sequence[Value], batch: Collection[Value]) -> tuple[Value, ...]:
    """Fold where the product has no other reader and the scale does not depend on the batch."""
    counts, varying = uses(outputs), depending(outputs, batch)

    def rule(node: Node, inputs: Inputs) -> Sequence[Value] | None:
        for side in (0, 1) if node.op == "mul" else ():
            before, scale = node.inputs[side], node.inputs[1 - side]
            assert before is not None
            assert scale is not None
            if counts[before] == 1 and scale.node not in varying:
                folded = _folded(inputs[side], inputs[1 - side], counts)
                if folded is not None:
                    return [folded]
        return None

    return rewrite(outputs, rule)


def _folded(x: Value | None, scale: Value | None, counts: Mapping[Value, int]) -> Value | None:
    """X * scale with the scale in the weights: of a product, or of a product plus a bias for each channel."""
    assert x is not None
    assert scale is not None
    channels = _per_channel(scale, x)
    if channels is None:
        return None
    if _is_product(x):
        return _scaled(x.node, channels)
    if x.node.op == "add":
        for product, bias in (x.node.inputs, x.node.inputs[::-1]):
            assert product is not None
            assert bias is not None
            # A bias of more than one number a channel would be multiplied over the whole result again.
            if _is_product(product) and counts[product] == 1 and product.shape == x.shape and _per_channel(bias, x):
                return _scaled(product.node, channels) + bias * scale
    return None


def _is_product(x: Value) -> bool:
    return x.node.op in PRODUCTS and not x.node.attrs["relu"] and len(x.node.inputs) == 2


def _per_channel(v: Value, x: Value) -> Value | None:
    """V as a vector, if it holds one number for each channel of x: (N) of (M, N), (O, 1, 1) of (N, O, H, W)."""
    if len(x.shape) not in (2, 4):
        return None
    wanted = (x.shape[1], *(1,) * (len(x.shape) - 2))
    return g.reshape(v, (x.shape[1],)) if v.shape in (wanted, (1, *wanted)) else None


def _scaled(product: Node, channels: Value) -> Value:
    """The product with each of its output channels multiplied."""
    x, w = product.inputs
    assert x is not None
    assert w is not None
    if product.op == "conv":
        return g.conv(x, w * g.reshape(channels, (-1, 1, 1, 1)), product.attrs["window"], product.attrs["groups"])
    flipped = product.attrs["trans_b"]
    return g.matmul(
        x, w * g.reshape(channels, (-1, 1) if flipped else (1, -1)), trans_a=product.attrs["trans_a"], trans_b=flipped
    )
