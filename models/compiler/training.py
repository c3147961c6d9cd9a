"""From a model to a training plan: the passes, in order.

    import -> objective -> simplify -> autodiff of what is trainable -> update rule -> simplify -> fuse ->
    order and place -> emit

Backward work for frozen tensors is never reached from an update, so it never gets into the plan.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import models.compiler.graph as g
from edge_runtime import _core
from models.compiler.autodiff import gradients
from models.compiler.emit import Program, program, write
from models.compiler.errors import ModelError
from models.compiler.fold import fold
from models.compiler.freeze import select, settle
from models.compiler.fuse import fuse
from models.compiler.ir import Graph, Role, Value, substitute, topological
from models.compiler.lower import lower
from models.compiler.ops import OPS
from models.compiler.rules import Rule, Sgd
from models.compiler.simplify import simplify
from models.compiler.storage import Layout, Owner, Owners, lay_out

LABELS = "y"
LOSS = "loss"


@dataclass(frozen=True)
class Report:
    """What a plan costs and does; bytes include alignment.

    Attributes:
        arena_bytes: all memory of a step but the per-thread workspace.
        owned_bytes: the part that tensors, optimiser state, batch, scalars and outputs keep for the whole
        run. temporaries_bytes: the part that activations and gradients share.
        lower_bound_bytes: no placement of this order of operations could make the arena smaller.
        workspace_bytes: scratch of the hungriest kernel, for each thread.
        forward_multiply_adds: products in the matrix products and convolutions up to the loss.
        backward_multiply_adds: those after it.
        operations: kernel calls of one step.
        trained: tensors a step updates.
        frozen: tensors a step only reads.
        notes: what the import changed or left out.
    """

    arena_bytes: int
    owned_bytes: int
    temporaries_bytes: int
    lower_bound_bytes: int
    workspace_bytes: int
    forward_multiply_adds: int
    backward_multiply_adds: int
    operations: int
    trained: tuple[str, ...]
    frozen: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def multiply_adds(self) -> tuple[int, int]:
        """(forward, backward)."""
        return self.forward_multiply_adds, self.backward_multiply_adds


@dataclass(frozen=True)
class Compiled:
    """A plan file, its name, and what it costs."""

    plan: bytes
    sha256: str
    report: Report


def compile_training(  # noqa: PLR0913 - the settings a user may give
    graph: Graph,
    *,
    trainable: Iterable[str] = ("*",),
    frozen: Iterable[str] = (),
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    rule: Rule | None = None,
) -> Compiled:
    """Compile a classifier with softmax cross-entropy and an update rule (SGD by default) into a plan.

    Batch columns are "x" and "y" (int32 labels, -1 is left out), the learning rate is the scalar "lr", the
    mean loss the output "loss"; parameters keep their names, the velocity of NAME is "momentum/NAME".

    Args:
        graph: a model whose output 0 is logits (batch, classes).
        trainable: shell patterns over parameter names.
        frozen: patterns of names not to train after all.
        momentum: 0 for none; then there is no velocity either.
        weight_decay: added to the gradient as weight_decay * parameter.
        nesterov: use Nesterov's look-ahead.
        rule: another update rule; then momentum, weight_decay and nesterov are not looked at.

    Raises:
        CompileError: settings out of range, patterns that match nothing, an output that is no logits.
        NotDifferentiable: an operation above the shallowest trainable tensor has no gradient.
    """
    goal = objective(graph, trainable, frozen)
    return compile_loss(
        goal.loss,
        goal.columns,
        trainable=trainable,
        frozen=frozen,
        rule=rule or Sgd(momentum=momentum, weight_decay=weight_decay, nesterov=nesterov),
        notes=graph.notes,
        updates=goal.updates,
    )


@dataclass(frozen=True)
class Objective:
    """What is minimised, before it is differentiated.

    Attributes:
        loss: mean cross-entropy.
        columns: batch columns, "y" last.
        updates: slots that a step moves without a gradient, and what they become.
        trained: names of the tensors to train.
    """

    loss: Value
    columns: tuple[Value, ...]
    updates: tuple[tuple[Value, Value], ...]
    trained: tuple[str, ...]


def objective(graph: Graph, trainable: Iterable[str], frozen: Iterable[str]) -> Objective:
    """Softmax cross-entropy on a model whose frozen layers are as in inference; raises as compile_training."""
    logits = graph.outputs[0]
    batch = graph.inputs[0].shape[0]
    if len(logits.shape) != 2 or logits.shape[0] != batch:
        raise ModelError(f"the model's first output must be logits ({batch}, classes), got {list(logits.shape)}")
    if graph.last_op in ("Softmax", "LogSoftmax"):
        raise ModelError(f"the model ends with {graph.last_op}, which the loss contains: let it end with its logits")
    if logits.shape[1] == 1:
        raise ModelError("the model has one logit, with which the loss is always 0; two classes need two outputs")
    trained = select([p.name for p in graph.parameters], trainable, frozen)
    graph = settle(graph, trained)
    labels = g.leaf(LABELS, "int32", (batch,))
    loss = g.softmax_cross_entropy(graph.outputs[0], labels)
    # Rows without a label fill up the last batch: they must not enter the statistics of a batch.
    rows = {} if graph.rows is None else {graph.rows: g.labelled_rows(labels)}
    loss, *moved = substitute([loss, *(new for _, new in graph.updates)], rows)
    updates = tuple(zip((slot for slot, _ in graph.updates), moved, strict=True))
    return Objective(loss, (*graph.inputs, labels), updates, trained)


def compile_loss(  # noqa: PLR0913 - as above
    loss: Value,
    batch: Sequence[Value],
    *,
    trainable: Iterable[str] = ("*",),
    frozen: Iterable[str] = (),
    rule: Rule | None = None,
    notes: tuple[str, ...] = (),
    updates: Sequence[tuple[Value, Value]] = (),
) -> Compiled:
    """Compile any scalar loss written in the graph language; leaves that are not in `batch` are parameters.

    `updates` are parameters that a step moves without a gradient, and what they become; they are chosen by
    `trainable` and `frozen` like the others.
    """
    loss, *moved = fold(simplify([loss, *(new for _, new in updates)]), batch)
    targets = dict(zip((slot for slot, _ in updates), moved, strict=True))
    parameters = _parameters([loss, *targets, *moved], batch)
    trained = select([p.name for p in parameters], trainable, frozen)
    learned = [p for p in parameters if p.name in trained and p not in targets]
    outputs, owners = _step(loss, learned, {p: new for p, new in targets.items() if p.name in trained}, rule or Sgd())
    owners |= {p: Owner(Role.FROZEN, p.name) for p in parameters if p.name not in trained}
    owners |= {v: Owner(Role.BATCH, v.name) for v in batch}
    return assemble(outputs, owners, notes)


def assemble(outputs: tuple[Value, ...], owners: Owners, notes: tuple[str, ...]) -> Compiled:
    """Order, place and write a lowered graph; output 0 is what its forward part ends with."""
    _check_names(owners)
    layout = lay_out(outputs, owners)
    made = program(layout, owners)
    workspace = _workspace(made)
    plan = write(made, workspace)
    return Compiled(plan, hashlib.sha256(plan).hexdigest(), _report(layout, outputs, owners, workspace, notes))


def _parameters(outputs: Sequence[Value], batch: Sequence[Value]) -> list[Value]:
    """Leaves the outputs depend on that are not batch columns, in order of first use."""
    leaves = (node.out() for node in topological(outputs) if node.op == "leaf")
    return [v for v in leaves if v not in batch]


def _step(
    loss: Value, learned: Sequence[Value], targets: Mapping[Value, Value], rule: Rule
) -> tuple[tuple[Value, ...], dict[Value, Owner]]:
    """Loss and updates as lowered values, and the owners among them. The deepest tensor is updated first."""
    pairs = list(zip(reversed(learned), reversed(gradients(loss, learned)), strict=True)) if learned else []
    step = rule.updates(pairs)
    owners = step.owners | {p: Owner(Role.TRAINED, p.name) for p in (*learned, *targets)}
    moved = [g.blend(slot, new) for slot, new in targets.items()]
    outputs = lowered([loss, *step.outputs, *moved])
    owners[outputs[0]] = Owner(Role.OUTPUT, LOSS)
    return outputs, owners


def lowered(outputs: Sequence[Value]) -> tuple[Value, ...]:
    """The same values as kernels compute them."""
    return lower(simplify(fuse(simplify(outputs))))


def _check_names(owners: Owners) -> None:
    names = [o.name for o in owners.values()]
    if any("\0" in n for n in names):
        raise ModelError("a tensor's name holds a zero byte; rename it in the model")
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ModelError(
            f"tensor names {', '.join(map(repr, twice))} are taken by the step itself; rename them in the model"
        )


def _workspace(made: Program) -> int:
    """Scratch of the hungriest kernel."""
    sizes = [_core.workspace_bytes(op.opcode, made.shapes(op), list(op.attrs)) for op in made.operations]
    return max(sizes, default=0)


def _report(layout: Layout, outputs: Sequence[Value], owners: Owners, workspace: int, notes: tuple[str, ...]) -> Report:
    forward = set(topological(outputs[:1]))
    products = [(OPS[node.op].multiply_adds(node), node in forward) for node in layout.order]
    by_role = {role: tuple(o.name for o in owners.values() if o.role is role) for role in Role}
    return Report(
        arena_bytes=layout.arena_bytes,
        owned_bytes=layout.owned_bytes,
        temporaries_bytes=layout.arena_bytes - layout.owned_bytes,
        lower_bound_bytes=layout.lower_bound_bytes,
        workspace_bytes=workspace,
        forward_multiply_adds=sum(n for n, ahead in products if ahead),
        backward_multiply_adds=sum(n for n, ahead in products if not ahead),
        operations=len(layout.order),
        trained=by_role[Role.TRAINED],
        frozen=by_role[Role.FROZEN],
        notes=notes,
    )
