"""The functions of the graph language that are formulas over others: activations, normalisations, losses."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from models.compiler.elementary import (
    cast,
    concat,
    detach,
    equal,
    exp,
    less,
    log,
    max,  # noqa: A004 - the language reads like NumPy
    maximum,
    minimum,
    sigmoid,
    sqrt,
    tanh,
    unary,
    where,
)
from models.compiler.ir import Value, constant
from models.compiler.primitives import (
    conv,
    conv_grad_w,
    matmul,
    mean,
    relu,
    reshape,
    softmax_cross_entropy,
    square,
    sum,  # noqa: A004 - as max
    transpose,
)
from models.compiler.shapes import Window


def softmax(x: Value, axis: int = -1) -> Value:
    """e^x over its sum along `axis`."""
    shifted = exp(x - detach(max(x, [axis], keepdims=True)))
    return shifted / sum(shifted, [axis], keepdims=True)


def log_softmax(x: Value, axis: int = -1) -> Value:
    """Logarithm of softmax."""
    shifted = x - detach(max(x, [axis], keepdims=True))
    return shifted - log(sum(exp(shifted), [axis], keepdims=True))


def gelu(x: Value, *, approximate: bool = False) -> Value:
    """X times the normal distribution function (arXiv 1606.08415), or its tanh approximation."""
    if approximate:
        return x * 0.5 * (1.0 + tanh((x + x * square(x) * 0.044715) * math.sqrt(2.0 / math.pi)))
    return x * 0.5 * (1.0 + unary("erf", x * math.sqrt(0.5)))


def silu(x: Value) -> Value:
    """X sigmoid(x)."""
    return x * sigmoid(x)


def clip(x: Value, low: float | None = None, high: float | None = None) -> Value:
    """X limited to low..high; at the limits the gradient is 0."""
    above = x if low is None else relu(x) if low == 0.0 else maximum(x, low)
    return above if high is None else minimum(above, high)


def hard_sigmoid(x: Value, alpha: float = 1.0 / 6.0, beta: float = 0.5) -> Value:
    """Alpha x + beta, limited to 0..1."""
    return clip(x * alpha + beta, 0.0, 1.0)


def hard_swish(x: Value) -> Value:
    """X times hard_sigmoid(x) (arXiv 1905.02244)."""
    return x * hard_sigmoid(x)


def leaky_relu(x: Value, alpha: float = 0.01) -> Value:
    """X where it is positive, else alpha x."""
    return where(less(0.0, x), x, x * alpha)


def elu(x: Value, alpha: float = 1.0) -> Value:
    """X where it is positive, else alpha (e^x - 1)."""
    return where(less(0.0, x), x, (exp(minimum(x, 0.0)) - 1.0) * alpha)


def variance(x: Value, axes: Sequence[int] | None = None, *, keepdims: bool = False) -> Value:
    """Mean squared deviation from the mean over `axes`."""
    return mean(square(x - mean(x, axes, keepdims=True)), axes, keepdims=keepdims)


def normalize(x: Value, axes: Sequence[int], epsilon: float) -> Value:
    """X with mean 0 and variance 1 over `axes`; epsilon is added to the variance."""
    centred = x - mean(x, axes, keepdims=True)
    return centred * unary("reciprocal", sqrt(mean(square(centred), axes, keepdims=True) + epsilon))


def layer_norm(x: Value, gain: Value | None, bias: Value | None, axis: int = -1, epsilon: float = 1e-5) -> Value:
    """Normalised over `axis` and all after it (arXiv 1607.06450)."""
    rank = len(x.shape)
    y = normalize(x, range(axis % rank, rank), epsilon)
    y = y if gain is None else y * gain
    return y if bias is None else y + bias


def group_norm(x: Value, groups: int, epsilon: float = 1e-5) -> Value:
    """Normalise x (N, C, ...) over each of `groups` groups of channels and all places (arXiv 1803.08494)."""
    parts = reshape(x, (x.shape[0], groups, -1))
    return reshape(normalize(parts, [2], epsilon), x.shape)


def per_channel(v: Value, rank: int) -> Value:
    """A vector (C) as it broadcasts against (N, C, ...)."""
    return reshape(v, (v.type.size, *(1,) * (rank - 2)))


@dataclass(frozen=True)
class BatchNorm:
    """A normalised batch, and what its running statistics become.

    Attributes:
        y: normalised by the batch's own statistics, scaled and shifted.
        mean: running mean after this batch.
        variance: running (unbiased) variance after this batch.
    """

    y: Value
    mean: Value
    variance: Value


def _rows_total(x: Value, rows: Value) -> Value:
    """Sum of x (N, C, ...) over everything but the channels, rows weighted by `rows` (N)."""
    weights = reshape(rows, (x.shape[0], *(1,) * (len(x.shape) - 1)))
    return sum(x * weights, [a for a in range(len(x.shape)) if a != 1])


@dataclass(frozen=True)
class _Statistics:
    """Mean and biased variance (C) of a batch, and a function that gives it with mean 0, times a number a channel."""

    average: Value
    spread: Value
    scaled: Callable[[Value], Value]


def _statistics(x: Value, rows: Value, count: Value) -> _Statistics:
    """By two passes over x."""
    rank = len(x.shape)
    average = _rows_total(x, rows) / count
    centred = x - per_channel(average, rank)
    spread = _rows_total(square(centred), rows) / count
    return _Statistics(average, spread, lambda scale: centred * per_channel(scale, rank))


NARROW = 8  # multiply-adds for the covariances that a number of x is worth


def _is_narrow_product(x: Value) -> bool:
    """Whether x is a 1 x 1 convolution of so few channels that their covariance costs less than two passes over x."""
    if x.node.op != "conv" or x.node.attrs["groups"] != 1 or x.node.attrs["window"] != Window():
        return False
    w = x.node.inputs[1]
    assert w is not None
    outward, inward, *taps = w.shape
    places = x.type.size // outward
    return taps == [1, 1] and inward**2 * (places + outward) <= NARROW * outward * places


def _statistics_of_product(x: Value, rows: Value, count: Value) -> _Statistics:
    """Of x = W z at every place: its mean is W mean(z), its variances are the diagonal of W cov(z) W^T."""
    z, w = x.node.inputs
    assert z is not None
    assert w is not None
    outward, inward = w.shape[:2]
    middle = _rows_total(z, rows) / count
    centred = (z - per_channel(middle, 4)) * reshape(rows, (z.shape[0], 1, 1, 1))
    squares = conv_grad_w(centred, centred, (inward, inward, 1, 1), Window(), 1)
    covariance, weights = reshape(squares, (inward, inward)) / count, reshape(w, (outward, inward))
    average = sum(weights * middle, [1])
    spread = relu(sum(matmul(weights, covariance) * weights, [1]))  # which rounding could make negative
    return _Statistics(average, spread, lambda scale: conv(centred, w * reshape(scale, (outward, 1, 1, 1))))


def batch_norm(  # noqa: PLR0913 - the operands of the layer
    x: Value,
    gain: Value,
    bias: Value,
    running: tuple[Value, Value],
    rows: Value,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.1,
    unbiased: bool = True,
) -> BatchNorm:
    """Normalise x (N, C, ...) over rows and places (arXiv 1502.03167).

    Args:
        x: the batch; rows whose weight is 0 do not count, and what becomes of them means nothing.
        gain: (C); bias likewise.
        bias: (C).
        running: running mean and variance (C).
        rows: weights (N): 1 for a row that counts, 0 for one that fills up the batch.
        epsilon: added to the variance.
        momentum: share of this batch in the new running statistics.
        unbiased: whether the running variance divides by n - 1 (torch) rather than n (ONNX).
    """
    count = maximum(sum(rows) * float(math.prod(x.shape[2:])), 1.0)
    statistics = _statistics_of_product if _is_narrow_product(x) else _statistics
    found = statistics(x, rows, count)
    average, spread = found.average, found.spread
    y = found.scaled(unary("reciprocal", sqrt(spread + epsilon)) * gain) + per_channel(bias, len(x.shape))
    kept = detach(spread) * (count / maximum(count - 1.0, 1.0)) if unbiased else detach(spread)
    now = (detach(average), kept)
    moved = [old + (new - old) * momentum for old, new in zip(running, now, strict=True)]
    return BatchNorm(y, moved[0], moved[1])


def batch_norm_fixed(x: Value, gain: Value, bias: Value, running: tuple[Value, Value], epsilon: float = 1e-5) -> Value:
    """Normalise x (N, C, ...) by running statistics."""
    rank = len(x.shape)
    scale = gain * unary("reciprocal", sqrt(running[1] + epsilon))
    return x * per_channel(scale, rank) + per_channel(bias - running[0] * scale, rank)


def one_hot(labels: Value, classes: int) -> Value:
    """1 at each int32 label, else 0, along a new last axis; a label out of range gives zeros."""
    numbers = constant([float(c) for c in range(classes)])
    return equal(reshape(cast(labels, "float32"), (*labels.shape, 1)), numbers)


def class_logits(features: Value, rows: Value, labels: Value, *, scale: float, own: int) -> Value:
    """The logits (B, S) of sampled_softmax without corrections, -1e30 where an example does not see a class."""
    if scale:
        features, rows = l2_normalize(features, 1, 1e-38) * scale, l2_normalize(rows, 1, 1e-38)
    logits = matmul(features, rows, trans_b=True)
    if not own:
        return logits
    hidden = less(constant([float(c) for c in range(rows.shape[0])]), float(own)) * (
        1.0 - one_hot(labels, rows.shape[0])
    )
    return where(hidden, -1e30, logits)


def labelled_rows(labels: Value) -> Value:
    """1 for each row whose int32 label is not negative, else 0."""
    return less(-1.0, cast(labels, "float32"))


def mean_squared_error(a: Value, b: Value) -> Value:
    """Mean of (a - b)^2."""
    return mean(square(a - b))


def soft_cross_entropy(logits: Value, targets: Value) -> Value:
    """Mean over rows of -sum(targets log softmax(logits)); targets (N, C) sum to 1 in each row."""
    return mean(sum(-(targets * log_softmax(logits)), [-1]))


def kl_divergence(log_q: Value, p: Value) -> Value:
    """Mean over rows of sum(p (log p - log q)), with 0 log 0 = 0; p (N, C)."""
    log_p = log(where(less(0.0, p), p, 1.0))
    return mean(sum(p * (log_p - log_q), [-1]))


def l2_normalize(x: Value, axis: int = -1, epsilon: float = 1e-12) -> Value:
    """X over its Euclidean norm along `axis`."""
    return x / sqrt(sum(square(x), [axis], keepdims=True) + epsilon)


def info_nce(queries: Value, keys: Value, labels: Value, negatives: Value | None = None, tau: float = 0.07) -> Value:
    """Contrastive loss: query i against key i among all keys (arXiv 1807.03748), or against `negatives` (K, D) too.

    Args:
        queries: (N, D); keys likewise; both should have unit rows.
        keys: (N, D).
        labels: int32 (N): the number of each query's key, -1 leaves the query out.
        negatives: more keys that belong to no query, such as a queue (arXiv 1911.05722).
        tau: temperature.
    """
    pool = keys if negatives is None else concat([keys, negatives])
    return softmax_cross_entropy(matmul(queries, pool, trans_b=True) * (1.0 / tau), labels)


def attention(q: Value, k: Value, v: Value) -> Value:
    """softmax(q k^T / sqrt(d)) v over the last two axes (arXiv 1706.03762)."""
    axes = [*range(len(k.shape) - 2), len(k.shape) - 1, len(k.shape) - 2]
    return softmax(q @ transpose(k, axes) * (1.0 / math.sqrt(q.shape[-1]))) @ v
