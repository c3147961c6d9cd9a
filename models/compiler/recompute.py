"""Computing cheap things twice instead of keeping them: what the backward part reads is made again from less.

The backward part reads values of the forward part, which stay alive in between. What is cheap to compute (elementwise
functions, views, moves) need not be kept if something smaller from which it follows is. Which values to keep is a
minimum cut: every way from an expensive result (a product, a window, a reduction) over cheap operations to a reader in
the backward part has to pass a kept value, and the bytes of the kept values shall be few. Of products only those over
few picked places are repeated, where they are next to nothing of the step: a shortcut that halves width and height
keeps half the bytes. And 1 x 1 convolutions that make many channels of few are, whose results outweigh their work.
"""

from collections.abc import Collection, Sequence

from models.compiler.ir import Node, Value, topological, with_attrs
from models.compiler.min_cut import cheapest_cut
from models.compiler.ops import OPS
from models.compiler.schedule import base
from models.compiler.strided import picked

SHARE = 1 / 24  # of the forward part's multiply-adds: a product of at most so many may be repeated
CHEAP = frozenset(
    (
        "relu",
        "add",
        "sub",
        "mul",
        "unary",
        "binary",
        "where",
        "cast",
        "detach",
        "reshape",
        "broadcast",
        "transpose",
        "strided_copy",
        "copy",
        "gather",
        "random",
    )
)
NARROW = 16  # channels that a convolution reads which is made again sooner than read from beyond the last cache
WIDENING = 4  # how many times as many it makes at least
AGAIN = "again"  # an attribute of repeated operations: no pass may take them for the first ones


def recompute(outputs: Sequence[Value]) -> tuple[Value, ...]:
    """The same step, of which output 0 is the loss, with fewer bytes alive between forward and backward part."""
    order = topological(outputs)
    forward = set(topological(outputs[:1]))
    cheap = _cheap([n for n in order if n in forward])
    kept = _kept([n for n in order if n in forward], cheap, _read_later(order, forward))
    return _repeated(outputs, order, forward, cheap - {v.node for v in kept})


def _cheap(forward: Sequence[Node]) -> set[Node]:
    """What may be made again. Few places of a value are not: all of it would have to be there again for them."""
    most = SHARE * sum(OPS[n.op].multiply_adds(n) for n in forward if n.inputs)
    few = {n for n in forward if picked(n.out())}
    plain = {n for n in forward if n.op in CHEAP and (n not in few or _of_leaf(n))}
    return plain | {n for n in forward if _little(n, few, most) or _widens(n)}


def _of_leaf(node: Node) -> bool:
    return all(v is None or base(v).node.op == "leaf" for v in node.inputs)


def _little(node: Node, few: Collection[Node], most: float) -> bool:
    """Whether a product over few places is of at most so many multiply-adds."""
    x = node.inputs[0] if node.op == "conv" else None
    return x is not None and base(x).node in few and OPS[node.op].multiply_adds(node) <= most


def _widens(node: Node) -> bool:
    """Whether a 1 x 1 convolution makes many channels of few."""
    w = node.inputs[1] if node.op == "conv" else None
    if w is None or w.shape[2:] != (1, 1):
        return False
    outward, inward = w.shape[0] // node.attrs["groups"], w.shape[1]
    return inward <= NARROW and outward >= WIDENING * inward


def _read_later(order: Sequence[Node], forward: Collection[Node]) -> set[Value]:
    """The forward values whose bytes the backward part reads."""
    return {base(v) for n in order if n not in forward for v in n.inputs if v is not None and v.node in forward}


def _kept(forward: Sequence[Node], cheap: Collection[Node], needed: Collection[Value]) -> set[Value]:
    """The values to keep; leaves and constants are there anyway, and a reshape shows the bytes of its input."""
    made = (n for n in forward if n.inputs and n.op != "reshape")
    costs = {Value(n, i): t.nbytes for n in made for i, t in enumerate(n.types)}
    inward = {v: [base(u) for u in v.node.inputs if u is not None] for v in costs if v.node in cheap}
    arcs = [(u, v) for v, operands in inward.items() for u in operands if u in costs]
    return cheapest_cut(costs, arcs, [v for v in costs if v not in inward], [v for v in costs if v in needed])


def _repeated(
    outputs: Sequence[Value], order: Sequence[Node], forward: Collection[Node], repeatable: Collection[Node]
) -> tuple[Value, ...]:
    """The backward part over second copies of `repeatable`."""
    again: dict[Value, Value] = {}
    for node in order:
        inputs = tuple(None if v is None else again.get(v, v) for v in node.inputs)
        ahead = node in forward
        if (ahead and node not in repeatable) or not node.inputs:
            continue
        if ahead:
            made = with_attrs(node, inputs, {AGAIN: True}) if node.op != "reshape" or inputs != node.inputs else node
        else:
            made = node if inputs == node.inputs else with_attrs(node, inputs, {})
        again.update((Value(node, i), Value(made, i)) for i in range(len(node.types)))
    return (outputs[0], *(again.get(v, v) for v in outputs[1:]))
