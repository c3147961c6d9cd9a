"""What each ONNX operator means in the graph language, one function each.

A term is a Value, or an array that is known already: shapes, axes, constants of the model.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

import models.compiler.graph as g
from models.compiler.errors import ModelError
from models.compiler.ir import Value, Window
from models.compiler.onnx_nodes import Convert, ModelNode, Term, Terms, axes_of, known, value
from models.compiler.onnx_volumes import conv_transpose_volume, conv_volume, pool_volume


def _binary(function: Callable[[Value, Value], Value]) -> Convert:
    def convert(node: ModelNode, terms: Terms) -> Value:
        del node
        return function(value(terms, 0), value(terms, 1))

    return convert


def _identity(node: ModelNode, terms: Terms) -> Term:
    term = terms[0]
    if term is None:
        raise ModelError("operand 0 is missing")
    if isinstance(term, Value) and term.name and node.op == "Identity":
        node.notes.append(f"{node.name!r} is {term.name!r} under another name: both are trained as one tensor")
    return term


def _constant(node: ModelNode, terms: Terms) -> Term:
    del terms
    (kind, content), *_ = node.attrs.items()
    dtypes = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if kind == "value":
        return np.asarray(content)
    if kind not in dtypes:
        raise ModelError(f"a constant given by {kind} is not supported")
    return np.asarray(content, dtypes[kind])


def _shape(node: ModelNode, terms: Terms) -> Term:
    shape = _identity(node, terms).shape
    return np.asarray(shape[node.attrs.get("start", 0) : node.attrs.get("end", len(shape))], np.int64)


def _relu(node: ModelNode, terms: Terms) -> Value:
    del node
    return g.relu(value(terms, 0))


def _gemm(node: ModelNode, terms: Terms) -> Value:
    trans_a, trans_b = bool(node.attrs.get("transA", 0)), bool(node.attrs.get("transB", 0))
    alpha, beta = node.attrs.get("alpha", 1.0), node.attrs.get("beta", 1.0)
    product = g.matmul(value(terms, 0), value(terms, 1), trans_a=trans_a, trans_b=trans_b)
    scaled = product if alpha == 1.0 else product * alpha
    if len(terms) < 3 or terms[2] is None or beta == 0.0:
        return scaled
    c = value(terms, 2)
    out = scaled + (c if beta == 1.0 else c * beta)
    if out.shape != product.shape:
        raise ModelError(f"C {list(c.shape)} does not broadcast to {list(product.shape)}")
    return out


def _matmul(node: ModelNode, terms: Terms) -> Value:
    del node
    a, b = value(terms, 0), value(terms, 1)
    if not a.shape or not b.shape:
        raise ModelError("MatMul takes no scalars")
    left = a if len(a.shape) > 1 else g.reshape(a, (1, -1))
    right = b if len(b.shape) > 1 else g.reshape(b, (-1, 1))
    c = left @ right
    return g.reshape(c, [*c.shape[:-2], *c.shape[-2:][len(a.shape) == 1 : 2 - (len(b.shape) == 1)]])


def _conv(node: ModelNode, terms: Terms) -> Value:
    x, w = value(terms, 0), value(terms, 1)
    if len(x.shape) != len(w.shape):
        raise ModelError(f"input {list(x.shape)} and weight {list(w.shape)} differ in rank")
    if list(node.attrs.get("kernel_shape", w.shape[2:])) != list(w.shape[2:]):
        raise ModelError(f"kernel_shape {node.attrs['kernel_shape']} is not the weight's {list(w.shape[2:])}")
    if len(x.shape) == 5:
        y = conv_volume(node, x, w)
        return y if len(terms) < 3 or terms[2] is None else y + g.reshape(value(terms, 2), (w.shape[0], 1, 1, 1))
    x4, w4 = _as_image(x), _as_image(w)
    window, _ = _window(node, x4.shape[2:], w4.shape[2:], len(x.shape) - 2)
    y = g.conv(x4, w4, window, int(node.attrs.get("group", 1)))
    if len(terms) > 2 and terms[2] is not None:
        y = y + g.reshape(value(terms, 2), (w.shape[0], 1, 1))
    return _like(y, x)


def _as_image(x: Value) -> Value:
    """(N, C, L) as (N, C, 1, L); (N, C, H, W) as it is."""
    if len(x.shape) not in (3, 4):
        raise ModelError(f"data must be (N, C, L) or (N, C, H, W), got {list(x.shape)}")
    return x if len(x.shape) == 4 else g.reshape(x, (*x.shape[:2], 1, x.shape[2]))


def _like(y: Value, x: Value) -> Value:
    """Drop the axis of height from y where x has three dimensions."""
    return y if len(x.shape) == 4 else g.reshape(y, (*y.shape[:2], y.shape[3]))


def _spatial(node: ModelNode, name: str, rank: int, default: int, neutral: int) -> tuple[int, int]:
    """An attribute with one number a spatial axis, a missing first axis filled up."""
    given = list(node.attrs.get(name, [default] * rank))
    if len(given) != rank:
        raise ModelError(f"{name} {given} must have {rank} numbers")
    down, across = [neutral] * (2 - rank) + [int(v) for v in given]
    return down, across


def _window(
    node: ModelNode, extents: Sequence[int], kernel: Sequence[int], rank: int
) -> tuple[Window, tuple[int, int]]:
    """The window of a convolution or pool, and what ceil_mode added to the pads below and to the right."""
    strides, dilations = _spatial(node, "strides", rank, 1, 1), _spatial(node, "dilations", rank, 1, 1)
    auto_pad = node.attrs.get("auto_pad", "NOTSET")
    pads = [0] * 4
    if auto_pad == "NOTSET":
        given = [int(p) for p in node.attrs.get("pads", [0] * (2 * rank))]
        if len(given) != 2 * rank:
            raise ModelError(f"pads {given} must have {2 * rank} numbers")
        fill = [0] * (2 - rank)
        pads = [*fill, *given[:rank], *fill, *given[rank:]]
    elif auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        for a in (0, 1):
            span = dilations[a] * (kernel[a] - 1) + 1
            total = max((-(-extents[a] // strides[a]) - 1) * strides[a] + span - extents[a], 0)
            small, large = total // 2, total - total // 2
            pads[a], pads[a + 2] = (small, large) if auto_pad == "SAME_UPPER" else (large, small)
    elif auto_pad != "VALID":
        raise ModelError(f"auto_pad {auto_pad!r} is unknown")
    window = Window(strides, (pads[0], pads[1], pads[2], pads[3]), dilations)
    extra = [_ceil_pad(window, a, extents[a], kernel[a]) if node.attrs.get("ceil_mode", 0) else 0 for a in (0, 1)]
    full = (pads[0], pads[1], pads[2] + extra[0], pads[3] + extra[1])
    return Window(strides, full, dilations), (extra[0], extra[1])


def _ceil_pad(window: Window, axis: int, extent: int, kernel: int) -> int:
    """Padding after the end that makes the usual, rounded-down count of windows the rounded-up one.

    A window that would begin behind the data and the padding before it is left out.
    """
    stride, before = window.strides[axis], window.pads[axis]
    room = extent + before + window.pads[axis + 2]
    span = window.dilations[axis] * (kernel - 1) + 1
    count = -(-(room - span) // stride) + 1
    if (count - 1) * stride >= extent + before:
        count -= 1
    return max((count - 1) * stride + span - room, 0)


def _max_pool(node: ModelNode, terms: Terms) -> Value:
    if node.outputs > 1:
        raise ModelError("the indices of MaxPool are not supported as an output")
    x = value(terms, 0)
    if len(x.shape) == 5:
        return pool_volume(node, x, _max_pool)
    image, rank = _as_image(x), len(x.shape) - 2
    kernel = _spatial(node, "kernel_shape", rank, 0, 1)
    window, _ = _window(node, image.shape[2:], kernel, rank)
    return _like(g.max_pool(image, kernel, window), x)


def _average_pool(node: ModelNode, terms: Terms) -> Value:
    x = value(terms, 0)
    if len(x.shape) == 5:
        return pool_volume(node, x, _average_pool)
    image, rank = _as_image(x), len(x.shape) - 2
    kernel = _spatial(node, "kernel_shape", rank, 0, 1)
    window, extra = _window(node, image.shape[2:], kernel, rank)
    counted = bool(node.attrs.get("count_include_pad", 0))
    y = g.avg_pool(image, kernel, window, count_include_pad=counted)
    if counted and any(extra):
        # Padding counts, but what ceil_mode added after it does not: divide the last windows by what they hold.
        held = [_held(window, a, image.shape[a + 2], kernel[a], extra[a]) for a in (0, 1)]
        y = y * g.constant(math.prod(kernel) / np.outer(held[0], held[1]))
    return _like(y, x)


def _held(window: Window, axis: int, extent: int, kernel: int, extra: int) -> NDArray[np.int64]:
    """For each place of a window, how many of its taps lie in the data or the padding the model asks for."""
    begin = np.arange(window.out_size(axis, extent, kernel)) * window.strides[axis]
    taps = begin[:, None] + np.arange(kernel) * window.dilations[axis]
    end = window.pads[axis] + extent + window.pads[axis + 2] - extra
    return np.asarray((taps < end).sum(axis=1), np.int64)


def _global_pool(pool: Callable[[Value, tuple[int, int], Window], Value]) -> Convert:
    def convert(node: ModelNode, terms: Terms) -> Value:
        del node
        x = value(terms, 0)
        if len(x.shape) == 5:
            flat = g.reshape(x, (*x.shape[:3], x.shape[3] * x.shape[4]))
            return g.reshape(pool(flat, (flat.shape[2], flat.shape[3]), Window()), (*x.shape[:2], 1, 1, 1))
        image = _as_image(x)
        return _like(pool(image, (image.shape[2], image.shape[3]), Window()), x)

    return convert


def _flatten(node: ModelNode, terms: Terms) -> Value:
    x = value(terms, 0)
    axis = node.attrs.get("axis", 1)
    if not -len(x.shape) <= axis <= len(x.shape):
        raise ModelError(f"axis {axis} is out of range")
    return g.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


def _reshape(node: ModelNode, terms: Terms) -> Value:
    """0 keeps a dimension (unless allowzero), -1 is what is left; a batch size written into the model is the batch."""
    x = value(terms, 0)
    target = known(terms, 1)
    if target is None:
        raise ModelError("the new shape is missing")
    shape = [int(d) for d in target.ravel()]
    if not node.attrs.get("allowzero", 0):
        shape = [x.shape[i] if d == 0 else d for i, d in enumerate(shape)]
    if shape and x.shape and x.shape[0] == node.batch and shape[0] == node.fixed_batch:
        shape[0] = node.batch
    if shape.count(-1) > 1 or any(d < 1 for d in shape if d != -1):
        raise ModelError(f"{list(x.shape)} cannot be reshaped to {shape}")
    return g.reshape(x, shape)


def _squeeze(node: ModelNode, terms: Terms) -> Value:
    x = value(terms, 0)
    axes = axes_of(node, terms, len(x.shape))
    gone = [a for a, n in enumerate(x.shape) if n == 1] if axes is None else axes
    if any(x.shape[a] != 1 for a in gone):
        raise ModelError(f"axes {gone} of {list(x.shape)} are not all of size 1")
    return g.reshape(x, [n for a, n in enumerate(x.shape) if a not in gone])


def _unsqueeze(node: ModelNode, terms: Terms) -> Value:
    x = value(terms, 0)
    count = len(node.attrs.get("axes", ())) or getattr(known(terms, 1), "size", 0)
    axes = axes_of(node, terms, len(x.shape) + count) or []
    rest = iter(x.shape)
    return g.reshape(x, [1 if a in axes else next(rest) for a in range(len(x.shape) + len(axes))])


def _transpose(node: ModelNode, terms: Terms) -> Value:
    x = value(terms, 0)
    perm = node.attrs.get("perm", range(len(x.shape))[::-1])
    source = x.node.inputs[0] if x.node.op == "cast" else None
    if source is not None and source.type.dtype == "float32":  # only float32 is moved: one-hot rows become whole later
        return g.cast(g.transpose(source, perm), x.type.dtype)
    return g.transpose(x, perm)


def _reduce(function: Callable[..., Value]) -> Convert:
    def convert(node: ModelNode, terms: Terms) -> Value:
        x = value(terms, 0)
        axes = axes_of(node, terms, len(x.shape))
        if not axes and node.attrs.get("noop_with_empty_axes", 0):
            return x
        return function(x, axes or None, keepdims=bool(node.attrs.get("keepdims", 1)))

    return convert


def _conv_transpose(node: ModelNode, terms: Terms) -> Value:
    """The x-gradient of a convolution, whose output is this node's input."""
    x, w = value(terms, 0), value(terms, 1)
    if len(x.shape) == 5:
        y = conv_transpose_volume(node, x, w)
        return y if len(terms) < 3 or terms[2] is None else y + g.reshape(value(terms, 2), (y.shape[1], 1, 1, 1))
    x4, w4, rank = _as_image(x), _as_image(w), len(x.shape) - 2
    groups = int(node.attrs.get("group", 1))
    strides, dilations = _spatial(node, "strides", rank, 1, 1), _spatial(node, "dilations", rank, 1, 1)
    extra = _spatial(node, "output_padding", rank, 0, 0)
    spans = [dilations[a] * (w4.shape[a + 2] - 1) + 1 for a in (0, 1)]
    full = [strides[a] * (x4.shape[a + 2] - 1) + extra[a] + spans[a] for a in (0, 1)]
    pads = _transposed_pads(node, full, strides, x4.shape[2:], rank)
    height, width = (_as_told(node, a, rank) or full[a] - pads[a] - pads[a + 2] for a in (0, 1))
    shape = (x.shape[0], w.shape[1] * groups, height, width)
    y = g.conv_grad_x(x4, w4, shape, Window(strides, pads, dilations), groups)
    if len(terms) > 2 and terms[2] is not None:
        y = y + g.reshape(value(terms, 2), (shape[1], 1, 1))
    return _like(y, x)


def _as_told(node: ModelNode, axis: int, rank: int) -> int | None:
    """The attribute output_shape along an axis; it may reach further than the windows do."""
    given = node.attrs.get("output_shape")
    return None if not given else ([1] * (2 - rank) + [int(n) for n in given][-rank:])[axis]


def _transposed_pads(
    node: ModelNode, full: Sequence[int], strides: Sequence[int], extents: Sequence[int], rank: int
) -> tuple[int, int, int, int]:
    """What to take off the whole result: given, or so that the wanted output remains."""
    auto_pad, wanted = node.attrs.get("auto_pad", "NOTSET"), node.attrs.get("output_shape")
    if auto_pad == "NOTSET" and wanted is None:
        given = [int(p) for p in node.attrs.get("pads", [0] * (2 * rank))]
        fill = [0] * (2 - rank)
        top, left, bottom, right = [*fill, *given[:rank], *fill, *given[rank:]]
        return top, left, bottom, right
    size = [_as_told(node, a, rank) or extents[a] * strides[a] for a in (0, 1)]
    if wanted is None and auto_pad == "VALID":
        size = list(full)
    total = [max(f - n, 0) for f, n in zip(full, size, strict=True)]
    before = [t // 2 if auto_pad == "SAME_UPPER" else t - t // 2 for t in total]
    return before[0], before[1], total[0] - before[0], total[1] - before[1]


CONVERTERS: dict[str, Convert] = {
    "Add": _binary(g.add),
    "AveragePool": _average_pool,
    "Constant": _constant,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool(g.avg_pool),
    "GlobalMaxPool": _global_pool(g.max_pool),
    "Identity": _identity,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "Mul": _binary(g.mul),
    "ReduceMean": _reduce(g.mean),
    "ReduceSum": _reduce(g.sum),
    "Relu": _relu,
    "Reshape": _reshape,
    "Shape": _shape,
    "Squeeze": _squeeze,
    "Sub": _binary(g.sub),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
