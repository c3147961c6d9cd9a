"""From a model to a training plan: the passes, in order.

    import -> objective -> simplify -> strided shortcuts over few places -> autodiff of what is trainable ->
    update rule -> simplify -> fuse -> recompute -> order and place -> emit

Backward work for frozen tensors is never reached from an update, so it never gets into the plan.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from glob import escape
from types import MappingProxyType

import models.compiler.graph as g
from edge_runtime import _core
from models.compiler.autodiff import gradients
from models.compiler.emit import Program, program, write
from models.compiler.errors import CompileError, ModelError
from models.compiler.fold import fold
from models.compiler.freeze import select, settle
from models.compiler.fuse import fuse
from models.compiler.fuse_maps import fuse_maps
from models.compiler.fuse_updates import fuse_updates
from models.compiler.ir import Graph, Node, Role, Value, substitute, topological
from models.compiler.lower import lower, own
from models.compiler.micro_batch import Slices, Total, unroll
from models.compiler.randomness import SEED, STEP, draws
from models.compiler.recompute import recompute as recomputed
from models.compiler.report import Report, report
from models.compiler.rules import Rule, Sgd, Updates
from models.compiler.shallow_sums import shallow_sums
from models.compiler.simplify import simplify
from models.compiler.storage import Owner, Owners, lay_out
from models.compiler.strided import over_few

LABELS = "y"
LOSS = "loss"


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
    slice_peak: bool = False,
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
        slice_peak: run what makes and reads the largest values slice by slice, so that those are never whole; gradients
            of weights are then sums over slices.
        micro_batches: slices of the batch that are worked through one after the other, in the memory of one, before
            the one update; `graph` has the rows of one slice, the plan's batch is that many times larger.
        statistics_of_slices: let batch normalisation take its statistics of each slice by itself. Without that a model
            that needs the statistics of the whole batch is refused when micro_batches is above 1.

    Raises:
        CompileError: settings out of range, patterns that match nothing, an output that is no logits.
        NotDifferentiable: an operation above the shallowest trainable tensor has no gradient.
    """
    rule = rule or Sgd(momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)
    goal = objective(graph, trainable, frozen, micro_batches, statistics_of_slices=statistics_of_slices)
    return compile_objective(goal, rule, recompute=recompute, slice_peak=slice_peak)


@dataclass(frozen=True)
class Objective:
    """What is minimised, before it is differentiated.

    Attributes:
        loss: mean cross-entropy, or a slice's part of it.
        inputs: batch columns of the model, with the rows of a slice.
        labels: int32, of the whole batch.
        updates: slots that a step moves without a gradient, and what they become.
        trained: names of the tensors to train.
        notes: for people.
        micro_batches: slices of the batch.
        counting: with several slices, the leaf that says which rows count, and its value for the whole batch.
    """

    loss: Value
    inputs: tuple[Value, ...]
    labels: Value
    updates: tuple[tuple[Value, Value], ...]
    trained: tuple[str, ...]
    notes: tuple[str, ...] = ()
    micro_batches: int = 1
    counting: Mapping[Value, Value] = field(default_factory=dict)


def objective(
    graph: Graph,
    trainable: Iterable[str],
    frozen: Iterable[str],
    micro_batches: int = 1,
    *,
    statistics_of_slices: bool = False,
) -> Objective:
    """Softmax cross-entropy on a model whose frozen layers are as in inference; raises as compile_training."""
    _check_logits(graph)
    if micro_batches < 1:
        raise CompileError(f"micro_batches must be at least 1, got {micro_batches}")
    trained = select([p.name for p in graph.parameters], trainable, frozen)
    graph = settle(graph, trained)
    labels = g.leaf(LABELS, "int32", (graph.outputs[0].shape[0] * micro_batches,))
    # Rows without a label fill up the last batch: they must not enter the statistics of a batch.
    counting = {} if graph.rows is None else {graph.rows: g.labelled_rows(labels)}
    if micro_batches > 1:
        notes = (*graph.notes, *_statistics_note(graph, statistics_of_slices=statistics_of_slices))
        loss = g.softmax_xent(graph.outputs[0], labels, 0)[0]
        return Objective(loss, graph.inputs, labels, graph.updates, trained, notes, micro_batches, counting)
    loss = g.softmax_cross_entropy(graph.outputs[0], labels)
    loss, *moved = substitute([loss, *(new for _, new in graph.updates)], counting)
    updates = tuple(zip((slot for slot, _ in graph.updates), moved, strict=True))
    return Objective(loss, graph.inputs, labels, updates, trained, graph.notes)


def compile_objective(goal: Objective, rule: Rule, *, recompute: bool = True, slice_peak: bool = False) -> Compiled:
    """The plan of an objective."""
    settings = _Settings(tuple(escape(name) for name in goal.trained), (), rule, recompute, slice_peak)
    if goal.micro_batches == 1:
        return _compile(goal.loss, (*goal.inputs, goal.labels), goal.updates, goal.notes, settings)
    whole = {v: g.leaf(v.name, v.type.dtype, (v.shape[0] * goal.micro_batches, *v.shape[1:])) for v in goal.inputs}
    slices = Slices(goal.micro_batches, {**whole, **goal.counting})
    return _compile(goal.loss, (*whole.values(), goal.labels), goal.updates, goal.notes, settings, slices)


def _check_logits(graph: Graph) -> None:
    logits = graph.outputs[0]
    batch = graph.inputs[0].shape[0]
    if len(logits.shape) != 2 or logits.shape[0] != batch:
        raise ModelError(f"the model's first output must be logits ({batch}, classes), got {list(logits.shape)}")
    if graph.last_op in ("Softmax", "LogSoftmax"):
        raise ModelError(f"the model ends with {graph.last_op}, which the loss contains: let it end with its logits")
    if logits.shape[1] == 1:
        raise ModelError("the model has one logit, with which the loss is always 0; two classes need two outputs")


def needs_batch_statistics(graph: Graph) -> bool:
    """Whether the model's outputs depend on statistics over the rows of a batch."""
    return graph.rows is not None and graph.rows.node in topological(graph.outputs)


def _statistics_note(graph: Graph, *, statistics_of_slices: bool) -> tuple[str, ...]:
    """What slices do to statistics of the batch, or the refusal to do it."""
    if not needs_batch_statistics(graph):
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
    slice_peak: bool = False


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
    columns = [*batch, *(slices.columns if slices else ())]
    loss, *moved = over_few(fold(simplify([loss, *(new for _, new in updates)]), columns))
    targets = dict(zip((slot for slot, _ in updates), moved, strict=True))
    parameters = _parameters([loss, *targets, *moved], columns)
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
    slicing = (slices.count, step.stages) if slices else (1, {})
    slice_peak = settings.slice_peak
    return assemble(step.outputs, owners, notes, repeat=settings.recompute, slicing=slicing, slice_peak=slice_peak)


def assemble(  # noqa: PLR0913 - the settings of the last passes
    outputs: tuple[Value, ...],
    owners: Owners,
    notes: tuple[str, ...],
    *,
    repeat: bool = False,
    slicing: tuple[int, Mapping[Node, int]] = (1, MappingProxyType({})),
    slice_peak: bool = False,
) -> Compiled:
    """Order, place and write what `kernels` made; see lay_out for the settings, and Unrolled.stages for `slicing`."""
    _check_names(owners)
    micro_batches, stages = slicing
    layout = lay_out(outputs, owners, repeat=repeat, stages=stages, slice_peak=slice_peak)
    made = program(layout)
    workspace = _workspace(made)
    plan = write(made, workspace)
    cost = report(
        layout,
        constants_bytes=len(made.constants),
        workspace_bytes=workspace,
        micro_batches=micro_batches,
        recompute=repeat,
        slice_peak=slice_peak,
        notes=notes,
    )
    return Compiled(plan, hashlib.sha256(plan).hexdigest(), cost)


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
        total, *outputs = kernels([loss, *step.outputs, *moved], recompute=settings.recompute)
        total = own(total)
        stages: Mapping[Node, int] = {}
    else:
        loss, *others = kernels([loss, *found, *targets.values()], recompute=settings.recompute)
        moving = tuple(zip(targets, others[len(found) :], strict=True))
        unrolled = unroll(loss, others[: len(found)], moving, slices)
        step, outputs = _updated(parameters, unrolled.gradients, settings.rule)
        outputs += [g.blend(slot, new) for (slot, _), new in zip(moving, unrolled.moved, strict=True)]
        total, stages = unrolled.loss, unrolled.stages
    trained = {p: Owner(Role.TRAINED, p.name) for p in (*learned, *targets)}
    return _Step((total, *outputs), step.owners | trained | {total: Owner(Role.OUTPUT, LOSS)}, stages)


def kernels(outputs: Sequence[Value], *, recompute: bool = False) -> tuple[Value, ...]:
    """Everything rewritten to what kernels do; with `recompute`, output 0 is the loss."""
    simple = simplify(fuse(simplify(shallow_sums(simplify(outputs)))))
    return fuse_updates(lower(fuse_maps(recomputed(simple) if recompute else simple)))


def _updated(parameters: Sequence[Value], totals: Sequence[Total], rule: Rule) -> tuple[Updates, list[Value]]:
    """The update by gradients of which the slices have made what they are made of: their program stays as it is."""
    given = [
        tuple(g.leaf(f"gradient/{p.name}/{i}", v.type.dtype, v.shape) for i, v in enumerate(total.made_of))
        for p, total in zip(parameters, totals, strict=True)
    ]
    found = [total.of(leaves) for total, leaves in zip(totals, given, strict=True)]
    step = rule.updates(tuple(zip(parameters, found, strict=True)))
    made = {
        u: v for total, leaves in zip(totals, given, strict=True) for u, v in zip(leaves, total.made_of, strict=True)
    }
    return step, list(substitute(kernels(step.outputs), made))


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
