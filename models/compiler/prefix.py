"""The frozen prefix: what lies below everything trained, as an inference plan of its own.

A model of which only the upper part is trained is cut in two. The prefix plan computes *features* from "x", as the
model does in inference; the training plan takes the features as batch columns and holds no frozen product below its
shallowest trained tensor. A board then keeps no activation of the prefix, may run it on a few examples at a time, and
may keep the features, since each is made of its own example alone.

The cut is the set of values with the fewest bytes behind which no matrix product or convolution of the frozen part
remains: a minimum cut, so that skip connections and branches are handled alike, and what is cheap and makes data
larger is computed behind it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import models.compiler.graph as g
from models.compiler.errors import CompileError
from models.compiler.fold import fold
from models.compiler.ir import Role, Value, depending, substitute, topological
from models.compiler.lower import own
from models.compiler.min_cut import cheapest_cut
from models.compiler.onnx_import import import_onnx
from models.compiler.ops import OPS
from models.compiler.randomness import STEP
from models.compiler.rows import example_axes
from models.compiler.rules import Rule
from models.compiler.simplify import simplify
from models.compiler.storage import Owner
from models.compiler.training import Compiled, Objective, assemble, compile_objective, kernels, objective

FEATURES = "features/"
PREFIX_BATCH = 8
NEVER = 1 << 50  # the cost of what cannot be kept: more than any features


@dataclass(frozen=True)
class Split:
    """A training plan and, where there is one, the plan of the frozen prefix below it.

    Attributes:
        training: its batch columns are those of `features`, and "y".
        prefix: "x" in, outputs of the names of `features`; None where everything is trained, or nothing is spared.
        features: bytes of one example of each column that the training plan takes from the prefix.
        note: why there is no prefix, else "".
    """

    training: Compiled
    prefix: Compiled | None
    features: Mapping[str, int]
    note: str = ""


@dataclass(frozen=True)
class Cut:
    """Where a model is cut: `values` are what the upper part reads of the lower one, `reason` why there are none."""

    values: tuple[Value, ...]
    reason: str = ""


def compile_split(  # noqa: PLR0913 - the settings a user may give
    model: bytes,
    *,
    batch: int,
    trainable: Iterable[str] = ("*",),
    frozen: Iterable[str] = (),
    rule: Rule,
    recompute: bool = True,
    micro_batches: int = 1,
    prefix_batch: int = PREFIX_BATCH,
) -> Split:
    """Compile a classifier whose frozen prefix has a plan of its own.

    Args:
        model: ONNX, as import_onnx.
        batch: examples in a step, or in each of its slices.
        trainable: shell patterns over parameter names.
        frozen: patterns of names not to train after all.
        rule: the update rule.
        recompute: as compile_training.
        micro_batches: as compile_training.
        prefix_batch: examples the prefix takes at a time, at most `batch`: its memory grows with it, its speed hardly.

    Raises:
        CompileError: as compile_training.
    """
    if prefix_batch < 1:
        raise CompileError(f"prefix_batch must be at least 1, got {prefix_batch}")
    trainable, frozen = tuple(trainable), tuple(frozen)
    goal = _simplified(objective(import_onnx(model, batch=batch), trainable, frozen, micro_batches))
    cut = find_cut(goal)
    if cut.reason:
        return Split(compile_objective(goal, rule, recompute=recompute), None, {}, cut.reason)
    (x,), values = goal.inputs, cut.values
    if prefix_batch < batch:
        small = _simplified(objective(import_onnx(model, batch=prefix_batch), trainable, frozen))
        found = find_cut(small).values
        # An operation may take another form for another batch; then the prefix keeps the batch of the training plan.
        if _shape_of(found) == _shape_of(values):
            (x,), values = small.inputs, found
    features = {_name(i): v.type.nbytes // batch for i, v in enumerate(cut.values)}
    above = compile_objective(_above(goal, cut.values), rule, recompute=recompute)
    return Split(above, _inference(x, values), features)


def find_cut(goal: Objective) -> Cut:
    """The cheapest features that spare the training plan every frozen product."""
    (x,) = goal.inputs
    outputs = [goal.loss, *(new for _, new in goal.updates)]
    order = topological(outputs)
    trained = [node.out() for node in order if node.op == "leaf" and node.attrs["name"] in goal.trained]
    upper, varying = depending(outputs, [*trained, goal.labels, *goal.counting, STEP]), depending(outputs, [x])
    lower = [node for node in order if node in varying and node not in upper]
    products = [node for node in lower if node.inputs and OPS[node.op].multiply_adds(node)]
    if not products:
        return Cut((), "no convolution or matrix product lies below everything that is trained")
    axes = example_axes(outputs, [x], x.shape[0])
    values = [Value(node, i) for node in lower for i in range(len(node.types))]
    read = {v for node in order if node in upper for v in node.inputs} | set(outputs)
    arcs = [(u, v) for v in values for u in v.node.inputs if u is not None and u.node in varying]
    cut = cheapest_cut(
        {v: v.type.nbytes if v == x or _can_be_kept(v, axes) else NEVER for v in values},
        arcs,
        [x, *(node.out() for node in products)],
        [v for v in values if v in read],
    )
    mixed = [v for v in cut if v != x and not _can_be_kept(v, axes)]
    if mixed:
        return Cut((), f"{mixed[0].node.op} {mixed[0].type} may mix the examples of a batch")
    kept = tuple(v for v in values if v in cut and v != x)
    return Cut(kept, "" if kept else "the features would be larger than the examples, and nothing would be spared")


def _can_be_kept(value: Value, axes: Mapping[Value, int]) -> bool:
    return axes.get(value) == 0 and value.type.dtype == "float32"


def _simplified(goal: Objective) -> Objective:
    """The same objective, normalisation by running statistics folded."""
    columns = (*goal.inputs, goal.labels, *goal.counting)
    loss, *moved = simplify(fold(simplify([goal.loss, *(new for _, new in goal.updates)]), columns))
    return replace(goal, loss=loss, updates=tuple(zip((slot for slot, _ in goal.updates), moved, strict=True)))


def _shape_of(values: Sequence[Value]) -> list[tuple[object, ...]]:
    """How values are made, whatever the batch: operations and names in order, and who reads whom."""
    order = topological(values)
    place = {node: i for i, node in enumerate(order)}
    made = [
        (node.op, node.attrs.get("name"), *((place[v.node], v.index) if v is not None else None for v in node.inputs))
        for node in order
    ]
    return [*made, tuple((place[v.node], v.index) for v in values)]


def _name(index: int) -> str:
    return f"{FEATURES}{index}"


def _by_example(value: Value, batch: int) -> tuple[int, ...]:
    """The value's shape with the batch first."""
    return value.shape if value.shape[0] == batch else (batch, value.type.size // batch)


def _above(goal: Objective, cut: Sequence[Value]) -> Objective:
    """The part of an objective above a cut, whose values come as batch columns."""
    (x,) = goal.inputs
    leaves = [g.leaf(_name(i), v.type.dtype, _by_example(v, x.shape[0])) for i, v in enumerate(cut)]
    replaced = {v: g.reshape(leaf, v.shape) for v, leaf in zip(cut, leaves, strict=True)}
    loss, *moved = substitute([goal.loss, *(new for _, new in goal.updates)], replaced)
    reached = set(topological([loss, *moved]))
    updates = tuple(zip((slot for slot, _ in goal.updates), moved, strict=True))
    return replace(goal, loss=loss, inputs=tuple(v for v in (x, *leaves) if v.node in reached), updates=updates)


def _inference(x: Value, values: Sequence[Value]) -> Compiled:
    """The plan that computes the features."""
    outputs = tuple(own(v) for v in kernels([g.reshape(v, _by_example(v, x.shape[0])) for v in values]))
    leaves = [node.out() for node in topological(outputs) if node.op == "leaf"]
    owners = {v: Owner(Role.FROZEN, v.name) for v in leaves if v != x}
    owners |= {x: Owner(Role.BATCH, x.name)}
    owners |= {v: Owner(Role.OUTPUT, _name(i)) for i, v in enumerate(outputs)}
    return assemble(outputs, owners, ())
