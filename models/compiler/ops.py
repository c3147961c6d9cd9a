"""Every operation of the compiler, one row each: types, gradient, kernel, cost.

To add one: a rule in shapes.py, a gradient in gradients.py, a twin in edge_runtime/kernels/reference.py, a row here.
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass

from models.compiler import gradients, shapes
from models.compiler.gradients import Gradient
from models.compiler.ir import Node
from models.compiler.shapes import Infer

Encode = Callable[[Node], list[int]]


def no_attrs(node: Node) -> list[int]:
    """The attributes of an operation without any."""
    del node
    return []


def no_products(node: Node) -> int:
    """Multiply-adds of an operation that is not counted: it is bound by memory."""
    del node
    return 0


@dataclass(frozen=True)
class Op:
    """What the passes know of an operation.

    Attributes:
        infer: types of the outputs from those of the inputs.
        grad: gradients of the inputs from those of the outputs, in the graph language.
        opcode: number of the kernel in the plan format; None where a pass removes the operation before emission.
        encode: the node's attributes as the plan format wants them.
        in_place: inputs whose bytes output 0 may overwrite when nobody reads them later.
        multiply_adds: their number in one run of the node.
        operands: inputs and outputs of the kernel, the optional ones counted; None where the node has them all.
    """

    infer: Infer
    grad: Gradient
    opcode: int | None
    encode: Encode = no_attrs
    in_place: tuple[int, ...] = ()
    multiply_adds: Callable[[Node], int] = no_products
    operands: tuple[int, int] | None = None


def float_bits(value: float) -> int:
    """The bits of a float32 as a signed integer."""
    return int(struct.unpack("<i", struct.pack("<f", value))[0])


def bits_float(bits: int) -> float:
    """What float_bits was given, rounded to float32."""
    return float(struct.unpack("<f", struct.pack("<i", bits))[0])


def _window(node: Node, last: tuple[int, int]) -> list[int]:
    w = node.attrs["window"]
    return [*w.strides, *w.pads, *w.dilations, *last]


def _gemm(node: Node) -> list[int]:
    return [int(node.attrs[k]) for k in ("trans_a", "trans_b", "relu")]


def _conv(node: Node) -> list[int]:
    return _window(node, (node.attrs["groups"], int(node.attrs.get("relu", False))))


def _maxpool(node: Node) -> list[int]:
    return _window(node, node.attrs["kernel"])


def _avgpool(node: Node) -> list[int]:
    return [*_maxpool(node), int(node.attrs["count_include_pad"])]


def _reduce_sum(node: Node) -> list[int]:
    return [sum(1 << a for a in node.attrs["axes"]), float_bits(node.attrs["scale"])]


def _transpose(node: Node) -> list[int]:
    return list(node.attrs["axes"])


def _sgd(node: Node) -> list[int]:
    attrs = node.attrs
    return [float_bits(attrs["momentum"]), float_bits(attrs["weight_decay"]), int(attrs["nesterov"])]


def _gemm_products(node: Node) -> int:
    a = node.inputs[0]
    assert a is not None
    return node.types[0].size * a.shape[0 if node.attrs["trans_a"] else 1]


def _conv_products(y: tuple[int, ...], w: tuple[int, ...]) -> int:
    return math.prod(y) * math.prod(w[1:])


def _conv_forward(node: Node) -> int:
    w = node.inputs[1]
    assert w is not None
    return _conv_products(node.types[0].shape, w.shape)


def _conv_backward_x(node: Node) -> int:
    d_y, w = node.inputs
    assert d_y is not None
    assert w is not None
    return _conv_products(d_y.shape, w.shape)


def _conv_backward_w(node: Node) -> int:
    d_y = node.inputs[0]
    assert d_y is not None
    return _conv_products(d_y.shape, node.types[0].shape)


OPS: dict[str, Op] = {
    "gemm": Op(shapes.gemm, gradients.gemm, 1, _gemm, (), _gemm_products, (3, 1)),
    "conv": Op(shapes.conv, gradients.conv, 2, _conv, (), _conv_forward, (3, 1)),
    "conv_grad_x": Op(shapes.conv_grad_x, gradients.conv_grad_x, 3, _conv, (), _conv_backward_x),
    "conv_grad_w": Op(shapes.conv_grad_w, gradients.conv_grad_w, 4, _conv, (), _conv_backward_w),
    "relu": Op(shapes.same("relu"), gradients.relu, 5, no_attrs, (0,)),
    "relu_grad": Op(shapes.same("relu_grad"), gradients.relu_grad, 6, no_attrs, (0, 1)),
    "maxpool": Op(shapes.maxpool, gradients.maxpool, 7, _maxpool),
    "maxpool_grad": Op(shapes.maxpool_grad, gradients.unavailable, 8, _maxpool),
    "avgpool": Op(shapes.avgpool, gradients.avgpool, 9, _avgpool),
    "avgpool_grad": Op(shapes.avgpool_grad, gradients.avgpool_grad, 10, _avgpool),
    "add": Op(shapes.elementwise("add"), gradients.add, 11, no_attrs, (0, 1)),
    "sub": Op(shapes.elementwise("sub"), gradients.sub, 12, no_attrs, (0, 1)),
    "mul": Op(shapes.elementwise("mul"), gradients.mul, 13, no_attrs, (0, 1)),
    "reduce_sum": Op(shapes.reduce_sum, gradients.reduce_sum, 14, _reduce_sum),
    "transpose": Op(shapes.transpose, gradients.transpose, 15, _transpose),
    "softmax_xent": Op(shapes.softmax_xent, gradients.softmax_xent, 16),
    "softmax_xent_grad": Op(shapes.softmax_xent_grad, gradients.unavailable, 17),
    "sgd": Op(shapes.sgd, gradients.unavailable, 18, _sgd, operands=(4, 2)),
    "copy": Op(shapes.reshape, gradients.reshape, 19),
    # A reshape names the same bytes again, and a broadcast is a multiplication by ones: neither has a kernel.
    "reshape": Op(shapes.reshape, gradients.reshape, None),
    "broadcast": Op(shapes.broadcast, gradients.broadcast, None),
}
