"""ONNX operators that pick elements by lists of places, or put elements there, in the graph language.

Places that are made of the input are computed in float32, so what they name has at most 2^24 elements.
"""

import math
from collections.abc import Sequence

import numpy as np

import models.compiler.graph as g
from models.compiler.elementary import strides
from models.compiler.errors import ModelError
from models.compiler.evaluate import evaluate
from models.compiler.gradients import EXACT_WHOLE
from models.compiler.ir import Value
from models.compiler.onnx_nodes import Convert, ModelNode, Term, Terms, axis_of, value


def _whole(term: Term | None) -> Value:
    """An operand of whole numbers as int32."""
    if isinstance(term, np.ndarray):
        if term.dtype.kind not in "iu":
            raise ModelError(f"the indices are {term.dtype}, whole numbers are needed")
        return g.constant(np.clip(term, -(2**31), 2**31 - 1).astype(np.int32))
    if term is None:
        raise ModelError("the indices are missing")
    if term.name and term.type.dtype != "int32":
        raise ModelError(f"the indices {term.name!r} are {term.type.dtype}, whole numbers are needed")
    return g.cast(term, "int32")


def _places(index: Value, dims: Sequence[int], groups: int = 1) -> Value:
    """Flat places (R) of rows (..., K) of an index into `dims`; negative numbers count from the end.

    What is out of range becomes -1. The rows are of `groups` equal groups, each of which has its own copy of `dims`.
    """
    size = math.prod(dims) * groups
    if size > EXACT_WHOLE:
        raise ModelError(f"an index into {size} elements; places up to {EXACT_WHOLE} can be computed")
    rows, depth = math.prod(index.shape[:-1]), index.shape[-1]
    extents = g.constant([float(n) for n in dims])
    number = g.reshape(g.cast(index, "float32"), (rows, depth))
    at = g.where(g.less(number, 0.0), number + extents, number)
    flat = g.sum(at * g.constant([float(s) for s in strides(dims)]), [1])
    if groups > 1:
        flat = flat + g.constant(np.repeat(np.arange(groups) * float(math.prod(dims)), rows // groups))
    inside = g.min(g.less_equal(g.constant(0.0), at) * g.less(at, extents), [1])
    places = g.cast(g.where(inside, flat, -1.0), "int32")
    return g.constant(evaluate([places], {})[0]) if index.node.op == "constant" else places


def _gather_nd(node: ModelNode, terms: Terms) -> Value:
    """Each row of the index names one slice of the data; 0 where it is out of range."""
    x, index = value(terms, 0), _whole(terms[1])
    shared, depth = int(node.attrs.get("batch_dims", 0)), index.shape[-1]
    if not 0 <= shared < len(index.shape) or shared + depth > len(x.shape):
        raise ModelError(f"batch_dims {shared} and an index {list(index.shape)} do not fit data {list(x.shape)}")
    rest = x.shape[shared + depth :]
    if shared and index.shape[:shared] != x.shape[:shared]:
        raise ModelError(f"the first {shared} dimensions of {list(x.shape)} and {list(index.shape)} differ")
    named = x.shape[shared : shared + depth]
    groups = math.prod(x.shape[:shared])
    places = _places(index, named, groups)
    picked = g.gather(g.reshape(x, (groups * math.prod(named), math.prod(rest))), places, 0)
    return g.reshape(picked, (*index.shape[:-1], *rest))


def _put(x: Value, added: Value, hits: Value, reduction: str) -> Value:
    """X with what was scattered added to it, or in place of it where something was."""
    if reduction == "add":
        return x + added
    if reduction != "none":
        raise ModelError(f"reduction {reduction!r} is not supported; none and add are")
    return g.where(hits, added, x)


def _last_of_equals(places: Value, axis: int) -> Value:
    """A known index with all but the last of equal entries along `axis` out of range: the last one is written."""
    if places.node.op != "constant":
        return places
    array = np.moveaxis(places.node.attrs["value"], axis, -1)
    lines = np.arange(array.size).reshape(array.shape) // array.shape[-1]
    named = np.stack([lines, array], -1).reshape(-1, 2)[::-1]
    last = array.size - 1 - np.unique(named, axis=0, return_index=True)[1]
    kept = np.full(array.size, -1, np.int32)
    kept[last] = array.reshape(-1)[last]
    return g.constant(np.moveaxis(kept.reshape(array.shape), -1, axis))


def _scatter_nd(node: ModelNode, terms: Terms) -> Value:
    """Each row of the index names a slice of the data that an update replaces, or is added to.

    Where updates made of the input replace one place together, which ONNX leaves undefined, it gets their sum.
    """
    x, index, updates = value(terms, 0), _whole(terms[1]), value(terms, 2)
    depth, reduction = index.shape[-1], str(node.attrs.get("reduction", "none"))
    rest = x.shape[depth:]
    if depth > len(x.shape) or updates.shape != (*index.shape[:-1], *rest):
        raise ModelError(f"updates {list(updates.shape)} do not fit data {list(x.shape)} and index {list(index.shape)}")
    places = _places(index, x.shape[:depth])
    if reduction == "none":
        places = _last_of_equals(places, 0)
    flat = (math.prod(x.shape[:depth]), math.prod(rest))
    count = places.shape[0]
    added = g.scatter_add(g.reshape(updates, (count, flat[1])), places, flat, 0, elements=False)
    hits = g.scatter_add(g.constant(np.ones((count, 1))), places, (flat[0], 1), 0, elements=False)
    return g.reshape(_put(g.reshape(x, flat), added, hits, reduction), x.shape)


def _scatter_elements(node: ModelNode, terms: Terms) -> Value:
    """Each entry of the index names the place along one axis where its update goes.

    A negative entry that is made of the input names nothing; equal ones as in ScatterND.
    """
    x, updates = value(terms, 0), value(terms, 2)
    axis, reduction = axis_of(node, len(x.shape), 0), str(node.attrs.get("reduction", "none"))
    index = _whole(terms[1])
    if index.shape != updates.shape or len(index.shape) != len(x.shape):
        raise ModelError(f"index {list(index.shape)} and updates {list(updates.shape)} do not fit {list(x.shape)}")
    if index.node.op == "constant":
        array = index.node.attrs["value"]
        index = g.constant(np.where(array < 0, array + x.shape[axis], array).astype(np.int32))
    if reduction == "none":
        index = _last_of_equals(index, axis)
    # The kernel's index has the shape of the data along the other axes: places that name nothing fill it up.
    after = [0 if a == axis else n - m for a, (n, m) in enumerate(zip(x.shape, index.shape, strict=True))]
    if min(after) < 0:
        raise ModelError(f"index {list(index.shape)} is larger than the data {list(x.shape)}")
    nothing = [0] * len(after)
    index, updates = g.pad(index, nothing, after, -1), g.pad(updates, nothing, after)
    added = g.scatter_add(updates, index, x.shape, axis, elements=True)
    hits = g.scatter_add(g.constant(np.ones(index.shape)), index, x.shape, axis, elements=True)
    return _put(x, added, hits, reduction)


CONVERTERS: dict[str, Convert] = {
    "GatherND": _gather_nd,
    "Scatter": _scatter_elements,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
}
