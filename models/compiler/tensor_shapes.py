"""The types of what moves, picks and maps elements; the rules of the other operations are in shapes.py."""

from models.compiler.shapes import Attrs, Type, Types, broadcast_shape, checked, fail, floats


def _one(types: Types) -> Type:
    (x,) = types
    assert x is not None
    return x


def _axis(op: str, types: Types, x: Type, axis: int) -> int:
    if not 0 <= axis < len(x.shape):
        fail(op, types, f"axis {axis} is out of range")
    return axis


def detach(types: Types, attrs: Attrs) -> tuple[Type, ...]:
    """The same value, for which no gradient is asked."""
    del attrs
    return (_one(types),)


def minmax(types: Types, attrs: Attrs) -> tuple[Type, ...]:
    """Maximum or minimum over `axes` (non-negative, sorted), dropped or kept as 1."""
    (x,) = floats("minmax", types, [None])
    axes = attrs["axes"]
    for a in axes:
        _axis("minmax", types, x, a)
    kept = tuple(1 if a in axes else d for a, d in enumerate(x.shape))
    return (Type(x.dtype, kept if attrs["keepdims"] else tuple(d for a, d in enumerate(x.shape) if a not in axes)),)


def argminmax(types: Types, attrs: Attrs) -> tuple[Type, ...]:
    """Where the first extreme lies along `axis`, which is dropped."""
    (x,) = floats("argminmax", types, [None])
    axis = _axis("argminmax", types, x, attrs["axis"])
    return (Type("int32", (*x.shape[:axis], *x.shape[axis + 1 :])),)


def topk(types: Types, attrs: Attrs) -> tuple[Type, ...]:
    """The `k` most extreme along `axis`, and their places."""
    (x,) = floats("topk", types, [None])
    axis, k = _axis("topk", types, x, attrs["axis"]), attrs["k"]
    if not 1 <= k <= x.shape[axis]:
        fail("topk", types, f"k {k} must be 1 to {x.shape[axis]}")
    shape = (*x.shape[:axis], k, *x.shape[axis + 1 :])
    return Type("float32", shape), Type("int32", shape)


def strided_copy(types: Types, attrs: Attrs) -> tuple[Type, ...]:
    """A box of x over base, or over a fill value; inputs x, base?. The engine checks the box."""
    x, base = types
    assert x is not None
    out = checked("strided_copy", types, x.dtype, attrs["shape"])
    if x.dtype == "uint8" or (base is not None and base != out):
        fail("strided_copy", types, f"x must be float32 or int32, and base {out}")
    return (out,)


def gather(types: Types, attrs: Attrs) -> tuple[Type, ...]:
    """Elements, or whole rows, of x that an int32 index names along `axis`; inputs x, index."""
    x, index = types
    assert x is not None
    assert index is not None
    axis = _axis("gather", types, x, attrs["axis"])
    if x.dtype != "float32" or index.dtype != "int32":
        fail("gather", types, "takes float32 and an int32 index")
    if not attrs["elements"]:
        return (checked("gather", types, x.dtype, (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])),)
    if len(index.shape) != len(x.shape) or any(
        n != m for a, (n, m) in enumerate(zip(index.shape, x.shape, strict=True)) if a != axis
    ):
        fail("gather", types, f"the index may differ from x along axis {axis} alone")
    return (Type(x.dtype, index.shape),)


def scatter_add(types: Types, attrs: Attrs) -> tuple[Type, ...]:
    """The adjoint of gather, for an x of the attribute's `shape`; inputs d_y, index."""
    d_y, index = types
    x = checked("scatter_add", types, "float32", attrs["shape"])
    if gather((x, index), attrs)[0] != d_y:
        fail("scatter_add", types, f"d_y does not belong to an x {x}")
    return (x,)


def cast(types: Types, attrs: Attrs) -> tuple[Type, ...]:
    """The same numbers in another type."""
    return (checked("cast", types, attrs["dtype"], _one(types).shape),)


def cumsum(types: Types, attrs: Attrs) -> tuple[Type, ...]:
    """Running sums along `axis`."""
    (x,) = floats("cumsum", types, [None])
    _axis("cumsum", types, x, attrs["axis"])
    return (x,)


def matmul(types: Types, attrs: Attrs) -> tuple[Type, ...]:
    """op(a) @ op(b) of the last two axes; the axes before them broadcast."""
    a, b = floats("matmul", types, [None, None])
    if len(a.shape) != len(b.shape) or len(a.shape) < 3:
        fail("matmul", types, "both operands need the same number of dimensions, at least 3")
    m, k = a.shape[:-3:-1] if attrs["trans_a"] else a.shape[-2:]
    k2, n = b.shape[:-3:-1] if attrs["trans_b"] else b.shape[-2:]
    if k != k2:
        fail("matmul", types, f"inner dimensions {k} and {k2} differ")
    batch = broadcast_shape("matmul", (Type("float32", a.shape[:-2]), Type("float32", b.shape[:-2])))
    return (checked("matmul", types, "float32", (*batch, m, n)),)


def fused(types: Types, attrs: Attrs) -> tuple[Type, ...]:
    """What the fusion pass says the results of a map are."""
    del types
    return tuple(attrs["types"])


def random(types: Types, attrs: Attrs) -> tuple[Type, ...]:
    """Random numbers of the attribute's `shape`; inputs seed, step."""
    if list(types) != [Type("float32", ())] * 2:
        fail("random", types, "seed and step must be float32 scalars")
    return (checked("random", types, "float32", attrs["shape"]),)
