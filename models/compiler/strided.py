"""Convolutions of one tap that leave places out: the shortcuts of residual networks.

What such a convolution reads is taken out first, so that it is a matrix product over few places, and its gradient is
added to those places alone: neither a large tensor nor one that is mostly zeros is passed through memory for them.
"""

import models.compiler.graph as g
from models.compiler.ir import Node, Value, Window

Inputs = tuple[Value | None, ...]
FEW = 3  # places are few where they are at most this part of all; every second of an odd number is more than a half


def picked(v: Value) -> bool:
    """Whether a value is a few places of a tensor, by themselves."""
    x = v.node.inputs[0] if v.node.op == "strided_copy" else None
    return x is not None and v.node.inputs[1] is None and v.type.size * FEW <= x.type.size


def conv_of_few(node: Node, inputs: Inputs) -> Value | None:
    """A convolution with kernels of one tap and a stride, over the places that it reads."""
    x, w, *bias = inputs
    assert x is not None
    assert w is not None
    window: Window = node.attrs["window"]
    if bias or node.attrs.get("relu") or w.shape[2:] != (1, 1) or any(window.pads) or window.strides == (1, 1):
        return None
    taken = g.slice(x, [0] * 4, (*x.shape[:2], *node.types[0].shape[2:]), (1, 1, *window.strides))
    return g.conv(taken, w, Window(), node.attrs["groups"]) if picked(taken) else None


def added_to_few(whole: Value, part: Value) -> Value | None:
    """The sum of a product and of a tensor that is zero but for a few places, as an addition to these.

    Of a product alone: other sums are better taken in a map with what makes and reads them.
    """
    zeros = part.node.op == "strided_copy" and part.node.inputs[1] is None and part.node.attrs["fill"] == 0.0
    piece = part.node.inputs[0] if zeros else None
    made = whole.node.inputs[0] if whole.node.op == "reshape" else whole
    if piece is None or piece.type.size * FEW > part.type.size or made is None or made.node.op != "conv_grad_x":
        return None
    box = part.node.attrs["box"]
    return g.strided_copy(g.strided_copy(whole, box.turned(), piece.shape) + piece, box, part.shape, whole)
