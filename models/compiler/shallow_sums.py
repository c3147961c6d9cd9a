"""Sums that wait for fewer other sums.

The gradient of a normalisation sums a s + b c over a group, where s and c are numbers of that group that follow from
sums themselves. Written s sum(a) + c sum(b), all sums can be made in one pass, and the numbers follow. A sum is
rewritten where that makes it wait for fewer reductions one after the other.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import models.compiler.graph as g
from models.compiler.ir import Node, Value, rewrite, topological
from models.compiler.map_region import ELEMENTWISE, REDUCTIONS
from models.compiler.shapes import broadcast_shape

TERMS = 6  # sums that one may become


@dataclass(frozen=True)
class Term:
    """A product of values, added or subtracted."""

    factors: tuple[Value, ...]
    sign: float


def shallow_sums(outputs: Sequence[Value]) -> tuple[Value, ...]:
    """The same results up to rounding."""
    depths = _depths(outputs)

    def rule(node: Node, inputs: tuple[Value | None, ...]) -> Sequence[Value] | None:
        before, now = node.inputs[0], inputs[0]
        if node.op != "reduce_sum" or before is None or now is None:
            return None
        old, new = list(_terms(before, 1.0)), list(_terms(now, 1.0))
        if len(old) != len(new) or not 1 < len(old) <= TERMS:
            return None
        axes, rank = node.attrs["axes"], len(before.shape)
        rest = [v for term in old for v in _split(term, axes, rank)[1]]
        if max((depths.get(v.node, 0) for v in rest), default=0) >= depths.get(before.node, 0):
            return None
        parts = [_summed(term, node, rank) for term in new]
        if any(p is None for p in parts):
            return None
        total = reduce(lambda a, b: a + b, (p for p in parts if p is not None))
        return [g.reshape(total, node.types[0].shape)]

    return rewrite(outputs, rule)


def _depths(outputs: Sequence[Value]) -> Mapping[Node, int]:
    """How many reductions follow one another above each node, through elementwise functions and views."""
    depths: dict[Node, int] = {}
    for node in topological(outputs):
        if node.op in ELEMENTWISE or node.op in REDUCTIONS or node.op in ("reshape", "broadcast", "detach"):
            above = max((depths.get(v.node, 0) for v in node.inputs if v is not None), default=0)
            depths[node] = above + (node.op in REDUCTIONS)
    return depths


def _terms(value: Value, sign: float) -> Iterator[Term]:
    """What a value is the sum of."""
    a, b = (*value.node.inputs, None, None)[:2]
    if value.node.op in ("add", "sub") and a is not None and b is not None and a.shape == b.shape == value.shape:
        yield from _terms(a, sign)
        yield from _terms(b, sign if value.node.op == "add" else -sign)
    else:
        yield Term(tuple(_factors(value)), sign)


def _factors(value: Value) -> Iterator[Value]:
    """What a value is the product of; a factor may have fewer places than the product, and is repeated."""
    a, b = (*value.node.inputs, None, None)[:2]
    if value.node.op == "broadcast" and a is not None:
        yield from _factors(a)
    elif value.node.op == "mul" and a is not None and b is not None:
        yield from _factors(a)
        yield from _factors(b)
    else:
        yield value


def _split(term: Term, axes: Sequence[int], rank: int) -> tuple[list[Value], list[Value]]:
    """The factors that are the same all along the axes, and the others."""
    fixed = [v for v in term.factors if all(_size(v, a, rank) == 1 for a in axes)]
    return fixed, [v for v in term.factors if v not in fixed]


def _size(value: Value, axis: int, rank: int) -> int:
    """Places of a value along an axis of a product with `rank` axes."""
    at = axis - (rank - len(value.shape))
    return value.shape[at] if at >= 0 else 1


def _summed(term: Term, node: Node, rank: int) -> Value | None:
    """One term of a sum, summed with its axes kept; None where what is left of it does not have their sizes."""
    x = node.inputs[0]
    assert x is not None
    axes, scale = node.attrs["axes"], node.attrs["scale"] * term.sign
    fixed, rest = _split(term, axes, rank)
    if not rest:
        inner = g.constant(scale * math.prod(x.shape[a] for a in axes))
    elif broadcast_shape("mul", [v.type for v in rest]) != x.shape:
        return None
    else:
        inner = g.sum(reduce(g.mul, rest), axes, keepdims=True, scale=scale)
    return reduce(g.mul, fixed, inner)
