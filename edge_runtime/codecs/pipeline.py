"""Codecs made of stages: which numbers are sent, how they are written, how they are coded.

    ["topk 0.01 ef", "fp16", "rice"]    the hundredth largest, the rest carried over; 2 bytes each; places as coded gaps
    ["svd 0.95", "int8"]                factors of every matrix with 95 % of its energy, a byte a number
    ["int8", "rans"]                    every value in about a byte, entropy-coded

First, if at all, a stage that chooses numbers (selection.py, low_rank.py, rows.py, or `ef` for all of them with error
feedback); then a value format (values.py), `fp32` where none is named; then `rice` after a selection, or else 4 bytes a
place; last `rans` (entropy.py). The bytes are a tensor file with the update's metadata and the entries of these stages.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from edge_runtime import kernels
from edge_runtime.codecs.codec import BadCodec, BadUpdate, Codec, Shapes, State
from edge_runtime.codecs.entropy import with_rans
from edge_runtime.codecs.exact import taken_exact
from edge_runtime.codecs.low_rank import LOW_RANK
from edge_runtime.codecs.reduction import WHOLE, Arrays, Reduction, with_feedback
from edge_runtime.codecs.rows import rows
from edge_runtime.codecs.selection import SELECTORS, selecting
from edge_runtime.codecs.values import FORMATS, ValueFormat
from edge_runtime.rng import derive_seed
from edge_runtime.tensors import decode_tensors, encode_tensors

__all__ = ["build_pipeline"]


def build_pipeline(texts: Sequence[str]) -> Codec:
    """The codec of these stages.

    Raises:
        BadCodec: Names the stage that cannot be built, and what may stand there.
    """
    if not texts:
        raise BadCodec('no stage; ["dense"] sends the tensors as they are')
    left = list(texts)
    selector = _taken(left, SELECTORS)
    reduction: Reduction = (None if selector else _taken(left, REDUCTIONS)) or WHOLE
    values: ValueFormat = _taken(left, FORMATS) or FORMATS["fp32"](())
    if selector:
        reduction = selecting(selector, coded=bool(_taken(left, {"rice": _no_argument})))
    if _taken(left, {"rans": _no_argument}):
        values = with_rans(values)
    if left:
        known = [*SELECTORS, *REDUCTIONS, *FORMATS, "rice", "rans"]
        raise BadCodec(f"stage {left[0]!r} is unknown or out of place; in this order, each at most once: {known}")
    return Codec(
        tuple(texts),
        _encode(reduction, values),
        _decode(reduction, values),
        reduction.carries,
        reduction.remembers,
        _pieces(reduction, values),
    )


def _taken(left: list[str], builders: Mapping[str, Callable[[Sequence[str]], Any]]) -> Any:
    """What the first stage that is left builds, if it is one of these; it is left no more."""
    name, *arguments = left[0].split() if left and left[0].split() else [""]
    if name not in builders:
        return None
    text = left.pop(0)
    try:
        return builders[name](arguments)
    except BadCodec as error:
        raise BadCodec(f"stage {text!r} {error}") from None


def _no_argument(arguments: Sequence[str]) -> bool:
    if arguments:
        raise BadCodec("takes no argument")
    return True


def _feedback(arguments: Sequence[str]) -> Reduction:
    """Every value, and what the value format loses of it is carried over."""
    _no_argument(arguments)
    return with_feedback(WHOLE)


REDUCTIONS: Mapping[str, Callable[[Sequence[str]], Reduction]] = {**LOW_RANK, "rows": rows, "ef": _feedback}


def _encode(reduction: Reduction, values: ValueFormat) -> Callable[[Arrays, Mapping[str, str], State], bytes]:
    def encode(tensors: Arrays, metadata: Mapping[str, str], state: State) -> bytes:
        reduced = reduction.reduce(tensors, metadata, state)
        entries = values.encode(reduced.parts, _seed(metadata))
        if reduction.carries:
            reduced.settle(values.decode(entries, reduced.layout.counts))
        return encode_tensors({**entries, **reduced.side}, metadata)

    return encode


def _seed(metadata: Mapping[str, str]) -> int:
    """Of the formats that draw: a task that is done again draws the same."""
    return derive_seed("values", metadata.get("task", ""))


def _decode(reduction: Reduction, values: ValueFormat) -> Callable[[bytes, Shapes], tuple[Arrays, dict[str, str]]]:
    def decode(data: bytes, shapes: Shapes) -> tuple[Arrays, dict[str, str]]:
        entries, exact, metadata = _entries(data, {*values.names, *reduction.side}, shapes)
        others = {name: shape for name, shape in shapes.items() if name not in exact}
        if not others and not entries:
            return exact, metadata
        layout = reduction.layout(entries, others)
        return {**exact, **dict(layout.restore(values.decode(entries, layout.counts)))}, metadata

    return decode


def _pieces(
    reduction: Reduction, values: ValueFormat
) -> Callable[[bytes, kernels.Layout], tuple[list[kernels.Piece], dict[str, str]]]:
    decode = _decode(reduction, values)

    def pieces(data: bytes, tensors: kernels.Layout) -> tuple[list[kernels.Piece], dict[str, str]]:
        entries, exact, metadata = _entries(data, {*values.names, *reduction.side}, tensors.shapes)
        layout = None if exact else reduction.layout(entries, tensors.shapes)
        if layout is None or layout.place is None:
            return tensors.pieces(decode(data, tensors.shapes)[0]), metadata
        return layout.place(values.pieces(entries, layout.counts)), metadata

    return pieces


def _entries(data: bytes, known: Collection[str], shapes: Shapes) -> tuple[Arrays, Arrays, dict[str, str]]:
    """The entries of the stages, the tensors beside them, and the metadata."""
    entries, metadata = decode_tensors(data)
    exact = taken_exact(entries, shapes)
    if not entries.keys() <= set(known):
        raise BadUpdate(f"entries {sorted(entries.keys() - set(known))[:3]} have no meaning; known are {sorted(known)}")
    return entries, exact, metadata
