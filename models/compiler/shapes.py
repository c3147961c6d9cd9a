"""Types, and the rule by which each operation's outputs get theirs.

A rule takes the types of the inputs (None for an absent optional one) and the attributes, and answers the types of
the outputs or raises CompileError. Rules are the first line of each row in ops.OPS.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from models.compiler.errors import CompileError

MAX_DIMENSIONS = 6  # what a tensor record of the plan holds
MAX_BYTES = 4 << 30  # the arena's cap; a larger tensor could not be placed
MAX_EXTENT = 65535  # of a window's settings and a pool's kernel; the plan's readers enforce it


@dataclass(frozen=True)
class Type:
    """Element type (NumPy's name) and shape of a value."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements, without padding."""
        return self.size * np.dtype(self.dtype).itemsize

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


@dataclass(frozen=True)
class Window:
    """Where a two-dimensional window of a convolution or a pool is laid; pads are (top, left, bottom, right)."""

    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        positive, pads = (*self.strides, *self.dilations), self.pads
        if min(positive) < 1 or min(pads) < 0 or max(*positive, *pads) > MAX_EXTENT:
            raise CompileError(f"{self}: strides and dilations must be 1 to {MAX_EXTENT}, pads 0 to {MAX_EXTENT}")

    def out_size(self, axis: int, extent: int, kernel: int) -> int:
        """Number of places of the window along `axis` (0 down, 1 across) over `extent` elements."""
        span = self.dilations[axis] * (kernel - 1) + 1
        room = extent + self.pads[axis] + self.pads[axis + 2] - span
        return room // self.strides[axis] + 1 if room >= 0 else 0


Types = Sequence[Type | None]
Attrs = Mapping[str, Any]
Infer = Callable[[Types, Attrs], tuple[Type, ...]]


def fail(op: str, types: Types, why: str) -> NoReturn:
    """Raise CompileError naming the operation and what it was given."""
    raise CompileError(f"{op}({', '.join(str(t) for t in types)}): {why}")


def checked(op: str, types: Types, dtype: str, shape: Sequence[int]) -> Type:
    """A type within the caps of the plan format, or CompileError."""
    out = Type(dtype, tuple(int(d) for d in shape))
    if len(out.shape) > MAX_DIMENSIONS:
        fail(op, types, f"{len(out.shape)} dimensions, at most {MAX_DIMENSIONS} are possible")
    if any(d < 1 for d in out.shape):
        fail(op, types, f"the result {list(out.shape)} has an empty dimension; the input is too small for this layer")
    if out.nbytes > MAX_BYTES:
        fail(op, types, f"the result takes {out.nbytes} bytes, more than {MAX_BYTES}")
    return out


def floats(op: str, types: Types, ranks: Sequence[int | None]) -> list[Type]:
    """The present inputs, checked to be float32 of the given ranks (None: any rank)."""
    present = [t for t in types if t is not None]
    for t, rank in zip(present, ranks, strict=False):
        if t.dtype != "float32":
            fail(op, types, f"takes float32, got {t.dtype}")
        if rank is not None and len(t.shape) != rank:
            fail(op, types, f"takes {rank} dimensions, got {list(t.shape)}")
    return present


def broadcast_shape(op: str, types: Types) -> tuple[int, ...]:
    """NumPy's broadcasting of the input shapes."""
    try:
        return tuple(int(d) for d in np.broadcast_shapes(*(t.shape for t in types if t is not None)))
    except ValueError:
        fail(op, types, "the shapes do not broadcast")


def elementwise(op: str) -> Infer:
    """Rule of a float32 operation with NumPy broadcasting."""

    def infer(types: Types, attrs: Attrs) -> tuple[Type, ...]:
        del attrs
        floats(op, types, [None] * len(types))
        return (checked(op, types, "float32", broadcast_shape(op, types)),)

    return infer


def same(op: str) -> Infer:
    """Rule of an operation whose inputs and output all have one type."""

    def infer(types: Types, attrs: Attrs) -> tuple[Type, ...]:
        del attrs
        first = types[0]
        if first is None or any(t != first for t in types):
            fail(op, types, "all inputs must have one type")
        return (first,)

    return infer


def reshape(types: Types, attrs: Attrs) -> tuple[Type, ...]:
    """Same elements in another shape."""
    (x,) = types
    assert x is not None
    out = checked("reshape", types, x.dtype, attrs["shape"])
    if out.size != x.size:
        fail("reshape", types, f"{x.size} elements do not fit {list(out.shape)}")
    return (out,)


def broadcast(types: Types, attrs: Attrs) -> tuple[Type, ...]:
    """Repeat x to a shape, by NumPy's rule."""
    (x,) = floats("broadcast", types, [None])
    out = checked("broadcast", types, x.dtype, attrs["shape"])
    if broadcast_shape("broadcast", (x, out)) != out.shape:
        fail("broadcast", types, f"does not broadcast to {list(out.shape)}")
    return (out,)


def transpose(types: Types, attrs: Attrs) -> tuple[Type, ...]:
    """Axis i of the result is axis axes[i] of x."""
    (x,) = floats("transpose", types, [None])
    axes = attrs["axes"]
    if sorted(axes) != list(range(len(x.shape))):
        fail("transpose", types, f"axes {list(axes)} are no permutation")
    return (Type(x.dtype, tuple(x.shape[a] for a in axes)),)


def reduce_sum(types: Types, attrs: Attrs) -> tuple[Type, ...]:
    """Sum over `axes` (non-negative, sorted), dropped or kept as 1."""
    (x,) = floats("reduce_sum", types, [None])
    axes = attrs["axes"]
    if any(not 0 <= a < len(x.shape) for a in axes):
        fail("reduce_sum", types, f"axes {list(axes)} are out of range")
    kept = tuple(1 if a in axes else d for a, d in enumerate(x.shape))
    return (Type(x.dtype, kept if attrs["keepdims"] else tuple(d for a, d in enumerate(x.shape) if a not in axes)),)


def gemm(types: Types, attrs: Attrs) -> tuple[Type, ...]:
    """op(a) (M, K) @ op(b) (K, N) + bias (N)."""
    a, b, *bias = floats("gemm", types, [2, 2, 1])
    m, k = a.shape[::-1] if attrs["trans_a"] else a.shape
    k2, n = b.shape[::-1] if attrs["trans_b"] else b.shape
    if k != k2:
        fail("gemm", types, f"inner dimensions {k} and {k2} differ")
    if bias and bias[0].shape != (n,):
        fail("gemm", types, f"the bias must have {n} elements")
    return (checked("gemm", types, "float32", (m, n)),)


def conv(types: Types, attrs: Attrs) -> tuple[Type, ...]:
    """Cross-correlation of x (N, C, H, W) with w (O, C / groups, KH, KW), plus bias (O)."""
    x, w, *bias = floats("conv", types, [4, 4, 1])
    groups, window = attrs["groups"], attrs["window"]
    (n, c, h, width), (o, per_group, kh, kw) = x.shape, w.shape
    if groups < 1 or c != per_group * groups or o % groups:
        fail("conv", types, f"channels do not fit {groups} groups")
    if bias and bias[0].shape != (o,):
        fail("conv", types, f"the bias must have {o} elements")
    return (checked("conv", types, "float32", (n, o, window.out_size(0, h, kh), window.out_size(1, width, kw))),)


def conv_grad_x(types: Types, attrs: Attrs) -> tuple[Type, ...]:
    """Gradient with respect to x, which has the attribute's `shape`; inputs d_y, w."""
    d_y, w = floats("conv_grad_x", types, [4, 4])
    x = Type("float32", attrs["shape"])
    if conv((x, w), attrs)[0] != d_y:
        fail("conv_grad_x", types, f"d_y does not belong to an input {x}")
    return (x,)


def conv_grad_w(types: Types, attrs: Attrs) -> tuple[Type, ...]:
    """Gradient with respect to w, which has the attribute's `shape`; inputs d_y, x."""
    d_y, x = floats("conv_grad_w", types, [4, 4])
    w = Type("float32", attrs["shape"])
    if conv((x, w), attrs)[0] != d_y:
        fail("conv_grad_w", types, f"d_y does not belong to a weight {w}")
    return (w,)


def _covers(window: Window, axis: int, extent: int, kernel: int) -> bool:
    """Whether every window holds an element: the maximum and the mean of nothing do not exist.

    With the dilation within the data, a window can only miss them by ending before or beginning behind.
    """
    before, step = window.pads[axis], window.dilations[axis]
    last = (window.out_size(axis, extent, kernel) - 1) * window.strides[axis]
    return (kernel == 1 or step <= extent) and before <= (kernel - 1) * step and last - before < extent


def avgpool(types: Types, attrs: Attrs) -> tuple[Type, ...]:
    """Mean over each window of x (N, C, H, W)."""
    (x,) = floats("pool", types, [4])
    window, (kh, kw) = attrs["window"], attrs["kernel"]
    n, c, h, w = x.shape
    if min(kh, kw) < 1 or max(kh, kw) > MAX_EXTENT:
        fail("pool", types, f"kernel {[kh, kw]} must be 1 to {MAX_EXTENT}")
    if not (_covers(window, 0, h, kh) and _covers(window, 1, w, kw)):
        fail("pool", types, f"kernel {[kh, kw]} with pads {list(window.pads)} has windows of padding alone")
    return (checked("pool", types, "float32", (n, c, window.out_size(0, h, kh), window.out_size(1, w, kw))),)


def maxpool(types: Types, attrs: Attrs) -> tuple[Type, ...]:
    """Maximum over each window, and the place in the window where it was first found."""
    (y,) = avgpool(types, attrs)
    kh, kw = attrs["kernel"]
    return (y, Type("uint8" if kh * kw <= 256 else "int32", y.shape))


def maxpool_grad(types: Types, attrs: Attrs) -> tuple[Type, ...]:
    """Gradient with respect to x, which has the attribute's `shape`; inputs d_y, index."""
    d_y, index = types
    x = Type("float32", attrs["shape"])
    if maxpool((x,), attrs) != (d_y, index):
        fail("maxpool_grad", types, f"the inputs do not belong to a pool of {x}")
    return (x,)


def avgpool_grad(types: Types, attrs: Attrs) -> tuple[Type, ...]:
    """Gradient with respect to x, which has the attribute's `shape`; input d_y."""
    x = Type("float32", attrs["shape"])
    if avgpool((x,), attrs) != tuple(types):
        fail("avgpool_grad", types, f"d_y does not belong to a pool of {x}")
    return (x,)


def softmax_xent(types: Types, attrs: Attrs) -> tuple[Type, ...]:
    """The part of the mean cross-entropy that logits (B, C) have in all int32 labels (L), and the probabilities.

    Attribute first_row: the row of the labels where those of the logits begin; without it L is B.
    """
    logits, labels = types
    assert logits is not None
    if logits.dtype != "float32" or len(logits.shape) != 2:
        fail("softmax_xent", types, "logits must be float32 (batch, classes)")
    first = attrs.get("first_row")
    if first is None and labels != Type("int32", logits.shape[:1]):
        fail("softmax_xent", types, f"labels must be int32 [{logits.shape[0]}]")
    if first is not None:
        _check_rows(types, first, logits.shape[0])
    return (Type("float32", ()), logits)


def _check_rows(types: Types, first: int, rows: int) -> None:
    labels = types[1]
    assert labels is not None
    if labels.dtype != "int32" or len(labels.shape) != 1 or not 0 <= first <= labels.shape[0] - rows:
        fail("softmax_xent", types, f"labels must be int32 with rows {first} to {first + rows}")


def softmax_xent_grad(types: Types, attrs: Attrs) -> tuple[Type, ...]:
    """Gradient with respect to the logits; inputs probs, labels, d_loss."""
    probs, labels, d_loss = types
    if softmax_xent((probs, labels), attrs) != (d_loss, probs):
        fail("softmax_xent_grad", types, "d_loss must be a float32 scalar")
    assert probs is not None
    return (probs,)


def sampled_softmax(types: Types, attrs: Attrs) -> tuple[Type, ...]:
    """Loss and its gradients; inputs features (B, D), int32 labels, rows (S, D), correction (S)?.

    Attributes scale (0: dot products), own (leading classes that only the examples see whose label they are), and
    first_row as in softmax_xent.
    """
    features, labels, rows, correction = types
    assert features is not None
    assert rows is not None
    matrices = all(t.dtype == "float32" and len(t.shape) == 2 for t in (features, rows))
    if not matrices or features.shape[1] != rows.shape[1]:
        fail("sampled_softmax", types, "features and rows must be float32 (batch, width) and (classes, width)")
    if correction not in (None, Type("float32", rows.shape[:1])):
        fail("sampled_softmax", types, f"corrections must be float32 [{rows.shape[0]}]")
    if not 0 <= attrs["own"] <= rows.shape[0] or not 0 <= attrs["scale"] < math.inf:
        fail("sampled_softmax", types, f"own must be in 0..{rows.shape[0]}, scale finite and not negative")
    loss, _ = softmax_xent((Type("float32", (features.shape[0], rows.shape[0])), labels), attrs)
    return loss, features, rows


def sgd(types: Types, attrs: Attrs) -> tuple[Type, ...]:
    """New parameter, and new velocity where there is one; inputs param, grad, lr, velocity?."""
    del attrs
    param, grad, lr, *velocity = types
    assert param is not None
    if grad != param or lr != Type("float32", ()) or any(v not in (None, param) for v in velocity):
        fail("sgd", types, "gradient and velocity must have the parameter's type, lr must be a scalar")
    return (param,) * (2 if any(v is not None for v in velocity) else 1)


def gemm_sgd(types: Types, attrs: Attrs) -> tuple[Type, ...]:
    """As sgd by the product of a and b; inputs a, b, param, lr, velocity?."""
    a, b, param, *rest = types
    return sgd((param, *gemm((a, b), attrs), *rest), attrs)


def adamw(types: Types, attrs: Attrs) -> tuple[Type, ...]:
    """New parameter and moments; inputs param, grad, lr, m, v, t."""
    del attrs
    param, grad, lr, m, v, t = types
    assert param is not None
    if not grad == m == v == param or not lr == t == Type("float32", ()) or param.dtype != "float32":
        fail("adamw", types, "gradient and moments must have the parameter's type, lr and t must be scalars")
    return (param,) * 3


def blend(types: Types, attrs: Attrs) -> tuple[Type, ...]:
    """The new value of a slot; inputs slot, value."""
    del attrs
    slot, value = floats("blend", types, [None, None])
    if slot != value:
        fail("blend", types, "the value must have the slot's type")
    return (slot,)
