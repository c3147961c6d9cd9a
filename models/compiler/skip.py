"""Leaving blocks of a model out: what goes into a block is passed on in place of what comes out.

Layer-wise training (arXiv 2401.11647, section 3) trains a network that grows: the blocks above the present one are not
there yet. A pattern over tensor names names a stretch of the model; its entry and its exit are the nearest places
before and after those tensors that every way from the input to the output passes, and must have one shape.
"""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import onnx

from models.compiler.errors import ModelError
from models.compiler.onnx_import import read_model

DEFAULT_DOMAINS = ("", "ai.onnx")


def without(model: bytes, patterns: Iterable[str]) -> bytes:
    """The same ONNX model without some of its blocks; the tensors of these are gone.

    Args:
        model: A serialised ModelProto with one input.
        patterns: Shell patterns over initializer names, one for each block or stretch of blocks to leave out.

    Raises:
        ModelError: A pattern matches nothing; a stretch is not between two places that all data pass, changes the
            shape, or holds tensors that no pattern names.
    """
    patterns = tuple(patterns)
    if not patterns:
        return model
    proto = onnx.shape_inference.infer_shapes(read_model(model))
    before = {t.name for t in proto.graph.initializer}
    for pattern in patterns:
        _leave_out(proto.graph, pattern)
    _prune(proto.graph)
    gone = before - {t.name for t in proto.graph.initializer}
    unnamed = sorted(name for name in gone if _is_tensor(name, model) and not _matches(name, patterns))
    if unnamed:
        raise ModelError(
            f"leaving out {list(patterns)} would leave out {unnamed} too; name them, or narrow the patterns"
        )
    del proto.graph.value_info[:]
    return bytes(proto.SerializeToString(deterministic=True))


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _is_tensor(name: str, model: bytes) -> bool:
    """Whether an initializer is a parameter, not a setting of some operator."""
    stored = next(t for t in read_model(model).graph.initializer if t.name == name)
    return stored.data_type == onnx.TensorProto.FLOAT and bool(stored.dims)


def _leave_out(graph: onnx.GraphProto, pattern: str) -> None:
    """Have what reads the exit of a stretch read its entry."""
    named = {t.name for t in graph.initializer if fnmatchcase(t.name, pattern)}
    if not named:
        raise ModelError(f"skip pattern {pattern!r} matches no tensor of the model")
    data = _derived(graph, {graph.input[0].name})
    of_block = _derived(graph, named)
    nodes = [node for node in graph.node if any(name in data for name in node.output)]
    readers = [
        i for i, node in enumerate(nodes) if any((n in of_block and n not in data) or n in named for n in node.input)
    ]
    passes = _passes(nodes, graph)
    entry = next((name for i, name in reversed(passes) if readers and i < readers[0] and name not in of_block), None)
    leave = next((name for i, name in passes if readers and i >= readers[-1]), None)
    if entry is None or leave is None or leave == graph.output[0].name:
        raise ModelError(f"{pattern!r} is no stretch between two places that all data pass, so it cannot be left out")
    shapes = _shapes(graph)
    if shapes.get(entry) != shapes.get(leave):
        raise ModelError(
            f"{pattern!r} makes {shapes.get(leave)} of {shapes.get(entry)}; only what keeps the shape can be left out"
        )
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == leave:
                node.input[i] = entry


def _derived(graph: onnx.GraphProto, given: set[str]) -> set[str]:
    """Values that depend on the given ones, these included; nodes of ONNX come in topological order."""
    found = set(given)
    for node in graph.node:
        if any(name in found for name in node.input):
            found.update(name for name in node.output if name)
    return found


def _passes(nodes: Sequence[onnx.NodeProto], graph: onnx.GraphProto) -> list[tuple[int, str]]:
    """Values that are all that later nodes read of earlier ones, with the places of the nodes that make them."""
    outputs = {o.name for o in graph.output}
    last_read: dict[str, int] = {}
    for i, node in enumerate(nodes):
        last_read.update(dict.fromkeys(node.input, i))
    found, open_until = [(-1, graph.input[0].name)], last_read.get(graph.input[0].name, -1)
    for i, node in enumerate(nodes):
        made = [name for name in node.output if name in last_read or name in outputs]
        if open_until <= i and len(made) == 1:
            found.append((i, made[0]))
        open_until = max([open_until, *(last_read.get(name, len(nodes)) for name in made)])
    return found


def _shapes(graph: onnx.GraphProto) -> Mapping[str, tuple[str | int, ...]]:
    """Shapes of the values for which inference knows the rank; a free size is "?"."""
    return {
        info.name: tuple(d.dim_value or "?" for d in info.type.tensor_type.shape.dim)
        for info in (*graph.input, *graph.value_info, *graph.output)
        if info.type.tensor_type.HasField("shape")
    }


def _prune(graph: onnx.GraphProto) -> None:
    """Drop what the outputs do not need."""
    needed = {o.name for o in graph.output}
    kept = []
    for node in reversed(graph.node):
        if any(name in needed for name in node.output):
            kept.append(node)
            needed.update(node.input)
    initializers = [t for t in graph.initializer if t.name in needed]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(initializers)
