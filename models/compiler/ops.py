"""Every operation of the compiler, one row each: types, gradient, kernel, cost.

To add one: a rule in shapes.py, a gradient in gradients.py, a twin in edge_runtime/kernels/reference.py, a row here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from models.compiler import gradients, shapes, tensor_gradients, tensor_shapes
from models.compiler.elementary import BINARY, UNARY
from models.compiler.encode import float_bits
from models.compiler.gradients import Gradient
from models.compiler.ir import Node
from models.compiler.map_program import encode as encode_program
from models.compiler.randomness import DISTRIBUTIONS
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
        overwrites: for each output, the input in whose bytes it is written: an update in place.
        operands: inputs and outputs of the kernel, the optional ones counted; None where the node has them all.
    """

    infer: Infer
    grad: Gradient
    opcode: int | None
    encode: Encode = no_attrs
    in_place: tuple[int, ...] = ()
    multiply_adds: Callable[[Node], int] = no_products
    operands: tuple[int, int] | None = None
    overwrites: tuple[int, ...] = ()


def _window(node: Node, last: tuple[int, int]) -> list[int]:
    w = node.attrs["window"]
    return [*w.strides, *w.pads, *w.dilations, *last]


def _gemm(node: Node) -> list[int]:
    return [int(node.attrs[k]) for k in ("trans_a", "trans_b", "relu")]


def _conv(node: Node) -> list[int]:
    limit = node.attrs.get("limit")
    activation = int(node.attrs.get("relu", False)) if limit is None else float_bits(limit)
    return _window(node, (node.attrs["groups"], activation))


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


def _gemm_sgd(node: Node) -> list[int]:
    return [int(node.attrs["trans_a"]), int(node.attrs["trans_b"]), *_sgd(node)]


def _sampled_softmax(node: Node) -> list[int]:
    return [float_bits(node.attrs["scale"]), node.attrs["own"], *_first_row(node)]


def _sampled_softmax_products(node: Node) -> int:
    """Logits and both gradients."""
    features, rows = node.types[1:]
    return 3 * features.size * rows.shape[0]


def _first_row(node: Node) -> list[int]:
    return [node.attrs["first_row"]] if "first_row" in node.attrs else []


def _function(names: tuple[str, ...]) -> Encode:
    return lambda node: [names.index(node.attrs["function"])]


def _minmax(node: Node) -> list[int]:
    return [int(node.attrs["smallest"]), sum(1 << a for a in node.attrs["axes"])]


def _numbers(*names: str) -> Encode:
    """Attributes that are whole numbers already, in this order."""
    return lambda node: [int(node.attrs[name]) for name in names]


def _floats(*names: str) -> Encode:
    return lambda node: [float_bits(node.attrs[name]) for name in names]


def _strided_copy(node: Node) -> list[int]:
    box, fill = node.attrs["box"], node.attrs["fill"]
    bits = float_bits(fill) if node.types[0].dtype == "float32" else int(fill)
    return [bits, box.x_offset, box.y_offset, *(number for axis in box.axes for number in axis)]


def _random(node: Node) -> list[int]:
    return [DISTRIBUTIONS.index(node.attrs["distribution"]), node.attrs["stream"]]


def _matmul_products(node: Node) -> int:
    a = node.inputs[0]
    assert a is not None
    return node.types[0].size * a.shape[-2 if node.attrs["trans_a"] else -1]


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


def overwritable(node: Node, output: int) -> tuple[int, ...]:
    """Inputs whose bytes an output may take when nobody reads them later; they have its size."""
    if node.op == "map":
        program = node.attrs["program"]
        whole = node.types[output].size == program.size
        return tuple(i for i in range(len(node.inputs)) if whole and program.whole(i))
    # An operand of another shape is repeated, so its elements are read again after the first was overwritten.
    inputs = OPS[node.op].in_place if output == 0 else ()
    shapes_of = ((i, node.inputs[i]) for i in inputs)
    return tuple(i for i, v in shapes_of if v is not None and v.shape == node.types[0].shape)


OPS: dict[str, Op] = {
    "gemm": Op(shapes.gemm, gradients.gemm, 1, _gemm, (), _gemm_products, (3, 1)),
    "conv": Op(shapes.conv, gradients.conv, 2, _conv, (), _conv_forward, (3, 1)),
    "conv_grad_x": Op(shapes.conv_grad_x, gradients.conv_grad_x, 3, _conv, (), _conv_backward_x),
    "conv_grad_w": Op(shapes.conv_grad_w, gradients.conv_grad_w, 4, _conv, (), _conv_backward_w),
    "relu": Op(shapes.same("relu"), gradients.relu, 5, no_attrs, (0,)),
    "relu_grad": Op(shapes.same("relu_grad"), gradients.relu_grad, 6, no_attrs, (0, 1)),
    "maxpool": Op(shapes.maxpool, gradients.maxpool, 7, _maxpool),
    "maxpool_grad": Op(shapes.maxpool_grad, gradients.maxpool_grad, 8, _maxpool),
    "avgpool": Op(shapes.avgpool, gradients.avgpool, 9, _avgpool),
    "avgpool_grad": Op(shapes.avgpool_grad, gradients.avgpool_grad, 10, _avgpool),
    "add": Op(shapes.elementwise("add"), gradients.add, 11, no_attrs, (0, 1)),
    "sub": Op(shapes.elementwise("sub"), gradients.sub, 12, no_attrs, (0, 1)),
    "mul": Op(shapes.elementwise("mul"), gradients.mul, 13, no_attrs, (0, 1)),
    "reduce_sum": Op(shapes.reduce_sum, gradients.reduce_sum, 14, _reduce_sum),
    "transpose": Op(shapes.transpose, gradients.transpose, 15, _transpose),
    "softmax_xent": Op(shapes.softmax_xent, gradients.softmax_xent, 16, _first_row),
    "softmax_xent_grad": Op(shapes.softmax_xent_grad, gradients.softmax_xent_grad, 17, _first_row),
    "sgd": Op(shapes.sgd, gradients.in_place, 18, _sgd, operands=(4, 2), overwrites=(0, 3)),
    "copy": Op(shapes.reshape, gradients.reshape, 19),
    "unary": Op(shapes.elementwise("unary"), tensor_gradients.unary_function, 20, _function(UNARY), (0,)),
    "binary": Op(shapes.elementwise("binary"), tensor_gradients.binary_function, 21, _function(BINARY), (0, 1)),
    "where": Op(shapes.elementwise("where"), tensor_gradients.where, 22, no_attrs, (0, 1, 2)),
    "minmax": Op(tensor_shapes.minmax, tensor_gradients.minmax, 23, _minmax),
    "argminmax": Op(tensor_shapes.argminmax, tensor_gradients.flat, 24, _numbers("smallest", "axis")),
    "strided_copy": Op(tensor_shapes.strided_copy, tensor_gradients.strided_copy, 25, _strided_copy, (1,)),
    "gather": Op(tensor_shapes.gather, tensor_gradients.gather, 26, _numbers("axis", "elements")),
    "scatter_add": Op(tensor_shapes.scatter_add, tensor_gradients.scatter_add, 27, _numbers("axis", "elements")),
    "cast": Op(tensor_shapes.cast, tensor_gradients.flat, 28),
    "matmul": Op(
        tensor_shapes.matmul, tensor_gradients.matmul, 29, _numbers("trans_a", "trans_b"), (), _matmul_products
    ),
    "cumsum": Op(tensor_shapes.cumsum, tensor_gradients.cumsum, 30, _numbers("axis", "exclusive", "reverse")),
    "topk": Op(tensor_shapes.topk, tensor_gradients.topk, 31, _numbers("smallest", "axis", "k")),
    "adamw": Op(
        shapes.adamw,
        gradients.in_place,
        32,
        _floats("beta1", "beta2", "epsilon", "weight_decay"),
        overwrites=(0, 3, 4),
    ),
    "blend": Op(shapes.blend, gradients.in_place, 33, _floats("rate"), overwrites=(0,)),
    "map": Op(tensor_shapes.fused, gradients.in_place, 40, lambda node: encode_program(node.attrs["program"])),
    "random": Op(tensor_shapes.random, tensor_gradients.flat, 41, _random),
    "gemm_sgd": Op(
        shapes.gemm_sgd, gradients.in_place, 42, _gemm_sgd, (), _gemm_products, operands=(5, 2), overwrites=(2, 4)
    ),
    "sampled_softmax": Op(
        shapes.sampled_softmax,
        gradients.sampled_softmax,
        43,
        _sampled_softmax,
        (),
        _sampled_softmax_products,
        operands=(4, 3),
    ),
    # What gradients take as a constant is the value itself.
    "detach": Op(tensor_shapes.detach, tensor_gradients.flat, None),
    # A reshape names the same bytes again, and a broadcast is a multiplication by ones: neither has a kernel.
    "reshape": Op(shapes.reshape, gradients.reshape, None),
    "broadcast": Op(shapes.broadcast, gradients.broadcast, None),
}
