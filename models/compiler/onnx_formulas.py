"""ONNX operators that are short formulas over others, in the graph language."""

import math

import numpy as np

import models.compiler.graph as g
from models.compiler.errors import ModelError
from models.compiler.ir import Value, Window
from models.compiler.onnx_nodes import Convert, ModelNode, Term, Terms, axis_of, known, number, value
from models.compiler.onnx_tensor_ops import mapped


def _celu(x: Value, alpha: float) -> Value:
    return g.where(g.less(0.0, x), x, (g.exp(g.minimum(x, 0.0) / alpha) - 1.0) * alpha)


def _shrink(x: Value, bias: float, lambd: float) -> Value:
    return g.where(g.less(x, -lambd), x + bias, g.where(g.less(lambd, x), x - bias, 0.0))


def _asinh(x: Value) -> Value:
    """By |x|, where nothing cancels."""
    size = g.abs(x)
    return g.unary("sign", x) * g.log(size + g.sqrt(g.square(size) + 1.0))


def _hardmax(node: ModelNode, terms: Terms) -> Value:
    """1 at the first maximum along the axis, else 0; before opset 13 along everything from the axis on."""
    x = value(terms, 0)
    axis = axis_of(node, len(x.shape), -1 if node.opset >= 13 else 1)
    rows = x if node.opset >= 13 else g.reshape(x, (math.prod(x.shape[:axis]), -1))
    at = axis if node.opset >= 13 else 1
    hot = g.one_hot(g.argmax(rows, at), rows.shape[at])
    rank = len(rows.shape)
    order = [*range(at), rank - 1, *range(at, rank - 1)]
    return g.reshape(g.transpose(hot, order), x.shape)


def _one_hot(node: ModelNode, terms: Terms) -> Value:
    """Off and on values where an index names a place along a new axis; a negative index counts from the end."""
    index, depth, values = number(terms, 0), known(terms, 1), number(terms, 2)
    if depth is None or values.shape != (2,):
        raise ModelError(f"depth is missing, or the off and on values are {list(values.shape)}")
    n, rank = int(depth.item()), len(index.shape) + 1
    if not 1 <= n <= MAX_RANGE:
        raise ModelError(f"depth {n} must be 1 to {MAX_RANGE}")
    axis = axis_of(node, rank, -1)
    at = g.where(g.less(index, 0.0), index + float(n), index)
    places = g.constant(np.arange(n, dtype=np.float32).reshape(-1, *(1,) * (rank - axis - 1)))
    hot = g.equal(g.reshape(at, (*index.shape[:axis], 1, *index.shape[axis:])), places)
    off, on = (g.reshape(v, ()) for v in g.split(values, [1, 1]))
    return hot * (on - off) + off


def _mod(node: ModelNode, terms: Terms) -> Value:
    """The remainder: with the sign of the divisor, or of the dividend with fmod."""
    a, b = number(terms, 0), number(terms, 1)
    quotient = a / b
    if not node.attrs.get("fmod", 0):
        return a - b * g.unary("floor", quotient)
    return a - b * g.unary("sign", quotient) * g.unary("floor", g.abs(quotient))


def _trilu(node: ModelNode, terms: Terms) -> Value:
    """The upper or lower triangle of the last two axes, from diagonal k."""
    x, k = value(terms, 0), known(terms, 1)
    whole = np.ones(x.shape[-2:], np.float32)
    diagonal = 0 if k is None else int(k.item())
    kept = np.triu(whole, diagonal) if node.attrs.get("upper", 1) else np.tril(whole, diagonal)
    return g.where(g.constant(kept), x, 0.0)


def _rms_norm(node: ModelNode, terms: Terms) -> Value:
    """Over the axis and all after it, without a mean (arXiv 1910.07467, eq. 4)."""
    x = value(terms, 0)
    axes = range(axis_of(node, len(x.shape), -1), len(x.shape))
    epsilon = float(node.attrs.get("epsilon", 1e-5))
    return x / g.sqrt(g.mean(g.square(x), axes, keepdims=True) + epsilon) * value(terms, 1)


def _mean_variance(node: ModelNode, terms: Terms) -> Value:
    x = value(terms, 0)
    centred = x - g.mean(x, axes := list(node.attrs.get("axes", [0, 2, 3])), keepdims=True)
    return centred / (g.sqrt(g.mean(g.square(centred), axes, keepdims=True)) + 1e-9)


def _local_response(node: ModelNode, terms: Terms) -> Value:
    """Over neighbouring channels (Krizhevsky et al., 2012, section 3.3)."""
    x, size = value(terms, 0), int(node.attrs["size"])
    alpha, beta, bias = (float(node.attrs.get(k, d)) for k, d in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))
    rows = g.reshape(g.square(x), (x.shape[0], 1, x.shape[1], math.prod(x.shape[2:])))
    window = Window(pads=((size - 1) // 2, 0, size // 2, 0))
    mean = g.avg_pool(rows, (size, 1), window, count_include_pad=True)
    return x / g.pow(g.reshape(mean, x.shape) * alpha + bias, beta)


def _size(node: ModelNode, terms: Terms) -> Term:
    del node
    term = terms[0]
    if term is None:
        raise ModelError("operand 0 is missing")
    return np.asarray(math.prod(term.shape), np.int64)


def _range(node: ModelNode, terms: Terms) -> Term:
    del node
    start, limit, delta = (known(terms, i) for i in range(3))
    if start is None or limit is None or delta is None or not delta.item():
        raise ModelError("start, limit or a delta that is not 0 are missing")
    count = max(math.ceil((limit.item() - start.item()) / delta.item()), 0)
    if count > MAX_RANGE:
        raise ModelError(f"a range of {count} numbers is longer than {MAX_RANGE}")
    return np.asarray(start + np.arange(count) * delta, start.dtype)


def _cast_like(node: ModelNode, terms: Terms) -> Term:
    """To the type of the second operand, which is one the compiler has; what is known stays known."""
    del node
    x, like = terms[0], terms[1]
    if like is None or (isinstance(like, np.ndarray) and like.dtype not in (np.float32, np.int32, np.int64)):
        raise ModelError(f"a cast to {'nothing' if like is None else like.dtype} is not supported")
    if isinstance(x, np.ndarray):
        return x.astype(like.type.dtype if isinstance(like, Value) else like.dtype)
    to = like.type.dtype if isinstance(like, Value) else "float32" if like.dtype == np.float32 else "int32"
    return g.cast(number(terms, 0), to)


def _swish(x: Value, alpha: float) -> Value:
    return x * g.sigmoid(x * alpha)


MAX_RANGE = 1 << 20

CONVERTERS: dict[str, Convert] = {
    "Acosh": mapped(lambda x: g.log(x + g.sqrt(g.square(x) - 1.0))),
    "Asinh": mapped(_asinh),
    "Atanh": mapped(lambda x: g.log((x + 1.0) / (1.0 - x)) * 0.5),
    "CastLike": _cast_like,
    "Celu": mapped(_celu, alpha=1.0),
    "Cosh": mapped(lambda x: (g.exp(x) + g.exp(-x)) * 0.5),
    "Hardmax": _hardmax,
    "IsNaN": mapped(lambda x: 1.0 - g.equal(x, x)),
    "LRN": _local_response,
    "MeanVarianceNormalization": _mean_variance,
    "Mod": _mod,
    "OneHot": _one_hot,
    "RMSNormalization": _rms_norm,
    "Range": _range,
    "Shrink": mapped(_shrink, bias=0.0, lambd=0.5),
    "Sinh": mapped(lambda x: (g.exp(x) - g.exp(-x)) * 0.5),
    "Size": _size,
    "Swish": mapped(_swish, alpha=1.0),
    "Tan": mapped(lambda x: g.unary("sin", x) / g.unary("cos", x)),
    "ThresholdedRelu": mapped(lambda x, alpha: g.where(g.less(alpha, x), x, 0.0), alpha=1.0),
    "Trilu": _trilu,
}
