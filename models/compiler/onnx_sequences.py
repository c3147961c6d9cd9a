"""Sequences of tensors in ONNX: a split into pieces of which some are picked is slices of the whole.

torch's newer exporter writes `split`, `chunk` and `unbind` so. What else may be done with a sequence has no meaning in
a plan, so such nodes stay and are refused by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx.numpy_helper import from_array, to_array


@dataclass(frozen=True)
class Pieces:
    """A split: the node, the axis, one size for all pieces or one for each, whether a piece keeps the axis."""

    node: onnx.NodeProto
    axis: int
    sizes: tuple[int, ...]
    even: bool
    keep: bool

    def bounds(self, index: int) -> tuple[int, int]:
        """Where piece `index` begins and ends along the axis."""
        start = index * self.sizes[0] if self.even else sum(self.sizes[:index])
        return start, start + (self.sizes[0] if self.even else self.sizes[index])


def without_sequences(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with slices in place of splits whose pieces are picked by known numbers."""
    graph = proto.graph
    known = _known(graph)
    splits = {p.node.output[0]: p for p in (_pieces(n, known) for n in graph.node) if p is not None}
    readers: dict[str, list[onnx.NodeProto]] = {name: [] for name in splits}
    for node in graph.node:
        for name in set(node.input) & readers.keys():
            readers[name].append(node)
    returned = {o.name for o in graph.output}
    splits = {n: p for n, p in splits.items() if n not in returned and all(_picks(r, n, p, known) for r in readers[n])}
    if not splits:
        return proto
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    del made.graph.node[:]
    for node in graph.node:
        if node.op_type == "SequenceAt" and node.input[0] in splits:
            made.graph.node.extend(_slice(node, splits[node.input[0]], int(known[node.input[1]])))
        elif not (node.output and node.output[0] in splits):
            made.graph.node.append(node)
    return made


def _known(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Whole numbers that stand in the model, by name; only those that sizes and places can be."""
    tensors = {t.name: t for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            tensors[node.output[0]] = node.attribute[0].t
    whole = (onnx.TensorProto.INT32, onnx.TensorProto.INT64)
    return {n: to_array(t) for n, t in tensors.items() if t.data_type in whole and len(t.dims) < 2}


def _pieces(node: onnx.NodeProto, known: Mapping[str, np.ndarray]) -> Pieces | None:
    """How a node splits; None of another node, or where that is not known."""
    if node.op_type != "SplitToSequence":
        return None
    told = {a.name: int(a.i) for a in node.attribute}
    if len(node.input) < 2 or not node.input[1]:
        return Pieces(node, told.get("axis", 0), (1,), even=True, keep=bool(told.get("keepdims", 1)))
    split = known.get(node.input[1])
    if split is None or not split.size or split.min() < 1:
        return None
    return Pieces(node, told.get("axis", 0), tuple(int(n) for n in split.ravel()), even=split.ndim == 0, keep=True)


def _picks(node: onnx.NodeProto, name: str, pieces: Pieces, known: Mapping[str, np.ndarray]) -> bool:
    """Whether a reader of a sequence takes one piece of it, counted from the start."""
    if node.op_type != "SequenceAt" or node.input[0] != name or node.input[1] not in known:
        return False
    index = known[node.input[1]]
    return index.size == 1 and int(index) >= 0 and (pieces.even or int(index) < len(pieces.sizes))


def _slice(node: onnx.NodeProto, pieces: Pieces, index: int) -> list[onnx.NodeProto]:
    """One piece under the name of what picked it."""
    name, cut = node.output[0], node.output[0] if pieces.keep else f"{node.output[0]}/kept"
    start, end = pieces.bounds(index)
    operands = {f"{name}/start": start, f"{name}/end": end, f"{name}/axis": pieces.axis}
    nodes = [_constant(key, number) for key, number in operands.items()]
    label = node.name or pieces.node.name
    nodes.append(onnx.helper.make_node("Slice", [pieces.node.input[0], *operands], [cut], name=label))
    if not pieces.keep:
        nodes.append(onnx.helper.make_node("Squeeze", [cut, f"{name}/axis"], [name], name=label))
    return nodes


def _constant(name: str, number: int) -> onnx.NodeProto:
    return onnx.helper.make_node("Constant", [], [name], value=from_array(np.array([number], np.int64), name))
