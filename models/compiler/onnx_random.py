"""ONNX operators that draw random numbers, in the graph language.

Every use has its own stream; ONNX's attribute `seed` is not read, since a plan's numbers follow from the task's seed.
"""

from collections.abc import Callable, Sequence

import onnx

import models.compiler.graph as g
from models.compiler.errors import ModelError
from models.compiler.ir import Mode, Value
from models.compiler.onnx_nodes import Convert, ModelNode, Term, Terms, known, value


def stream_of(node: ModelNode) -> int:
    """The number of a new stream."""
    node.training.draws.append(node.name)
    return len(node.training.draws) - 1


def _scalar(node: ModelNode, terms: Terms, index: int, name: str, default: float) -> float:
    """A number given as an attribute (older opsets) or as operand `index`."""
    given = known(terms, index)
    return float(node.attrs.get(name, default) if given is None else given.item())


def _dropout(node: ModelNode, terms: Terms) -> Term | list[Value]:
    """Drops out where the model says it trains; before opset 12, and without that operand, it is left out."""
    x, training = value(terms, 0), known(terms, 2)
    if training is not None and training.any():
        made = g.dropout(x, _scalar(node, terms, 1, "ratio", 0.5), stream_of(node))
        node.training.modes.append(Mode(made[0], x, ()))
        return list(made)
    node.notes.append(f"Dropout {node.name!r} is left out: the model does not say that it trains")
    return [x, g.broadcast_to(g.constant(1.0), x.shape)]


def _drawn(function: Callable[[Sequence[int], int, float, float], Value], first: str, second: str) -> Convert:
    """Numbers of the attribute `shape`, or of the shape of the operand."""

    def convert(node: ModelNode, terms: Terms) -> Value:
        if node.attrs.get("dtype", onnx.TensorProto.FLOAT) != onnx.TensorProto.FLOAT:
            raise ModelError("random numbers are float32; export the model with that dtype")
        like = terms[0] if terms else None
        shape = [int(n) for n in node.attrs["shape"]] if like is None else like.shape
        defaults = {"low": 0.0, "high": 1.0, "mean": 0.0, "scale": 1.0}
        a, b = (float(node.attrs.get(name, defaults[name])) for name in (first, second))
        return function(shape, stream_of(node), a, b)

    return convert


def _bernoulli(node: ModelNode, terms: Terms) -> Value:
    return g.bernoulli(value(terms, 0), stream_of(node))


CONVERTERS: dict[str, Convert] = {
    "Bernoulli": _bernoulli,
    "Dropout": _dropout,
    "RandomNormal": _drawn(g.random_normal, "mean", "scale"),
    "RandomNormalLike": _drawn(g.random_normal, "mean", "scale"),
    "RandomUniform": _drawn(g.random_uniform, "low", "high"),
    "RandomUniformLike": _drawn(g.random_uniform, "low", "high"),
}
