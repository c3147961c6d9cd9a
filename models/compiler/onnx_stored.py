"""What the float32 tensors of a model are: parameters, or constants that training leaves as they are.

ONNX does not tell a parameter from a buffer. What is known: numbers without dimensions are of formulas; a mask of
zeros and minus infinities has no gradient; and torch's newer exporter writes beside each tensor of a module whether
it is a parameter or a buffer, and beside each that it computed ahead what that was made of.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

KIND = "pkg.torch.export.graph_signature.InputSpec.kind"
FIXED = ("BUFFER", "CONSTANT_TENSOR")  # the second is written in the code of a module
MADE_OF = "pkg.onnxscript.optimizer.folded_from"
OPERATIONS = (  # of torch that make tensors of numbers and shapes; their results are named so, or so and a number
    "_to_copy abs add arange bitwise_not cat ceil clamp clone convert_element_type cos cumsum div eq exp expand"
    " eye fill flip floor full full_like ge gt le lift_fresh_copy lifted_tensor linspace log logical_and"
    " logical_not logical_or lt masked_fill mul ne neg ones ones_like permute pow reciprocal remainder repeat"
    " reshape round rsqrt rsub scalar_tensor select sin slice sqrt squeeze stack sub transpose tril triu unsqueeze"
    " view where zeros zeros_like"
)
NUMBER_OF_A_FORMULA = re.compile(rf"val_\d+|({OPERATIONS.replace(' ', '|')})(_default)?(_\d+)?")
LISTED = 5


@dataclass(frozen=True)
class Origins:
    """What an exporter says of tensors, by their names.

    Attributes:
        buffers: tensors of a module that gradients do not train, running statistics excepted.
        computed: tensors that were computed ahead from numbers of formulas alone.
    """

    buffers: frozenset[str]
    computed: frozenset[str]


NOTHING_TOLD = Origins(frozenset(), frozenset())


def origins_of(graph: onnx.GraphProto) -> Origins:
    """Read what the exporter says; a model of another exporter says nothing."""
    told = {info.name: {p.key: p.value for p in info.metadata_props} for info in graph.value_info}
    statistics = {name for node in graph.node if node.op_type == "BatchNormalization" for name in node.input[3:5]}
    made = {name for node in graph.node for name in node.output}
    return Origins(
        frozenset(n for n, facts in told.items() if facts.get(KIND) in FIXED and n not in statistics),
        frozenset(n for n, facts in told.items() if _of_numbers(facts, made)),
    )


def _of_numbers(facts: Mapping[str, str], made: set[str]) -> bool:
    """Whether a tensor is made of a formula's numbers, or of the shapes of what the model computes."""
    sources = re.findall(r"'([^']*)'", facts.get(MADE_OF, ""))
    return bool(sources) and all(name in made or NUMBER_OF_A_FORMULA.fullmatch(name) for name in sources)


def constant_because(name: str, array: NDArray[np.float32], origins: Origins) -> str | None:
    """Why a tensor is a constant, for a note to people ("" where none is needed); None of a parameter."""
    if not array.ndim:
        return "has no dimensions"
    if name in origins.buffers:
        return "is no parameter of the module"
    if np.isneginf(array).any() and (np.isneginf(array) | (array == 0)).all():
        return "is a mask of zeros and minus infinities"
    return "" if name in origins.computed else None


def read_by_several(graph: onnx.GraphProto, parameters: Iterable[str]) -> tuple[str, ...]:
    """A note where nodes share parameters: as the model means it, or because an exporter merged what was equal."""
    readers = Counter(name for node in graph.node for name in set(node.input))
    shared = [name for name in parameters if readers[name] > 1]
    if not shared:
        return ()
    names = ", ".join(map(repr, shared[:LISTED])) + (f" and {len(shared) - LISTED} more" if shared[LISTED:] else "")
    merged = "if they are more than one in the module, the exporter has merged equal ones"
    return (f"read by several nodes, and trained as one tensor each ({merged}): {names}",)


def folded_normalisations(graph: onnx.GraphProto) -> tuple[str, ...]:
    """A note where an exporter has folded batch normalisation, whose bias it names after the weight it went into."""
    products = [node.input for node in graph.node if len(node.input) > 2]
    folded = [names[1] for names in products if names[1] and names[2] == f"{names[1]}_bias"]
    if not folded:
        return ()
    into = f"{len(folded)} weights, {folded[0]!r} first"
    return (f"batch normalisation was folded into {into}, and is not trained: torch keeps it with optimize=False",)
