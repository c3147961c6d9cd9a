"""Convolutions of one tap that leave places out: the shortcuts of residual networks.

What such a convolution reads is taken out first, so that it is a matrix product over few places, and its gradient is
added to those places alone: neither a large tensor nor one that is mostly zeros is passed through memory for them.
"""

from collections.abc import Sequence

import models.compiler.graph as g
from models.compiler.boxes import Box
from models.compiler.ir import Node, Value, Window, rewrite
from models.compiler.schedule import base

Inputs = tuple[Value | None, ...]
FEW = 3  # places are few where they are at most this part of all; every second of an odd number is more than a half


def picked(v: Value) -> bool:
    """Whether a value is a few places of a tensor, by themselves."""
    x = v.node.inputs[0] if v.node.op == "strided_copy" else None
    return x is not None and v.node.inputs[1] is None and v.type.size * FEW <= x.type.size


def over_few(outputs: Sequence[Value]) -> tuple[Value, ...]:
    """Convolutions with kernels of one tap and a stride as those of the places that they read.

    Before differentiation, and not of leaves: those are there all the time, and want no gradient.
    """
    return rewrite(outputs, _over_few)


def _over_few(node: Node, inputs: Inputs) -> Sequence[Value] | None:
    x, w, *bias = inputs if node.op == "conv" else (None, None)
    if x is None or w is None:
        return None
    window: Window = node.attrs["window"]
    strided = w.shape[2:] == (1, 1) and not any(window.pads) and window.strides != (1, 1)
    if not strided or bias or node.attrs["relu"] or base(x).node.op == "leaf":
        return None
    taken = g.slice(x, [0] * 4, (*x.shape[:2], *node.types[0].shape[2:]), (1, 1, *window.strides))
    return [g.conv(taken, w, Window(), node.attrs["groups"])] if picked(taken) else None


def added_to_few(whole: Value, part: Value) -> Value | None:
    """The sum of a product and of a tensor that is zero but for a few places, as an addition to these.

    Of a product alone: other sums are better taken in a map with what makes and reads them.
    """
    zeros = part.node.op == "strided_copy" and part.node.inputs[1] is None and part.node.attrs["fill"] == 0.0
    piece = part.node.inputs[0] if zeros else None
    made = whole.node.inputs[0] if whole.node.op == "reshape" else whole
    if piece is None or piece.type.size * FEW > part.type.size or made is None or made.node.op != "conv_grad_x":
        return None
    box: Box = part.node.attrs["box"]
    if not _takes_all(box, piece.type.size):
        return None
    return g.strided_copy(g.strided_copy(whole, box.turned(), piece.shape) + piece, box, part.shape, whole)


def _takes_all(box: Box, size: int) -> bool:
    """Whether a box takes every element of a tensor once, so that what comes back fills it."""
    reached = 1
    for n, step, _ in sorted(box.axes, key=lambda axis: axis[1]):
        if step != reached:
            return False
        reached *= n
    return reached == size and box.x_offset == 0
