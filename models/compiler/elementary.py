"""The functions of the graph language that map, pick and move elements, and short combinations of them.

Truth values are float32: 1 where true, else 0. Indices are int32.
"""

import math
from collections.abc import Sequence

from models.compiler import shapes
from models.compiler import tensor_shapes as ts
from models.compiler.boxes import Box, merged
from models.compiler.ir import Operand, Value, apply, binary, constant
from models.compiler.primitives import mul, reshape, square

# In the order of the plan format's numbers.
UNARY = (
    "exp",
    "log",
    "sqrt",
    "reciprocal",
    "tanh",
    "sigmoid",
    "erf",
    "softplus",
    "abs",
    "sign",
    "floor",
    "ceil",
    "round",
    "sin",
    "cos",
)
BINARY = ("div", "pow", "min", "max", "equal", "less", "less_equal")


def unary(function: str, x: Value) -> Value:
    """f(x) elementwise; `function` is one of UNARY."""
    return apply("unary", shapes.elementwise("unary"), (x,), {"function": function})[0]


def exp(x: Value) -> Value:
    """e^x."""
    return unary("exp", x)


def log(x: Value) -> Value:
    """Natural logarithm."""
    return unary("log", x)


def sqrt(x: Value) -> Value:
    """Square root."""
    return unary("sqrt", x)


def tanh(x: Value) -> Value:
    """Hyperbolic tangent."""
    return unary("tanh", x)


def sigmoid(x: Value) -> Value:
    """1 / (1 + e^-x)."""
    return unary("sigmoid", x)


def softplus(x: Value) -> Value:
    """log(1 + e^x)."""
    return unary("softplus", x)


def abs(x: Value) -> Value:  # noqa: A001 - the language reads like NumPy
    """|x|."""
    return unary("abs", x)


def div(a: Operand, b: Operand) -> Value:
    """Quotient of a and b with NumPy broadcasting."""
    return binary("binary", a, b, {"function": "div"})


def pow(a: Value, b: Operand) -> Value:  # noqa: A001 - as abs
    """Power a^b with NumPy broadcasting; small powers become products and roots."""
    short = {1.0: lambda: a, 2.0: lambda: square(a), 3.0: lambda: mul(square(a), a)}
    short |= {0.5: lambda: sqrt(a), -1.0: lambda: unary("reciprocal", a)}
    if not isinstance(b, Value) and b in short:
        return short[b]()
    return binary("binary", a, b, {"function": "pow"})


def maximum(a: Operand, b: Operand) -> Value:
    """The greater one, with NumPy broadcasting; equal operands share the gradient, a number gets none of it."""
    return binary("binary", a, b, {"function": "max"})


def minimum(a: Operand, b: Operand) -> Value:
    """The smaller one; gradients as those of maximum."""
    return binary("binary", a, b, {"function": "min"})


def equal(a: Operand, b: Operand) -> Value:
    """1 where a equals b, else 0."""
    return binary("binary", a, b, {"function": "equal"})


def less(a: Operand, b: Operand) -> Value:
    """1 where a < b, else 0."""
    return binary("binary", a, b, {"function": "less"})


def less_equal(a: Operand, b: Operand) -> Value:
    """1 where a <= b, else 0."""
    return binary("binary", a, b, {"function": "less_equal"})


def where(condition: Value, a: Operand, b: Operand) -> Value:
    """A where the condition is not 0, else b, with NumPy broadcasting."""
    operands = [v if isinstance(v, Value) else constant(v) for v in (condition, a, b)]
    return apply("where", shapes.elementwise("where"), tuple(operands), {})[0]


def detach(x: Value) -> Value:
    """X itself, taken as a constant by gradients."""
    return apply("detach", ts.detach, (x,), {})[0]


def cast(x: Value, dtype: str) -> Value:
    """The same numbers as float32, int32 or uint8: towards zero, and to the nearest end beyond the range."""
    return x if x.type.dtype == dtype else apply("cast", ts.cast, (x,), {"dtype": dtype})[0]


def over(x: Value, axes: Sequence[int] | None) -> tuple[int, ...]:
    """Axes made non-negative and sorted; all of them where none are given."""
    rank = len(x.shape)
    return tuple(sorted({a + rank if a < 0 else a for a in (range(rank) if axes is None else axes)}))


def _extreme(x: Value, axes: Sequence[int] | None, *, keepdims: bool, smallest: bool) -> Value:
    attrs = {"axes": over(x, axes), "keepdims": keepdims, "smallest": smallest}
    return apply("minmax", ts.minmax, (x,), attrs)[0]


def max(x: Value, axes: Sequence[int] | None = None, *, keepdims: bool = False) -> Value:  # noqa: A001 - as abs
    """Maximum over `axes` (all by default); equal maxima share the gradient."""
    return _extreme(x, axes, keepdims=keepdims, smallest=False)


def min(x: Value, axes: Sequence[int] | None = None, *, keepdims: bool = False) -> Value:  # noqa: A001 - as abs
    """Minimum over `axes` (all by default); equal minima share the gradient."""
    return _extreme(x, axes, keepdims=keepdims, smallest=True)


def argmax(x: Value, axis: int, *, smallest: bool = False) -> Value:
    """Place of the first maximum (or minimum) along `axis`, which is dropped; int32."""
    return apply("argminmax", ts.argminmax, (x,), {"axis": axis % len(x.shape), "smallest": smallest})[0]


def topk(x: Value, k: int, axis: int = -1, *, smallest: bool = False) -> tuple[Value, Value]:
    """The k greatest (or smallest) along `axis`, most extreme first, and their int32 places."""
    values, index = apply("topk", ts.topk, (x,), {"axis": axis % len(x.shape), "k": k, "smallest": smallest})
    return values, index


def cumsum(x: Value, axis: int, *, exclusive: bool = False, reverse: bool = False) -> Value:
    """Running sums along `axis`; without the element itself if exclusive, from the end if reverse."""
    attrs = {"axis": axis % len(x.shape), "exclusive": exclusive, "reverse": reverse}
    return apply("cumsum", ts.cumsum, (x,), attrs)[0]


def gather(x: Value, index: Value, axis: int = 0, *, elements: bool = False) -> Value:
    """Rows of x along `axis` named by an int32 index of any shape; 0 for an index that is not in range.

    With `elements` the index has the rank of x and names one element each (NumPy's take_along_axis).
    """
    return apply("gather", ts.gather, (x, index), {"axis": axis % len(x.shape), "elements": elements})[0]


def scatter_add(d_y: Value, index: Value, shape: tuple[int, ...], axis: int, *, elements: bool) -> Value:
    """The adjoint of gather, for an x of `shape`: every d_y is added to the place its index names."""
    attrs = {"axis": axis, "elements": elements, "shape": shape}
    return apply("scatter_add", ts.scatter_add, (d_y, index), attrs)[0]


def strided_copy(x: Value, box: Box, shape: tuple[int, ...], base: Value | None = None, fill: float = 0.0) -> Value:
    """A tensor of `shape` that is base, or fill, everywhere but in the box, and x there."""
    attrs = {"shape": shape, "fill": fill, "box": Box(box.x_offset, box.y_offset, merged(box.axes))}
    return apply("strided_copy", ts.strided_copy, (x, base), attrs)[0]


def strides(shape: Sequence[int]) -> list[int]:
    """Elements from one place to the next along each axis of a dense tensor."""
    return [math.prod(shape[a + 1 :]) for a in range(len(shape))]


def slice(x: Value, starts: Sequence[int], sizes: Sequence[int], steps: Sequence[int]) -> Value:  # noqa: A001 - as abs
    """`sizes[a]` elements along each axis a, from starts[a] in steps of steps[a], which may be negative."""
    if tuple(sizes) == x.shape and all(
        n == 1 or (s, p) == (0, 1) for n, s, p in zip(sizes, starts, steps, strict=True)
    ):
        return x
    xs, ys = strides(x.shape), strides(sizes)
    axes = [(n, p * sx, sy) for n, p, sx, sy in zip(sizes, steps, xs, ys, strict=True)]
    offset = sum(s * sx for s, sx in zip(starts, xs, strict=True))
    return strided_copy(x, Box(offset, 0, tuple(axes)), tuple(sizes))


def flip(x: Value, axes: Sequence[int]) -> Value:
    """The elements in reverse order along `axes`."""
    turned = over(x, axes)
    starts = [n - 1 if a in turned else 0 for a, n in enumerate(x.shape)]
    return slice(x, starts, x.shape, [-1 if a in turned else 1 for a in range(len(x.shape))])


def split(x: Value, sizes: Sequence[int], axis: int = 0) -> tuple[Value, ...]:
    """Consecutive pieces of the given sizes along `axis`."""
    at, parts, begin = axis % len(x.shape), [], 0
    for size in sizes:
        starts = [begin if a == at else 0 for a in range(len(x.shape))]
        parts.append(slice(x, starts, [*x.shape[:at], size, *x.shape[at + 1 :]], [1] * len(x.shape)))
        begin += size
    return tuple(parts)


def _placed(x: Value, starts: Sequence[int], shape: tuple[int, ...], base: Value | None, fill: float) -> Value:
    """X inside a tensor of `shape`, its first element at `starts`."""
    xs, ys = strides(x.shape), strides(shape)
    offset = sum(s * sy for s, sy in zip(starts, ys, strict=True))
    return strided_copy(x, Box(0, offset, tuple(zip(x.shape, xs, ys, strict=True))), shape, base, fill)


def pad(x: Value, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Value:
    """X with `value` around it."""
    shape = tuple(b + n + a for b, n, a in zip(before, x.shape, after, strict=True))
    return x if shape == x.shape else _placed(x, before, shape, None, value)


def concat(values: Sequence[Value], axis: int = 0) -> Value:
    """The values one after the other along `axis`: each is copied to its place in one result."""
    first = values[0]
    at, begin = axis % len(first.shape), 0
    for v in values:
        if len(v.shape) != len(first.shape) or any(
            n != m for a, (n, m) in enumerate(zip(v.shape, first.shape, strict=True)) if a != at
        ):
            shapes.fail("concat", [v.type for v in values], f"shapes may differ along axis {at} alone")
    shape = (*first.shape[:at], sum(v.shape[at] for v in values), *first.shape[at + 1 :])
    whole: Value | None = None
    for v in values:
        whole = (
            v
            if v.shape == shape
            else _placed(v, [begin if a == at else 0 for a in range(len(shape))], shape, whole, 0.0)
        )
        begin += v.shape[at]
    assert whole is not None
    return whole


def stack(values: Sequence[Value], axis: int = 0) -> Value:
    """The values along a new axis."""
    at = axis % (len(values[0].shape) + 1)
    return concat([reshape(v, (*v.shape[:at], 1, *v.shape[at:])) for v in values], at)


def prod(x: Value, axes: Sequence[int] | None = None, *, keepdims: bool = False) -> Value:
    """Product over `axes`, by halves, so that its gradient is right where an element is 0."""
    at = over(x, axes)
    for axis in at:
        while x.shape[axis] > 1:
            half, odd = divmod(x.shape[axis], 2)
            left, right, *rest = split(x, [half, half, *[1] * odd], axis)
            x = concat([mul(left, right), *rest], axis)
    return x if keepdims else reshape(x, [n for a, n in enumerate(x.shape) if a not in at])
