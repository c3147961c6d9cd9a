"""ONNX operators that map, reduce and normalise tensors, in the graph language."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx

import models.compiler.graph as g
from models.compiler.errors import ModelError
from models.compiler.ir import Mode, Value
from models.compiler.onnx_nodes import (
    Convert,
    ModelNode,
    Terms,
    axes_of,
    axis_of,
    integers,
    known,
    number,
    optional,
    value,
)


def mapped(function: Callable[..., Value], **defaults: float) -> Convert:
    """A function of operand 0 whose other arguments are attributes with these defaults, in this order."""

    def convert(node: ModelNode, terms: Terms) -> Value:
        return function(value(terms, 0), *(float(node.attrs.get(name, d)) for name, d in defaults.items()))

    return convert


def _unary(function: str) -> Convert:
    return mapped(lambda x: g.unary(function, x))


def _two(function: Callable[[Value, Value], Value]) -> Convert:
    def convert(node: ModelNode, terms: Terms) -> Value:
        del node
        return function(number(terms, 0), number(terms, 1))

    return convert


def _many(function: Callable[[Value, Value], Value], *, average: bool = False) -> Convert:
    def convert(node: ModelNode, terms: Terms) -> Value:
        del node
        total = value(terms, 0)
        for i in range(1, len(terms)):
            total = function(total, value(terms, i))
        return total * (1.0 / len(terms)) if average else total

    return convert


def _truth(x: Value) -> Value:
    """1 where x is not 0."""
    return 1.0 - g.equal(x, 0.0)


def _pow(node: ModelNode, terms: Terms) -> Value:
    del node
    exponent = terms[1]
    if isinstance(exponent, np.ndarray) and exponent.size == 1 and exponent.ndim <= len(value(terms, 0).shape):
        return g.pow(value(terms, 0), float(exponent.item()))
    return g.pow(value(terms, 0), number(terms, 1))


def _clip(node: ModelNode, terms: Terms) -> Value:
    """Limits as attributes up to opset 6, then as operands."""
    limits: list[float | None] = []
    for i, name in ((1, "min"), (2, "max")):
        array = known(terms, i)
        given = node.attrs.get(name) if array is None else array.item()
        limits.append(None if given is None else float(given))
    return g.clip(value(terms, 0), *limits)


def _gelu(node: ModelNode, terms: Terms) -> Value:
    return g.gelu(value(terms, 0), approximate=node.attrs.get("approximate", "none") == "tanh")


def _prelu(node: ModelNode, terms: Terms) -> Value:
    del node
    x = value(terms, 0)
    return g.where(g.less(0.0, x), x, x * value(terms, 1))


def _selu(x: Value, alpha: float, gamma: float) -> Value:
    return g.elu(x, alpha) * gamma


def _where(node: ModelNode, terms: Terms) -> Value:
    del node
    return g.where(number(terms, 0), value(terms, 1), value(terms, 2))


def _cast(node: ModelNode, terms: Terms) -> Value:
    """A truth value is float32 already; whole numbers are int32."""
    to, kinds = int(node.attrs["to"]), onnx.TensorProto
    x = value(terms, 0) if isinstance(terms[0], Value) else number(terms, 0)
    if to == kinds.FLOAT:
        return g.cast(x, "float32")
    if to in (kinds.INT32, kinds.INT64):
        return g.cast(x, "int32")
    if to == kinds.BOOL:
        return _truth(g.cast(x, "float32"))
    raise ModelError(f"a cast to {kinds.DataType.Name(to)} is not supported; float32, int32, int64 and bool are")


def _softmax(function: Callable[[Value, int], Value]) -> Convert:
    """From opset 13 along one axis; before, over everything from the axis on."""

    def convert(node: ModelNode, terms: Terms) -> Value:
        x = value(terms, 0)
        if node.opset >= 13:
            return function(x, axis_of(node, len(x.shape), -1))
        axis = axis_of(node, len(x.shape), 1)
        return g.reshape(function(g.reshape(x, (math.prod(x.shape[:axis]), -1)), 1), x.shape)

    return convert


def _reduce(function: Callable[..., Value]) -> Convert:
    def convert(node: ModelNode, terms: Terms) -> Value:
        x = value(terms, 0)
        axes = axes_of(node, terms, len(x.shape))
        if not axes and node.attrs.get("noop_with_empty_axes", 0):
            return function(x, [], keepdims=True)
        return function(x, axes or None, keepdims=bool(node.attrs.get("keepdims", 1)))

    return convert


def _l1(x: Value, axes: Sequence[int] | None, *, keepdims: bool) -> Value:
    return g.sum(g.abs(x), axes, keepdims=keepdims)


def _l2(x: Value, axes: Sequence[int] | None, *, keepdims: bool) -> Value:
    return g.sqrt(g.sum(g.square(x), axes, keepdims=keepdims))


def _sum_square(x: Value, axes: Sequence[int] | None, *, keepdims: bool) -> Value:
    return g.sum(g.square(x), axes, keepdims=keepdims)


def _log_sum(x: Value, axes: Sequence[int] | None, *, keepdims: bool) -> Value:
    return g.log(g.sum(x, axes, keepdims=keepdims))


def _log_sum_exp(x: Value, axes: Sequence[int] | None, *, keepdims: bool) -> Value:
    top = g.detach(g.max(x, axes, keepdims=True))
    total = g.log(g.sum(g.exp(x - top), axes, keepdims=True)) + top
    return total if keepdims else g.reshape(total, g.sum(x, axes).shape)


def _arg(*, smallest: bool) -> Convert:
    def convert(node: ModelNode, terms: Terms) -> Value:
        x = value(terms, 0)
        axis = axis_of(node, len(x.shape), 0)
        if node.attrs.get("select_last_index", 0):
            from_end = g.cast(g.argmax(g.flip(x, [axis]), axis, smallest=smallest), "float32")
            place = g.cast(x.shape[axis] - 1.0 - from_end, "int32")
        else:
            place = g.argmax(x, axis, smallest=smallest)
        keep = node.attrs.get("keepdims", 1)
        return g.copy(place, [*x.shape[:axis], 1, *x.shape[axis + 1 :]]) if keep else place

    return convert


def _topk(node: ModelNode, terms: Terms) -> list[Value]:
    x, k = value(terms, 0), integers(node, terms, "k", 1) if "k" not in node.attrs else [int(node.attrs["k"])]
    assert k is not None
    return list(g.topk(x, k[0], axis_of(node, len(x.shape), -1), smallest=not node.attrs.get("largest", 1)))


def _cumsum(node: ModelNode, terms: Terms) -> Value:
    axis = known(terms, 1)
    if axis is None:
        raise ModelError("the axis is missing")
    exclusive, reverse = bool(node.attrs.get("exclusive", 0)), bool(node.attrs.get("reverse", 0))
    return g.cumsum(value(terms, 0), int(axis.item()), exclusive=exclusive, reverse=reverse)


def _layer_norm(node: ModelNode, terms: Terms) -> Value:
    if node.outputs > 1:
        raise ModelError("mean and deviation of LayerNormalization are not supported as outputs")
    x, epsilon = value(terms, 0), float(node.attrs.get("epsilon", 1e-5))
    return g.layer_norm(x, value(terms, 1), optional(terms, 2), axis_of(node, len(x.shape), -1), epsilon)


def _instance_norm(node: ModelNode, terms: Terms) -> Value:
    x, epsilon = value(terms, 0), float(node.attrs.get("epsilon", 1e-5))
    gain, bias = (g.per_channel(value(terms, i), len(x.shape)) for i in (1, 2))
    return g.group_norm(x, x.shape[1], epsilon) * gain + bias


def _group_norm(node: ModelNode, terms: Terms) -> Value:
    """Gain and bias are of groups in opset 18, of channels from 21 on."""
    x, groups = value(terms, 0), int(node.attrs["num_groups"])
    y = g.group_norm(x, groups, float(node.attrs.get("epsilon", 1e-5)))
    parts = x.shape if node.opset >= 21 else (x.shape[0], groups, x.type.size // x.shape[0] // groups)
    gain, bias = (g.per_channel(value(terms, i), len(parts)) for i in (1, 2))
    return g.reshape(g.reshape(y, parts) * gain + bias, x.shape)


def _batch_norm(node: ModelNode, terms: Terms) -> Value | list[Value]:
    """By the batch while training, and its running statistics move as torch moves them; else by running statistics.

    The outputs of running statistics follow ONNX, whose variance is the biased one.
    """
    x, gain, bias, average, spread = (value(terms, i) for i in range(5))
    epsilon, momentum = float(node.attrs.get("epsilon", 1e-5)), 1.0 - float(node.attrs.get("momentum", 0.9))
    shared = node.training
    if not (node.attrs.get("training_mode", 0) or shared.batch_statistics):
        return g.batch_norm_fixed(x, gain, bias, (average, spread), epsilon)
    if x.shape[0] != node.batch:
        raise ModelError(
            f"the first dimension of {list(x.shape)} is not the batch of {node.batch}, so rows that fill up a batch"
            " cannot be kept out of its statistics"
        )
    made = g.batch_norm(x, gain, bias, (average, spread), shared.rows, epsilon=epsilon, momentum=momentum)
    slots = ((average, made.mean), (spread, made.variance))
    moved = {slot for slot, _ in shared.updates}
    for slot, new in slots:
        if slot in moved:
            raise ModelError(
                f"its running statistics {slot.name!r} are another layer's too: export the model in training mode"
                " (torch.onnx.TrainingMode.TRAINING), which keeps equal tensors apart"
            )
        if slot.node.op == "leaf":
            shared.updates.append((slot, new))
    if node.outputs == 1:
        fixed = g.batch_norm_fixed(x, gain, bias, (average, spread), epsilon)
        shared.modes.append(Mode(made.y, fixed, (gain, bias, average, spread)))
        return made.y
    told = g.batch_norm(
        x, gain, bias, (average, spread), shared.rows, epsilon=epsilon, momentum=momentum, unbiased=False
    )
    return [made.y, told.mean, told.variance]


def _lp_normalize(node: ModelNode, terms: Terms) -> Value:
    x, p = value(terms, 0), int(node.attrs.get("p", 2))
    axis = [axis_of(node, len(x.shape), -1)]
    size = (_l1 if p == 1 else _sum_square)(x, axis, keepdims=True)
    safe = g.where(g.equal(size, 0.0), 1.0, size)  # zeros stay zeros, with a finite gradient
    return x / (safe if p == 1 else g.sqrt(safe))


CONVERTERS: dict[str, Convert] = {
    "Abs": _unary("abs"),
    "And": _two(lambda a, b: _truth(a) * _truth(b)),
    "ArgMax": _arg(smallest=False),
    "ArgMin": _arg(smallest=True),
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Ceil": _unary("ceil"),
    "Clip": _clip,
    "Cos": _unary("cos"),
    "CumSum": _cumsum,
    "Div": _two(g.div),
    "Elu": mapped(g.elu, alpha=1.0),
    "Equal": _two(g.equal),
    "Erf": _unary("erf"),
    "Exp": _unary("exp"),
    "Floor": _unary("floor"),
    "Gelu": _gelu,
    "Greater": _two(lambda a, b: g.less(b, a)),
    "GreaterOrEqual": _two(lambda a, b: g.less_equal(b, a)),
    "GroupNormalization": _group_norm,
    "HardSigmoid": mapped(g.hard_sigmoid, alpha=0.2, beta=0.5),
    "HardSwish": mapped(g.hard_swish),
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": mapped(g.leaky_relu, alpha=0.01),
    "Less": _two(g.less),
    "LessOrEqual": _two(g.less_equal),
    "Log": _unary("log"),
    "LogSoftmax": _softmax(g.log_softmax),
    "LpNormalization": _lp_normalize,
    "Max": _many(g.maximum),
    "Mean": _many(g.add, average=True),
    "Min": _many(g.minimum),
    "Mish": mapped(lambda x: x * g.tanh(g.softplus(x))),
    "Neg": mapped(lambda x: -x),
    "Not": mapped(lambda x: g.equal(x, 0.0)),
    "Or": _two(lambda a, b: g.maximum(_truth(a), _truth(b))),
    "PRelu": _prelu,
    "Pow": _pow,
    "Reciprocal": _unary("reciprocal"),
    "ReduceL1": _reduce(_l1),
    "ReduceL2": _reduce(_l2),
    "ReduceLogSum": _reduce(_log_sum),
    "ReduceLogSumExp": _reduce(_log_sum_exp),
    "ReduceMax": _reduce(g.max),
    "ReduceMin": _reduce(g.min),
    "ReduceProd": _reduce(g.prod),
    "ReduceSumSquare": _reduce(_sum_square),
    "Round": _unary("round"),
    "Selu": mapped(_selu, alpha=1.67326319217681884765625, gamma=1.05070102214813232421875),
    "Sigmoid": _unary("sigmoid"),
    "Sign": _unary("sign"),
    "Sin": _unary("sin"),
    "Softmax": _softmax(g.softmax),
    "Softplus": _unary("softplus"),
    "Softsign": mapped(lambda x: x / (1.0 + g.abs(x))),
    "Sqrt": _unary("sqrt"),
    "Sum": _many(g.add),
    "Tanh": _unary("tanh"),
    "TopK": _topk,
    "Where": _where,
    "Xor": _two(lambda a, b: 1.0 - g.equal(_truth(a), _truth(b))),
}
