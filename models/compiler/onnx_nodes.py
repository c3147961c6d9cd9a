"""What a converter sees of a node of the model, and how it reads its operands."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

import models.compiler.graph as g
from models.compiler.errors import ModelError
from models.compiler.ir import Mode, Value

Term = Value | NDArray[Any]
Terms = Sequence[Term | None]


@dataclass(frozen=True)
class Training:
    """What the nodes of a model that is to be trained share.

    Attributes:
        batch_statistics: whether every BatchNormalization uses the batch, whatever the model says.
        rows: a leaf (batch): 1 for a row that counts, 0 for one that fills up the batch.
        updates: slots and what they become in a step; converters append.
        draws: nodes that draw random numbers, each the stream of its number; converters append.
        modes: what differs in inference; converters append.
    """

    batch_statistics: bool
    rows: Value
    updates: list[tuple[Value, Value]] = field(default_factory=list)
    draws: list[str] = field(default_factory=list)
    modes: list[Mode] = field(default_factory=list)


@dataclass(frozen=True)
class ModelNode:
    """A node of the model, its attributes as Python values.

    Attributes:
        outputs: the first output, and how many others something reads.
        declared: how many outputs the node has, read or not.
        fixed_batch: the batch size written into the model, None where it is symbolic.
        notes: a converter appends what people should know.
    """

    op: str
    name: str
    attrs: Mapping[str, Any]
    outputs: int
    opset: int
    batch: int
    fixed_batch: int | None
    notes: list[str]
    training: Training
    declared: int


# One term is output 0; a node of several outputs answers a list.
Convert = Callable[[ModelNode, Terms], Term | Sequence[Term]]


def value(terms: Terms, index: int) -> Value:
    """Operand `index` as a value; a known array becomes a constant."""
    term = terms[index] if index < len(terms) else None
    if term is None:
        raise ModelError(f"operand {index} is missing")
    if isinstance(term, Value):
        return term
    if term.dtype == np.bool_:
        return g.constant(term.astype(np.float32))
    if term.dtype != np.float32:
        raise ModelError(f"operand {index} is {term.dtype}, float32 is needed")
    return g.constant(term)


def number(terms: Terms, index: int) -> Value:
    """As value, but integers become float32."""
    term = terms[index] if index < len(terms) else None
    if isinstance(term, np.ndarray) and term.dtype.kind in "iu":
        if np.abs(term).max(initial=0) > 1 << 24:
            raise ModelError(f"operand {index} holds whole numbers above 2^24, which float32 does not")
        return g.constant(term.astype(np.float32))
    return g.cast(value(terms, index), "float32")


def optional(terms: Terms, index: int) -> Value | None:
    """As value, None where the operand is absent."""
    return None if index >= len(terms) or terms[index] is None else value(terms, index)


def known(terms: Terms, index: int) -> NDArray[Any] | None:
    """Operand `index` as an array, None where it is absent."""
    if index >= len(terms) or terms[index] is None:
        return None
    term = terms[index]
    if isinstance(term, Value):
        raise ModelError(f"operand {index} must be constant, but it depends on the input or on a parameter")
    return term


def integers(node: ModelNode, terms: Terms, name: str, index: int) -> list[int] | None:
    """Whole numbers given as attribute `name` (older opsets) or as operand `index`."""
    given = node.attrs.get(name)
    if given is not None:
        return [int(n) for n in given]
    array = known(terms, index)
    return None if array is None else [int(n) for n in array.ravel()]


def axis_of(node: ModelNode, rank: int, default: int) -> int:
    """The attribute `axis`, made non-negative."""
    axis = int(node.attrs.get("axis", default))
    if not -rank <= axis < rank:
        raise ModelError(f"axis {axis} is out of range for {rank} dimensions")
    return axis % rank


def axes_of(node: ModelNode, terms: Terms, rank: int) -> list[int] | None:
    """Axes as an attribute (older opsets) or as operand 1, made non-negative; None where there are none."""
    given = integers(node, terms, "axes", 1)
    if given is None:
        return None
    if any(not -rank <= a < rank for a in given):
        raise ModelError(f"axes {list(given)} are out of range for {rank} dimensions")
    return sorted({int(a) % rank for a in given})
