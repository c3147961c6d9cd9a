"""From a model to a training plan: the passes, in order.

    import -> objective -> simplify -> autodiff of what is trainable -> update rule -> simplify -> fuse ->
    order and place -> emit

Backward work for frozen tensors is never reached from an update, so it never gets into the plan.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import models.compiler.graph as g
from edge_runtime import _core
from models.compiler.autodiff import gradients
from models.compiler.emit import Program, program, write
from models.compiler.errors import CompileError, ModelError
from models.compiler.freeze import select
from models.compiler.fuse import fuse
from models.compiler.ir import Graph, Role, Value, topological
from models.compiler.lower import lower
from models.compiler.ops import OPS
from models.compiler.simplify import simplify
from models.compiler.storage import Layout, Owner, Owners, lay_out

LEARNING_RATE = "lr"
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


@dataclass(frozen=True)
class Sgd:
    """Settings of stochastic gradient descent; they are fixed in the plan, the learning rate is not."""

    momentum: float = 0.9
    weight_decay: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.momentum < 1.0:
            raise CompileError(f"momentum must be in [0, 1), got {self.momentum}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0.0):
            raise CompileError(f"weight_decay must be finite and not negative, got {self.weight_decay}")
        if self.nesterov and not self.momentum:
            raise CompileError("nesterov needs a momentum above 0")


def compile_training(  # noqa: PLR0913 - the settings a user may give
    graph: Graph,
    *,
    trainable: Iterable[str] = ("*",),
    frozen: Iterable[str] = (),
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> Compiled:
    """Compile a classifier with softmax cross-entropy and SGD into a plan.

    Batch columns are "x" and "y" (int32 labels, -1 is left out), the learning rate is the scalar "lr", the
    mean loss the output "loss"; parameters keep their names, the velocity of NAME is "momentum/NAME".

    Args:
        graph: a model whose output 0 is logits (batch, classes).
        trainable: shell patterns over parameter names.
        frozen: patterns of names not to train after all.
        momentum: 0 for none; then there is no velocity either.
        weight_decay: added to the gradient as weight_decay * parameter.
        nesterov: use Nesterov's look-ahead.

    Raises:
        CompileError: settings out of range, patterns that match nothing, an output that is no logits.
        NotDifferentiable: an operation above the shallowest trainable tensor has no gradient.
    """
    logits = graph.outputs[0]
    batch = graph.inputs[0].shape[0]
    if len(logits.shape) != 2 or logits.shape[0] != batch:
        raise ModelError(f"the model's first output must be logits ({batch}, classes), got {list(logits.shape)}")
    if logits.shape[1] == 1:
        raise ModelError("the model has one logit, with which the loss is always 0; two classes need two outputs")
    labels = g.leaf(LABELS, "int32", (batch,))
    loss = g.softmax_cross_entropy(logits, labels)
    rule = Sgd(momentum, weight_decay, nesterov)
    return compile_loss(loss, (*graph.inputs, labels), trainable=trainable, frozen=frozen, rule=rule, notes=graph.notes)


def compile_loss(  # noqa: PLR0913 - as above
    loss: Value,
    batch: Sequence[Value],
    *,
    trainable: Iterable[str] = ("*",),
    frozen: Iterable[str] = (),
    rule: Sgd | None = None,
    notes: tuple[str, ...] = (),
) -> Compiled:
    """Compile any scalar loss written in the graph language; leaves that are not in `batch` are parameters."""
    (loss,) = simplify([loss])
    parameters = _parameters(loss, batch)
    trained = select([p.name for p in parameters], trainable, frozen)
    outputs, owners = _step(loss, [p for p in parameters if p.name in trained], rule or Sgd())
    owners |= {p: Owner(Role.FROZEN, p.name) for p in parameters if p.name not in trained}
    owners |= {v: Owner(Role.BATCH, v.name) for v in batch}
    _check_names(owners)
    layout = lay_out(outputs, owners)
    made = program(layout, owners)
    workspace = _workspace(made)
    plan = write(made, workspace)
    return Compiled(plan, hashlib.sha256(plan).hexdigest(), _report(layout, outputs, owners, workspace, notes))


def _parameters(loss: Value, batch: Sequence[Value]) -> list[Value]:
    """Leaves the loss depends on that are not batch columns, in order of first use."""
    leaves = (node.out() for node in topological([loss]) if node.op == "leaf")
    return [v for v in leaves if v not in batch]


def _step(loss: Value, trained: Sequence[Value], rule: Sgd) -> tuple[tuple[Value, ...], dict[Value, Owner]]:
    """Loss and updates as lowered values, and the owners among them. The deepest tensor is updated first."""
    lr = g.leaf(LEARNING_RATE, "float32", ())
    owners = {lr: Owner(Role.SCALAR, LEARNING_RATE)} | {p: Owner(Role.TRAINED, p.name) for p in trained}
    updates = []
    for parameter, gradient in zip(reversed(trained), reversed(gradients(loss, trained)), strict=True):
        velocity = None
        if rule.momentum:
            name = f"momentum/{parameter.name}"
            velocity = g.leaf(name, "float32", parameter.shape)
            owners[velocity] = Owner(Role.STATE, name)
        new = g.sgd(
            parameter,
            gradient,
            lr,
            velocity,
            momentum=rule.momentum,
            weight_decay=rule.weight_decay,
            nesterov=rule.nesterov,
        )
        updates.append(new[0])
    outputs = lower(simplify(fuse(simplify([loss, *updates]))))
    owners[outputs[0]] = Owner(Role.OUTPUT, LOSS)
    return outputs, owners


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
