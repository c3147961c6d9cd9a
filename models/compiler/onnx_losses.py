"""ONNX losses, in the graph language."""

import numpy as np

import models.compiler.graph as g
from models.compiler.errors import ModelError
from models.compiler.ir import Value
from models.compiler.onnx_nodes import Convert, ModelNode, Terms, optional, value

DOMAIN = "edge_runtime"  # of the operators that ONNX has not


def _labels(terms: Terms, scores: Value) -> Value:
    """Operand 1 as int32 (N, ...), checked against scores (N, C, ...)."""
    labels = terms[1]
    if labels is None:
        raise ModelError("the labels are missing")
    found = labels if isinstance(labels, Value) else g.constant(labels.astype("int32"))
    if found.shape != (scores.shape[0], *scores.shape[2:]):
        raise ModelError(f"labels {list(found.shape)} do not fit scores {list(scores.shape)}")
    return g.cast(found, "int32")


def _likelihood(node: ModelNode, terms: Terms, log_p: Value, labels: Value) -> Value:
    """Minus the log-probabilities (N, C, ...) that the labels name; ignore_index and negative labels count nothing."""
    rank, classes = len(log_p.shape), log_p.shape[1]
    rows = g.reshape(g.transpose(log_p, (0, *range(2, rank), 1)), (-1, classes))
    number = g.reshape(g.cast(labels, "float32"), (-1,))
    counted = g.less(-1.0, number) * (1.0 - g.equal(number, float(node.attrs.get("ignore_index", -1))))
    index = g.cast(g.where(counted, number, -1.0), "int32")
    picked = g.reshape(g.gather(rows, g.reshape(index, (-1, 1)), 1, elements=True), (-1,))
    weights = optional(terms, 2)
    weighed = counted if weights is None else g.gather(weights, index, 0)
    losses = -(picked * weighed)
    match node.attrs.get("reduction", "mean"):
        case "none":
            return g.reshape(losses, labels.shape)
        case "sum":
            return g.sum(losses)
        case "mean":
            return g.sum(losses) / g.sum(weighed)
        case other:
            raise ModelError(f"reduction {other!r} is unknown; none, sum and mean are known")


def _negative_log_likelihood(node: ModelNode, terms: Terms) -> Value:
    log_p = value(terms, 0)
    return _likelihood(node, terms, log_p, _labels(terms, log_p))


def _softmax_cross_entropy(node: ModelNode, terms: Terms) -> Value | list[Value]:
    """The plain mean over rows has a kernel of its own, for which -1 marks rows that do not count."""
    scores = value(terms, 0)
    labels = _labels(terms, scores)
    plain = len(scores.shape) == 2 and optional(terms, 2) is None and node.attrs.get("ignore_index", -1) < 0
    if plain and node.outputs == 1 and labels.node.op == "leaf" and node.attrs.get("reduction", "mean") == "mean":
        return g.softmax_cross_entropy(scores, labels)
    log_p = g.log_softmax(scores, 1)
    loss = _likelihood(node, terms, log_p, labels)
    return loss if node.outputs == 1 else [loss, log_p]


def _sampled_softmax(node: ModelNode, terms: Terms) -> Value:
    """Inputs features, rows, labels, correction?; attributes scale (cosines) and own_positives."""
    features, rows = value(terms, 0), value(terms, 1)
    labels = _labels(terms[1:], g.constant(np.zeros((features.shape[0], 1), np.float32)))
    return g.sampled_softmax(
        features,
        rows,
        labels,
        optional(terms, 3),
        scale=float(node.attrs.get("scale", 0.0)),
        own=int(node.attrs.get("own_positives", 0)),
    )


CONVERTERS: dict[str, Convert] = {
    "NegativeLogLikelihoodLoss": _negative_log_likelihood,
    "SoftmaxCrossEntropyLoss": _softmax_cross_entropy,
    f"{DOMAIN}.LinearCrossEntropy": _sampled_softmax,
    f"{DOMAIN}.SampledSoftmax": _sampled_softmax,
}
