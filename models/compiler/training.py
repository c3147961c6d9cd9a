"""From a model to a training plan: the passes, in order.

    import -> objective -> simplify -> autodiff of what is trainable -> update rule -> simplify -> fuse ->
    recompute -> order and place -> emit

Backward work for frozen tensors is never reached from an update, so it never gets into the plan.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import models.compiler.graph as g
from edge_runtime import _core
from models.compiler.autodiff import gradients
from models.compiler.emit import Program, program, write
from models.compiler.errors import CompileError, ModelError
from models.compiler.freeze import select
from models.compiler.fuse import fuse
from models.compiler.ir import Graph, Node, Role, Value, substitute, topological
from models.compiler.lower import lower, own
from models.compiler.micro_batch import Slices, unroll
from models.compiler.ops import OPS
from models.compiler.randomness import SEED, STEP, draws
from models.compiler.recompute import recompute as recomputed
from models.compiler.rules import Rule, Sgd, Updates
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
    recompute: bool = True,
    micro_batches: int = 1,
    statistics_of_slices: bool = False,
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
        recompute: do cheap work twice where that keeps fewer bytes for the backward part; same bits either way.
        micro_batches: slices of the batch that are worked through one after the other, in the memory of one, before
            the one update; `graph` has the rows of one slice, the plan's batch is that many times larger.
        statistics_of_slices: let batch normalisation take its statistics of each slice by itself. Without that a model
            that needs the statistics of the whole batch is refused when micro_batches is above 1.

    Raises:
        CompileError: settings out of range, patterns that match nothing, an output that is no logits.
        NotDifferentiable: an operation above the shallowest trainable tensor has no gradient.
    """
    _check_logits(graph)
    if micro_batches < 1:
        raise CompileError(f"micro_batches must be at least 1, got {micro_batches}")
    rows = graph.outputs[0].shape[0]
    labels = g.leaf(LABELS, "int32", (rows * micro_batches,))
    # Rows without a label fill up the last batch: they must not enter the statistics of a batch.
    counting = {} if graph.rows is None else {graph.rows: g.labelled_rows(labels)}
    settings = _Settings(tuple(trainable), tuple(frozen), rule or Sgd(momentum, weight_decay, nesterov), recompute)
    if micro_batches == 1:
        loss = g.softmax_cross_entropy(graph.outputs[0], labels)
        loss, *moved = substitute([loss, *(new for _, new in graph.updates)], counting)
        updates = tuple(zip((slot for slot, _ in graph.updates), moved, strict=True))
        return _compile(loss, (*graph.inputs, labels), updates, graph.notes, settings)
    notes = (*graph.notes, *_statistics_note(graph, statistics_of_slices))
    whole = {v: g.leaf(v.name, v.type.dtype, (rows * micro_batches, *v.shape[1:])) for v in graph.inputs}
    loss = g.softmax_xent(graph.outputs[0], labels, 0)[0]
    slices = Slices(micro_batches, whole | counting)
    return _compile(loss, (*whole.values(), labels), graph.updates, notes, settings, slices)


def _check_logits(graph: Graph) -> None:
    logits = graph.outputs[0]
    batch = graph.inputs[0].shape[0]
    if len(logits.shape) != 2 or logits.shape[0] != batch:
        raise ModelError(f"the model's first output must be logits ({batch}, classes), got {list(logits.shape)}")
    if graph.last_op in ("Softmax", "LogSoftmax"):
        raise ModelError(f"the model ends with {graph.last_op}, which the loss contains: let it end with its logits")
    if logits.shape[1] == 1:
        raise ModelError("the model has one logit, with which the loss is always 0; two classes need two outputs")


def _statistics_note(graph: Graph, statistics_of_slices: bool) -> tuple[str, ...]:  # noqa: FBT001 - a user's setting
    """What slices do to statistics of the batch, or the refusal to do it."""
    if graph.rows is None or not any(node.out() == graph.rows for node in topological(graph.outputs)):
        return ()
    if statistics_of_slices:
        return ("each micro-batch is normalised by its own statistics, not by those of the whole batch",)
    raise ModelError(
        "the model normalises by statistics of the whole batch, which micro-batches do not have: take "
        "micro_batches = 1, or ask for statistics_of_slices, which trains another network"
    )


@dataclass(frozen=True)
class _Settings:
    trainable: tuple[str, ...]
    frozen: tuple[str, ...]
    rule: Rule
    recompute: bool


def compile_loss(  # noqa: PLR0913 - as above
    loss: Value,
    batch: Sequence[Value],
    *,
    trainable: Iterable[str] = ("*",),
    frozen: Iterable[str] = (),
    rule: Rule | None = None,
    notes: tuple[str, ...] = (),
    updates: Sequence[tuple[Value, Value]] = (),
    recompute: bool = True,
) -> Compiled:
    """Compile any scalar loss written in the graph language; leaves that are not in `batch` are parameters.

    `updates` are parameters that a step moves without a gradient, and what they become; they are chosen by
    `trainable` and `frozen` like the others.
    """
    settings = _Settings(tuple(trainable), tuple(frozen), rule or Sgd(), recompute)
    return _compile(loss, batch, updates, notes, settings)


def _compile(  # noqa: PLR0913, PLR0917 - what the two ways of compiling have in common
    loss: Value,
    batch: Sequence[Value],
    updates: Sequence[tuple[Value, Value]],
    notes: tuple[str, ...],
    settings: _Settings,
    slices: Slices | None = None,
) -> Compiled:
    loss, *moved = simplify([loss, *(new for _, new in updates)])
    targets = dict(zip((slot for slot, _ in updates), moved, strict=True))
    parameters = _parameters([loss, *targets, *moved], [*batch, *(slices.columns if slices else ())])
    trained = select([p.name for p in parameters], settings.trainable, settings.frozen)
    learned = [p for p in parameters if p.name in trained and p not in targets]
    moving = {p: new for p, new in targets.items() if p.name in trained}
    drawn = draws([loss, *moved])
    moving |= {STEP: STEP + 1.0} if drawn else {}
    step = _step(loss, learned, moving, settings, slices)
    owners = dict(step.owners)
    owners |= {p: Owner(Role.FROZEN, p.name) for p in parameters if p.name not in trained}
    owners |= {v: Owner(Role.BATCH, v.name) for v in batch}
    owners |= {SEED: Owner(Role.SCALAR, SEED.name), STEP: Owner(Role.STATE, STEP.name)} if drawn else {}
    _check_names(owners)
    layout = lay_out(step.outputs, owners, repeat=settings.recompute, stages=step.stages)
    made = program(layout)
    workspace = _workspace(made)
    plan = write(made, workspace)
    return Compiled(plan, hashlib.sha256(plan).hexdigest(), _report(layout, workspace, notes))


def _parameters(outputs: Sequence[Value], batch: Sequence[Value]) -> list[Value]:
    """Leaves the outputs depend on that are not batch columns, in order of first use."""
    leaves = (node.out() for node in topological(outputs) if node.op == "leaf")
    return [v for v in leaves if v not in batch and v not in (SEED, STEP)]


@dataclass(frozen=True)
class _Step:
    """The loss and the updates as kernels; the owners among their values; the slices that kernels belong to."""

    outputs: tuple[Value, ...]
    owners: Mapping[Value, Owner]
    stages: Mapping[Node, int]


def _step(
    loss: Value,
    learned: Sequence[Value],
    targets: Mapping[Value, Value],
    settings: _Settings,
    slices: Slices | None = None,
) -> _Step:
    """One step of training. The deepest tensor is updated first."""
    parameters = tuple(reversed(learned))
    found = tuple(reversed(gradients(loss, learned))) if learned else ()
    if slices is None:
        step = settings.rule.updates(tuple(zip(parameters, found, strict=True)))
        moved = [g.blend(slot, new) for slot, new in targets.items()]
        total, *outputs = _kernels([loss, *step.outputs, *moved], recompute=settings.recompute)
        total = own(total)
        stages: Mapping[Node, int] = {}
    else:
        loss, *others = _kernels([loss, *found, *targets.values()], recompute=settings.recompute)
        moving = tuple(zip(targets, others[len(found) :], strict=True))
        unrolled = unroll(loss, others[: len(found)], moving, slices)
        step, outputs = _updated(parameters, unrolled.gradients, settings.rule)
        outputs += [g.blend(slot, new) for (slot, _), new in zip(moving, unrolled.moved, strict=True)]
        total, stages = unrolled.loss, unrolled.stages
    trained = {p: Owner(Role.TRAINED, p.name) for p in (*learned, *targets)}
    return _Step((total, *outputs), step.owners | trained | {total: Owner(Role.OUTPUT, LOSS)}, stages)


def _kernels(outputs: Sequence[Value], *, recompute: bool = False) -> tuple[Value, ...]:
    """Everything rewritten to what kernels do; with `recompute`, output 0 is the loss."""
    simple = simplify(fuse(simplify(outputs)))
    return lower(recomputed(simple) if recompute else simple)


def _updated(parameters: Sequence[Value], sums: Sequence[Value], rule: Rule) -> tuple[Updates, list[Value]]:
    """The update by gradients that kernels have made already: its program is rewritten without theirs."""
    given = {p: g.leaf(f"gradient/{p.name}", "float32", p.shape) for p in parameters}
    step = rule.updates(tuple(given.items()))
    outputs = substitute(_kernels(step.outputs), dict(zip(given.values(), sums, strict=True)))
    return step, list(outputs)


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


def _report(layout: Layout, workspace: int, notes: tuple[str, ...]) -> Report:
    owners = layout.owners
    forward = set(topological([v for v, owner in owners.items() if owner.role is Role.OUTPUT]))
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
