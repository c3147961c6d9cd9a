"""ONNX operators that put elements elsewhere, in the graph language."""

import math
from collections.abc import Sequence

import numpy as np

import models.compiler.graph as g
from models.compiler.errors import ModelError
from models.compiler.ir import Value
from models.compiler.onnx_nodes import Convert, ModelNode, Term, Terms, axis_of, integers, known, value
from models.compiler.onnx_resize import resize

MAX_FILLED_ELEMENTS = 1 << 24  # of a constant of whole numbers, which is written out where it is read


def _concat(node: ModelNode, terms: Terms) -> Value:
    values = [value(terms, i) for i in range(len(terms))]
    return g.concat(values, axis_of(node, len(values[0].shape), 0))


def _split(node: ModelNode, terms: Terms) -> list[Term]:
    x = value(terms, 0)
    axis = axis_of(node, len(x.shape), 0)
    sizes = integers(node, terms, "split", 1)
    if sizes is None:
        parts = int(node.attrs.get("num_outputs", node.declared))
        step = -(-x.shape[axis] // parts)
        sizes = [min(step, x.shape[axis] - step * i) for i in range(parts)]
    if sum(sizes) != x.shape[axis] or min(sizes) < 0:
        raise ModelError(f"the pieces {sizes} do not make up {x.shape[axis]}")
    pieces = iter(g.split(x, [n for n in sizes if n], axis))
    return [next(pieces) if n else _nothing(x, [*x.shape[:axis], 0, *x.shape[axis + 1 :]]) for n in sizes]


def _nothing(x: Value, shape: Sequence[int]) -> Term:
    """A part of x without elements."""
    return np.zeros(shape, x.type.dtype)


def _slice(node: ModelNode, terms: Terms) -> Term:
    """Starts, ends and axes as attributes up to opset 9, then as operands; Python's rule for what is out of range."""
    x = value(terms, 0)
    begins, ends = integers(node, terms, "starts", 1), integers(node, terms, "ends", 2)
    if begins is None or ends is None:
        raise ModelError("starts or ends are missing")
    axes = integers(node, terms, "axes", 3) or list(range(len(begins)))
    steps = integers(node, terms, "steps", 4) or [1] * len(begins)
    cuts = {a % len(x.shape): slice(b, e, s) for a, b, e, s in zip(axes, begins, ends, steps, strict=True)}
    ranges = [range(n)[cuts.get(a, slice(None))] for a, n in enumerate(x.shape)]
    if any(not r for r in ranges):
        return _nothing(x, [len(r) for r in ranges])
    return g.slice(x, [r[0] for r in ranges], [len(r) for r in ranges], [r.step for r in ranges])


def _pad(node: ModelNode, terms: Terms) -> Value:
    """Constant, reflected or repeated edges; a negative pad cuts off."""
    x, mode = value(terms, 0), node.attrs.get("mode", "constant")
    rank = len(x.shape)
    pads = integers(node, terms, "pads", 1) or []
    axes = integers(node, terms, "axes", 3) or list(range(rank))
    if len(pads) != 2 * len(axes):
        raise ModelError(f"pads {pads} must have {2 * len(axes)} numbers")
    before, after = [0] * rank, [0] * rank
    for i, a in enumerate(axes):
        before[a % rank], after[a % rank] = pads[i], pads[i + len(axes)]
    if mode != "constant":
        return _padded_by_index(x, before, after, mode)
    fill = known(terms, 2)
    number_ = float(node.attrs.get("value", 0.0) if fill is None else fill.item())
    cut = [max(-b, 0) for b in before]
    kept = [n - c - max(-e, 0) for n, c, e in zip(x.shape, cut, after, strict=True)]
    inner = g.slice(x, cut, kept, [1] * rank)
    return g.pad(inner, [max(b, 0) for b in before], [max(e, 0) for e in after], number_)


def _padded_by_index(x: Value, before: Sequence[int], after: Sequence[int], mode: str) -> Value:
    modes = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}
    if mode not in modes or min(*before, *after) < 0:
        raise ModelError(f"padding by {mode!r} with pads {[*before, *after]} is not supported")
    for axis, (b, a) in enumerate(zip(before, after, strict=True)):
        if b or a:
            place = np.pad(np.arange(x.shape[axis]), (b, a), modes[mode])  # type: ignore[call-overload]
            x = g.gather(x, g.constant(place.astype(np.int32)), axis)
    return x


def _index(terms: Terms, extent: int) -> Value:
    """Operand 1 as int32; negative numbers of a constant count from the end."""
    index = terms[1]
    if isinstance(index, np.ndarray):
        if index.size and not -extent <= index.min() <= index.max() < extent:
            raise ModelError(f"an index is out of range for {extent} elements")
        return g.constant(np.where(index < 0, index + extent, index).astype(np.int32))
    return g.cast(value(terms, 1), "int32")


def _gather(node: ModelNode, terms: Terms) -> Value:
    """A single constant index is a slice; what was made of the input picks rows, 0 where it is out of range."""
    x = value(terms, 0)
    axis = axis_of(node, len(x.shape), 0)
    index = _index(terms, x.shape[axis])
    if index.node.op != "constant" or index.type.size != 1:
        return g.gather(x, index, axis)
    at = int(index.node.attrs["value"].item())
    starts = [at if a == axis else 0 for a in range(len(x.shape))]
    row = g.slice(x, starts, [*x.shape[:axis], 1, *x.shape[axis + 1 :]], [1] * len(x.shape))
    return g.reshape(row, [*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


def _gather_elements(node: ModelNode, terms: Terms) -> Value:
    x = value(terms, 0)
    axis = axis_of(node, len(x.shape), 0)
    index = _index(terms, x.shape[axis])
    if len(index.shape) != len(x.shape):
        raise ModelError("the index must have the rank of the data")
    cut = [n if a == axis else index.shape[a] for a, n in enumerate(x.shape)]
    return g.gather(g.slice(x, [0] * len(cut), cut, [1] * len(cut)), index, axis, elements=True)


def _expand(node: ModelNode, terms: Terms) -> Value:
    x, shape = value(terms, 0), integers(node, terms, "shape", 1)
    assert shape is not None
    return g.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(shape)))


def _tile(node: ModelNode, terms: Terms) -> Value:
    x, repeats = value(terms, 0), integers(node, terms, "repeats", 1)
    assert repeats is not None
    if len(repeats) != len(x.shape) or min(repeats, default=1) < 1 or math.prod(repeats) > MAX_FILLED_ELEMENTS:
        raise ModelError(f"repeats {repeats} must be 1 or more, at most {MAX_FILLED_ELEMENTS} together, one an axis")
    for axis, count in enumerate(repeats):
        x = g.concat([x] * count, axis)
    return x


def _depth_to_space(node: ModelNode, terms: Terms) -> Value:
    x, b = value(terms, 0), int(node.attrs["blocksize"])
    n, c, h, w = x.shape
    deep = c // (b * b)
    if node.attrs.get("mode", "DCR") == "DCR":
        moved = g.transpose(g.reshape(x, (n, b, b, deep, h * w)), (0, 3, 4, 1, 2))
    else:
        moved = g.transpose(g.reshape(x, (n, deep, b, b, h * w)), (0, 1, 4, 2, 3))
    rows = g.transpose(g.reshape(moved, (n * deep, h, w, b, b)), (0, 1, 3, 2, 4))
    return g.reshape(rows, (n, deep, h * b, w * b))


def _space_to_depth(node: ModelNode, terms: Terms) -> Value:
    x, b = value(terms, 0), int(node.attrs["blocksize"])
    n, c, h, w = x.shape
    blocks = g.transpose(g.reshape(x, (n * c, h // b, b, w // b, b)), (0, 2, 4, 1, 3))
    places = g.reshape(blocks, (n, c, b * b, -1))
    if node.attrs.get("mode", "DCR") == "DCR":
        places = g.transpose(places, (0, 2, 1, 3))
    return g.reshape(places, (n, c * b * b, h // b, w // b))


def _constant_of_shape(node: ModelNode, terms: Terms) -> Term:
    """Larger ones than shape arithmetic computes: one number, repeated where it is read."""
    shape = known(terms, 0)
    assert shape is not None
    sizes = [int(n) for n in shape]
    fill = node.attrs.get("value", np.zeros(1, np.float32)).reshape(())
    if fill.dtype == np.float32:
        return g.broadcast_to(g.constant(fill), sizes)
    if min(sizes) < 0 or math.prod(sizes) > MAX_FILLED_ELEMENTS:
        raise ModelError(
            f"a constant of shape {sizes} and type {fill.dtype} has more than {MAX_FILLED_ELEMENTS} elements"
        )
    return np.broadcast_to(fill, sizes)


CONVERTERS: dict[str, Convert] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Pad": _pad,
    "Resize": resize,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Tile": _tile,
}
