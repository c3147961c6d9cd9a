"""Tensors without elements: nothing computes them, so they are known when a model is read.

A plan has none (every dimension is 1 or more). Exporters leave them behind: a cache of length 0 that is concatenated to
the keys, a slice beyond the end, a parameter of no rows.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from models.compiler.errors import ModelError
from models.compiler.ir import Value
from models.compiler.onnx_nodes import Term

Array = NDArray[Any]
# Operators whose results are no larger than the sizes of what they read: no operand tells them a size of its own.
BOUNDED = frozenset(
    [
        *(
            "Abs",
            "Add",
            "Cast",
            "Concat",
            "Div",
            "Exp",
            "Flatten",
            "Gather",
            "Identity",
            "Log",
            "MatMul",
            "Mul",
            "Neg",
            "Pow",
        ),
        *(
            "ReduceL1",
            "ReduceL2",
            "ReduceLogSum",
            "ReduceLogSumExp",
            "ReduceMax",
            "ReduceMean",
            "ReduceMin",
            "ReduceProd",
        ),
        *("ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Sigmoid", "Slice", "Softmax", "Split", "Sqrt", "Squeeze"),
        *("Sub", "Tanh", "Transpose", "Trilu", "Unsqueeze", "Where"),
    ]
)
MAX_ELEMENTS = 1 << 20  # of known operands, a dimension of 0 counted as 1


def is_empty(term: Term | None) -> bool:
    """Whether an operand is data without elements; whole numbers tell an operator what to do, none of them too."""
    return isinstance(term, np.ndarray) and term.size == 0 and term.dtype.kind == "f"


def evaluate(node: onnx.NodeProto, inputs: Sequence[Array], opset: int) -> list[Array]:
    """Every output of a node whose present operands are known, by the onnx package's reference evaluator."""
    given = dict(zip([name for name in node.input if name], inputs, strict=True))
    function = onnx.helper.make_function(
        "known", "known", list(given), list(node.output), [node], [onnx.helper.make_opsetid("", opset)]
    )
    results = ReferenceEvaluator(function).run(None, given, attributes={})
    assert isinstance(results, list)
    return [np.asarray(result) for result in results]


def with_empty(node: onnx.NodeProto, inputs: Sequence[Term | None], opset: int) -> list[Array]:
    """The outputs of a node that reads a tensor without elements.

    They are known where every operand is: a sum of nothing is 0. Where others are computed by a step, only results
    without elements follow from shapes alone.

    Raises:
        ModelError: A result would have elements, or its size is not bounded by those of its operands.
    """
    present = [term for term in inputs if term is not None]
    if node.op_type not in BOUNDED:
        raise ModelError(f"a tensor without elements is read by {', '.join(sorted(BOUNDED))} alone")
    if math.prod(n for t in present if isinstance(t, np.ndarray) for n in t.shape if n) > MAX_ELEMENTS:
        raise ModelError(f"tensors without elements may be of sizes that multiply to {MAX_ELEMENTS}")
    stand_ins = [t if isinstance(t, np.ndarray) else _zeros(t) for t in present]
    results = evaluate(node, stand_ins, opset)
    if any(isinstance(t, Value) for t in present) and any(r.size for r in results):
        shapes = [list(r.shape) for r in results]
        raise ModelError(f"a result {shapes} of a tensor without elements and of others is not supported")
    return results


def _zeros(term: Value) -> Array:
    """Zeros of a value's shape and type, which take no memory."""
    return np.broadcast_to(np.zeros((), term.type.dtype), term.shape)


def not_empty(node: onnx.NodeProto, inputs: Sequence[Term | None]) -> list[Term | None]:
    """The operands of a Concat that add something; all of them where none does.

    Raises:
        ModelError: One that is left out would not fit the others.
    """
    kept = [term for term in inputs if not is_empty(term)]
    if not kept or kept[0] is None:
        return list(inputs)
    shape = list(kept[0].shape)
    (axis,) = [a.i for a in node.attribute if a.name == "axis"]
    for term in inputs:
        if isinstance(term, np.ndarray) and is_empty(term) and _without(term.shape, axis) != _without(shape, axis):
            raise ModelError(f"{list(term.shape)} cannot be joined to {shape} along axis {axis}")
    return kept


def _without(shape: Sequence[int], axis: int) -> list[int]:
    """A shape with 0 in the place of the axis."""
    sizes = list(shape)
    sizes[axis] = 0
    return sizes
