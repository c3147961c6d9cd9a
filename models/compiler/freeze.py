"""Which parameters a step trains, by name patterns, and what freezing the others does to their layers."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from models.compiler.errors import CompileError
from models.compiler.ir import Graph, Node, Value, depending, substitute, topological
from models.compiler.ops import OPS


def select(names: Sequence[str], trainable: Iterable[str], frozen: Iterable[str]) -> tuple[str, ...]:
    """The names to train, in their order: those a `trainable` pattern matches and no `frozen` pattern does.

    Patterns are shell patterns over whole names, upper and lower case distinct: `conv1.*`, `*.bias`.

    Raises:
        CompileError: a pattern matches no name, or no name is left.
    """
    wanted, held = _matched(names, "trainable", trainable), _matched(names, "frozen", frozen)
    chosen = tuple(n for n in names if n in wanted - held)
    if not chosen:
        raise CompileError(f"nothing is left to train; the model's tensors are: {', '.join(names) or 'none'}")
    return chosen


def _below_frozen_products(outputs: Sequence[Value], trained: Sequence[Value]) -> set[Node]:
    """What products read that depend on nothing trained."""
    moving = depending(outputs, trained)
    products = [n for n in topological(outputs) if n.inputs and n not in moving and OPS[n.op].multiply_adds(n)]
    return set(topological([node.out() for node in products]))


def _matched(names: Sequence[str], kind: str, patterns: Iterable[str]) -> set[str]:
    matched: set[str] = set()
    for pattern in patterns:
        hits = {n for n in names if fnmatchcase(n, pattern)}
        if not hits:
            raise CompileError(f"{kind} pattern {pattern!r} matches no tensor; there are: {', '.join(names) or 'none'}")
        matched |= hits
    return matched


def settle(graph: Graph, trained: Collection[str]) -> Graph:
    """The model with every layer of which no tensor is trained as it is in inference, as torch's eval() makes it.

    A batch normalisation takes its running statistics then, and they no longer move. Dropout is left out where a frozen
    convolution or matrix product reads what it makes, and nothing below it is trained: it is a frozen layer's own.
    """
    outputs = [*graph.outputs, *(new for _, new in graph.updates)]
    inner = _below_frozen_products(outputs, [p for p in graph.parameters if p.name in trained])
    still = [
        m
        for m in graph.modes
        if (not any(t.name in trained for t in m.tensors) if m.tensors else m.training.node in inner)
    ]
    for mode in reversed(still):  # the deepest first: what the others are made of is left alone
        outputs = list(substitute(outputs, {mode.training: mode.inference}))
    held = {t for m in still for t in m.tensors}
    kept = len(graph.outputs)
    moved = zip((slot for slot, _ in graph.updates), outputs[kept:], strict=True)
    updates = tuple((slot, new) for slot, new in moved if slot not in held)
    return replace(graph, outputs=tuple(outputs[:kept]), updates=updates, modes=())
