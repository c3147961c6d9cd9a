"""ONNX Einsum: a sum of products over named axes, as transpositions and matrix products."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import models.compiler.graph as g
from models.compiler.boxes import Box
from models.compiler.elementary import strides
from models.compiler.errors import ModelError
from models.compiler.ir import Value
from models.compiler.onnx_nodes import Convert, ModelNode, Terms, value

BROADCAST = "0123456789"  # names of the axes that an ellipsis stands for, counted from the last


@dataclass(frozen=True)
class Named:
    """A value and one letter for each of its axes."""

    value: Value
    letters: str

    def sizes(self) -> dict[str, int]:
        """Size of each axis by its letter."""
        return dict(zip(self.letters, self.value.shape, strict=True))


def einsum(node: ModelNode, terms: Terms) -> Value:
    """Operands from left to right; what a later one or the result does not name is summed as early as possible."""
    values = [value(terms, i) for i in range(len(terms))]
    inputs, output = _parsed(str(node.attrs["equation"]), values)
    left = inputs[0]
    for i, right in enumerate(inputs[1:], 2):
        later = set(output).union(*(n.letters for n in inputs[i:]))
        left = _contracted(left, right, later)
    return _arranged(_summed(left, set(output)), output)


def _parsed(equation: str, values: Sequence[Value]) -> tuple[list[Named], str]:
    """The operands with distinct letters, and the letters of the result."""
    text = equation.replace(" ", "")
    terms, arrow, output = text.partition("->")
    parts = terms.split(",")
    if not re.fullmatch(r"[A-Za-z.,]*(->[A-Za-z.]*)?", text) or len(parts) != len(values):
        raise ModelError(f"equation {equation!r} is malformed, or not one for {len(values)} operands")
    spelt = [_spelt(part, len(v.shape)) for part, v in zip(parts, values, strict=True)]
    if not arrow:
        letters = "".join(re.findall("[A-Za-z]", terms))
        output = "..." * ("..." in terms) + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    dots = max((len(re.findall("[0-9]", s)) for s in spelt), default=0)
    wanted = output.replace("...", BROADCAST[:dots][::-1])
    if len(set(wanted)) != len(wanted) or not set(wanted) <= set("".join(spelt)):
        raise ModelError(f"the result {output!r} of {equation!r} names an axis twice, or one that no operand has")
    named = [_diagonal(v, s) for v, s in zip(values, spelt, strict=True)]
    sizes: dict[str, int] = {}
    for n in named:
        for letter, size in n.sizes().items():
            if sizes.setdefault(letter, size) == 1:
                sizes[letter] = size
    return [_broadcast(n, sizes, equation) for n in named], wanted


def _spelt(part: str, rank: int) -> str:
    """One letter an axis: digits for those that an ellipsis stands for."""
    dots = rank - len(part.replace("...", ""))
    spelt = part.replace("...", BROADCAST[: max(dots, 0)][::-1], 1)
    if len(spelt) != rank or "." in spelt:
        raise ModelError(f"the term {part!r} does not name {rank} axes")
    return spelt


def _diagonal(x: Value, letters: str) -> Named:
    """A letter that comes twice walks along both axes at once."""
    if len(set(letters)) == len(letters):
        return Named(x, letters)
    steps: dict[str, tuple[int, int]] = {}
    for letter, size, step in zip(letters, x.shape, strides(x.shape), strict=True):
        before, total = steps.get(letter, (size, 0))
        if before != size:
            raise ModelError(f"axis {letter!r} has sizes {before} and {size}")
        steps[letter] = (size, total + step)
    shape = tuple(size for size, _ in steps.values())
    axes = tuple((n, x_step, y_step) for (n, x_step), y_step in zip(steps.values(), strides(shape), strict=True))
    return Named(g.strided_copy(x, Box(0, 0, axes), shape), "".join(steps))


def _broadcast(n: Named, sizes: Mapping[str, int], equation: str) -> Named:
    """Axes of an ellipsis broadcast; others must agree."""
    for letter, size in n.sizes().items():
        if size != sizes[letter] and (size != 1 or letter not in BROADCAST):
            raise ModelError(f"axis {letter!r} of {equation!r} has sizes {size} and {sizes[letter]}")
    shape = tuple(sizes[letter] for letter in n.letters)
    return n if shape == n.value.shape else Named(g.broadcast_to(n.value, shape), n.letters)


def _summed(n: Named, kept: set[str]) -> Named:
    """Without the axes that are not kept."""
    gone = [a for a, letter in enumerate(n.letters) if letter not in kept]
    return Named(g.sum(n.value, gone), "".join(c for c in n.letters if c in kept)) if gone else n


def _arranged(n: Named, letters: str) -> Value:
    """The axes in this order."""
    return n.value if n.letters == letters else g.transpose(n.value, [n.letters.index(c) for c in letters])


def _contracted(left: Named, right: Named, kept: set[str]) -> Named:
    """The product summed over the axes that both have and nobody keeps, as one batched matrix product."""
    left, right = _summed(left, kept | set(right.letters)), _summed(right, kept | set(left.letters))
    both = [c for c in left.letters if c in right.letters]
    shared, inner = "".join(c for c in both if c in kept), "".join(c for c in both if c not in kept)
    rows = "".join(c for c in left.letters if c not in both)
    columns = "".join(c for c in right.letters if c not in both)
    sizes = {**left.sizes(), **right.sizes()}

    def matrices(n: Named, first: str, second: str) -> Value:
        shape = [math.prod(sizes[c] for c in letters) for letters in (shared, first, second)]
        return g.reshape(_arranged(n, shared + first + second), shape if shared else shape[1:])

    product = matrices(left, rows, inner) @ matrices(right, inner, columns)
    letters = shared + rows + columns
    return Named(g.reshape(product, [sizes[c] for c in letters]), letters)


CONVERTERS: dict[str, Convert] = {"Einsum": einsum}
