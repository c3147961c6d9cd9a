"""Which values hold the examples of a batch side by side, each made of its own example alone.

Only such values can be computed for some examples now and for others later, and kept. The proof goes operation by
operation: a value has an axis that counts examples, or it is not known to have one. An axis longer than the batch holds
the places of the first example, then those of the second, and so on.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence

from models.compiler.ir import Node, Value, topological

Axes = Mapping[Value, int]
MAPS = frozenset(("relu", "add", "sub", "mul", "unary", "binary", "where", "cast", "copy", "detach"))
WINDOWS = frozenset(("conv", "maxpool", "avgpool"))


def example_axes(outputs: Sequence[Value], inputs: Collection[Value], batch: int) -> dict[Value, int]:
    """The axis of each value that counts examples, of the values for which there is a proof.

    Args:
        outputs: the graph.
        inputs: leaves whose first axis is the batch.
        batch: examples in a batch.
    """
    axes = dict.fromkeys(inputs, 0)
    varying = {v.node for v in inputs}
    for node in topological(outputs):
        moving = [i for i, v in enumerate(node.inputs) if v is not None and v.node in varying]
        if not moving:
            continue
        varying.add(node)
        operands = [node.inputs[i] for i in moving]
        if all(v in axes for v in operands):
            axis = _axis(node, {i: axes[v] for i, v in zip(moving, operands, strict=True) if v is not None}, batch)
            if axis is not None:
                axes.update((Value(node, i), axis) for i in range(len(node.types)))
    return axes


def _axis(node: Node, moving: Mapping[int, int], batch: int) -> int | None:
    """The axis of a node's outputs from those of its operands that depend on the batch, by number."""
    if node.op in MAPS or node.op == "broadcast":
        found = _map(node, moving)
    elif node.op in WINDOWS or (node.op == "gemm" and not node.attrs["trans_a"]):
        found = 0 if dict(moving) == {0: 0} else None
    else:
        rule = RULES.get(node.op)
        found = rule(node, moving, batch) if rule else None
    return found if found is not None and node.types[0].shape[found] % batch == 0 else None


def _rank(node: Node, operand: int) -> int:
    value = node.inputs[operand]
    assert value is not None
    return len(value.shape)


def _map(node: Node, moving: Mapping[int, int]) -> int | None:
    """Broadcasting aligns the last axes; every operand must count the same examples along one axis of the result."""
    shape = node.types[0].shape
    if node.op == "copy" and node.inputs[0] is not None and node.inputs[0].shape != shape:
        return None
    places = {axis + len(shape) - _rank(node, i) for i, axis in moving.items()}
    sizes = {node.inputs[i].shape[axis] for i, axis in moving.items()}  # type: ignore[union-attr]
    place = min(places)
    return place if len(places) == 1 and sizes == {shape[place]} else None


def _matmul(node: Node, moving: Mapping[int, int], _batch: int) -> int | None:
    """Along the axes that broadcast, or along the rows of the first operand alone."""
    rank = len(node.types[0].shape)
    if set(moving.values()) <= set(range(rank - 2)):
        return _map(node, moving)
    return rank - 2 if dict(moving) == {0: rank - 2} and not node.attrs["trans_a"] else None


def _reshape(node: Node, moving: Mapping[int, int], batch: int) -> int | None:
    """What lies before the examples must stay before them, as a whole."""
    x = node.inputs[0]
    assert x is not None
    before, shape = math.prod(x.shape[: moving[0]]), node.types[0].shape
    places = [a for a in range(len(shape)) if math.prod(shape[:a]) == before and shape[a] % batch == 0]
    return places[-1] if places else None


def _transpose(node: Node, moving: Mapping[int, int], _batch: int) -> int | None:
    return int(node.attrs["axes"].index(moving[0]))


def _reduced(node: Node, moving: Mapping[int, int], _batch: int) -> int | None:
    axes, rank = node.attrs["axes"], _rank(node, 0)
    if moving[0] in axes:
        return None
    return moving[0] if len(node.types[0].shape) == rank else moving[0] - sum(a < moving[0] for a in axes)


def _argument(node: Node, moving: Mapping[int, int], _batch: int) -> int | None:
    axis = int(node.attrs["axis"])
    return None if moving[0] == axis else moving[0] - (axis < moving[0])


def _along(node: Node, moving: Mapping[int, int], _batch: int) -> int | None:
    return None if moving[0] == node.attrs["axis"] else moving[0]


def _gather(node: Node, moving: Mapping[int, int], _batch: int) -> int | None:
    """Rows of a table by the numbers of each example, or the same places of every example."""
    axis = int(node.attrs["axis"])
    if node.attrs["elements"]:
        return moving[0] if set(moving) == {0, 1} and moving[0] == moving[1] != axis else None
    if set(moving) == {1}:
        return axis + moving[1]
    if set(moving) == {0} and moving[0] != axis:
        return moving[0] + (_rank(node, 1) - 1) * (axis < moving[0])
    return None


def _strided_copy(node: Node, moving: Mapping[int, int], batch: int) -> int | None:
    """Every place of the box must go to the example it comes from."""
    y = node.types[0].shape
    if set(moving) == {1}:  # into what x, the same for all examples, is copied
        return moving[1]
    x = node.inputs[0]
    assert x is not None
    inner_x = math.prod(x.shape[moving[0] :]) // batch  # elements of one example that lie together
    for axis in [moving[1]] if 1 in moving else range(len(y)):
        if y[axis] % batch == 0 and _keeps(node, batch, inner_x, math.prod(y[axis:]) // batch):
            return axis
    return None


def _keeps(node: Node, batch: int, inner_x: int, inner_y: int) -> bool:
    """Whether one axis of the box walks through the examples on both sides, and the others stay within one."""
    box = node.attrs["box"]
    through = [
        i
        for i, (n, x, y) in enumerate(box.axes)
        if n % batch == 0 and (n // batch * x, n // batch * y) == (inner_x, inner_y)
    ]
    if not through:
        return False
    n, *steps = box.axes[through[0]]
    others = [(n // batch, *steps), *box.axes[: through[0]], *box.axes[through[0] + 1 :]]
    return all(
        _within(others, side, box_offset, inner, batch)
        for side, box_offset, inner in ((1, box.x_offset, inner_x), (2, box.y_offset, inner_y))
    )


def _within(axes: Sequence[tuple[int, int, int]], side: int, offset: int, inner: int, batch: int) -> bool:
    """Whether steps along `axes` from `offset` never leave the first example, but for whole batches."""
    reach = offset % (inner * batch)
    for axis in axes:
        size, stride = axis[0], axis[side]
        if stride < 0:
            return False
        reach += 0 if stride % (inner * batch) == 0 else (size - 1) * stride
    return reach < inner


RULES: dict[str, Callable[[Node, Mapping[int, int], int], int | None]] = {
    "matmul": _matmul,
    "reshape": _reshape,
    "transpose": _transpose,
    "reduce_sum": _reduced,
    "minmax": _reduced,
    "argminmax": _argument,
    "cumsum": _along,
    "topk": _along,
    "gather": _gather,
    "strided_copy": _strided_copy,
}
