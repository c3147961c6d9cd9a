"""Selection by magnitude: the k largest |x|, all that reach a threshold, and the forms with a residual.

All of them: results are by ascending index; of equal magnitudes the lower index goes first; +0 and -0 are equal, and
smaller than every denormal; infinities are the largest and are selected like any value; NaN is refused. Indices and
values are the same for any number of threads and on every instruction set. Arrays are C-contiguous, of any shape, with
at most 2**31 - 1 elements together; indices count their elements in C order.

Extra memory, held by the workspace (csrc/algorithms/select.h): some 10 bytes for each of k, 256 KiB at most for the
sample, 32 KiB a thread where ties are heavy; 4 bytes more for each of k with 16-bit values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edge_runtime import _core
from edge_runtime.errors import EdgeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = [
    "NotANumber",
    "SampledSelection",
    "Selection",
    "above",
    "dgc",
    "dgc_tree",
    "sampled_threshold",
    "top_k",
    "top_k_residual",
    "top_k_residual_tree",
    "top_k_tree",
]

INFINITY = {"float32": 0x7F800000, "float16": 0x7C000000, "bfloat16": 0x7F800000}  # bits, the upper 16 of 32 for halves


class NotANumber(EdgeError, ValueError):
    """An element is NaN, which has no place in an order."""


class Selection(NamedTuple):
    """What was selected.

    Attributes:
        indices: int32 (k,), ascending.
        values: (k,) of the input's dtype.
    """

    indices: NDArray[np.int32]
    values: Array


class SampledSelection(NamedTuple):
    """What passed a threshold that was estimated.

    Attributes:
        indices: int32 (count,), ascending.
        values: (count,) of the input's dtype.
        threshold: Every |value| is at least this, and of the elements with a greater magnitude none is missing.
    """

    indices: NDArray[np.int32]
    values: Array
    threshold: float


def top_k(x: Array, k: int, *, dtype: str | None = None, workspace: _core.Workspace | None = None) -> Selection:
    """Select the k elements of greatest magnitude, exactly.

    One pass over x where a sample brackets the k-th largest, which it does on all but heavily tied data; at most five.

    Args:
        x: float32, float16, or uint16 with dtype="bfloat16".
        k: 1 to the number of elements.
        dtype: "bfloat16" for the bits of bfloat16 in uint16.
        workspace: Instruction set, threads and memory; none makes one for the call.

    Returns:
        The selection.

    Raises:
        TypeError: x is of another dtype or not C-contiguous.
        ValueError: k is out of range, or there are more than 2**31 - 1 elements.
        NotANumber: x holds a NaN; names the first.
    """
    words, infinity = _words(x, dtype)
    found = _core.top_k(workspace or _core.Workspace(), [words], infinity, k)
    if found is None:
        raise _not_a_number([x], "x", dtype)
    return Selection(found[0], found[1].view(x.dtype))


def above(
    x: Array, threshold: float, *, dtype: str | None = None, workspace: _core.Workspace | None = None
) -> Selection:
    """Select every element with |x| >= threshold; two passes over x, no extra memory for float32.

    Args:
        x: As in top_k; may be empty.
        threshold: At least 0; compared as a real number, not after rounding to x's dtype.
        dtype: As in top_k.
        workspace: As in top_k.

    Returns:
        The selection, of any length.

    Raises:
        TypeError: As in top_k.
        ValueError: The threshold is negative or NaN, or x has more than 2**31 - 1 elements.
        NotANumber: x holds a NaN; names the first.
    """
    if not threshold >= 0:
        raise ValueError(f"threshold must be at least 0, got {threshold}")
    words, infinity = _words(x, dtype)
    found = _core.above(workspace or _core.Workspace(), words, infinity, key_at_least(threshold, x.dtype, dtype))
    if found is None:
        raise _not_a_number([x], "x", dtype)
    return Selection(found[0], found[1].view(x.dtype))


def sampled_threshold(  # noqa: PLR0913 - the method's own parameters, by keyword where they are options
    x: Array,
    keep: float,
    seed: int,
    *,
    sample: float = 0.01,
    band: tuple[float, float] = (0.8, 1.3),
    attempts: int = 10,
    dtype: str | None = None,
    workspace: _core.Workspace | None = None,
) -> SampledSelection:
    """Select about a fraction of x by a sampled threshold: gradient dropping (arXiv 1704.05021), as DGC accepts it.

    The law. Let n be the elements, k = max(1, round(keep n)), and s the sample: max(sample n, 2 / keep), at most n.
    An attempt looks at s elements at places floor(n frac(p + i phi)), where phi is the golden ratio and p a hash of
    seed and attempt, so that each element is as likely as any other and no row length divides the stride. The
    threshold is the round(s k / n)-th largest magnitude of the sample, at least the first. All elements that reach it
    are selected if their count lies in [band[0] k, band[1] k]. Too few: another attempt with a new p. Too many (which
    ties in the sample can tell beforehand), or no attempt left: the exact top k (that of the survivors is that of x).
    For x in no particular order the count's standard deviation over k is about 1 / sqrt(s keep); below some 100
    expected hits the band repairs often.

    Args:
        x: As in top_k.
        keep: The fraction to keep, 0 < keep <= 1; gradient dropping's R is 1 - keep.
        seed: 0 <= seed < 2**64; the same seed gives the same selection.
        sample: The fraction to look at, 0 < sample <= 1.
        band: Accepted counts as multiples of k, band[0] <= 1 <= band[1].
        attempts: At least 1.
        dtype: As in top_k.
        workspace: As in top_k.

    Returns:
        The selection and the threshold it came from.

    Raises:
        TypeError: As in top_k.
        ValueError: An argument is out of range, or x is empty or has more than 2**31 - 1 elements.
        NotANumber: x holds a NaN; names the first.
    """
    if not (0 < keep <= 1 and 0 < sample <= 1):
        raise ValueError(f"keep and sample must be in (0, 1], got {keep} and {sample}")
    if not 0 <= band[0] <= 1 <= band[1] < np.inf:
        raise ValueError(f"band must be two finite numbers around 1, got {band}")
    words, infinity = _words(x, dtype)
    k = max(1, round(keep * x.size))
    size = min(x.size, max(round(sample * x.size), int(np.ceil(2 / keep))))
    least, most = int(np.ceil(band[0] * k)), int(band[1] * k)
    found = _core.sampled(
        workspace or _core.Workspace(), words, infinity, k, seed, size, min(least, k), max(most, k), attempts
    )
    if found is None:
        raise _not_a_number([x], "x", dtype)
    return SampledSelection(found[0], found[1].view(x.dtype), _value_of(found[2], infinity))


def top_k_residual(gradient: Array, residual: Array, k: int, *, workspace: _core.Workspace | None = None) -> Selection:
    """Add a gradient to the residual, select the k largest of it, and leave zeros where they were (error feedback).

    r = r + g; select top k of |r|; r = 0 there, so what was sent and what stays is what was added (arXiv 1704.05021).
    Gradient and residual are read once and the residual written once, in one pass; zeroing touches the selected
    elements alone. Heavily tied residuals take up to four more reading passes over the residual.

    Args:
        gradient: float32.
        residual: float32 of the same shape, updated in place; shares no memory with the gradient.
        k: 1 to the number of elements.
        workspace: As in top_k.

    Returns:
        The selection of r + g.

    Raises:
        TypeError: An array is not float32 or not C-contiguous.
        ValueError: k is out of range, shapes differ, memory is shared, or the residual is read-only; nothing changed.
        NotANumber: r + g holds a NaN; names the first. The gradient was added, nothing was zeroed.
    """
    return top_k_residual_tree([gradient], [residual], k, workspace=workspace)[0]


def dgc(  # noqa: PLR0913 - the method's own parameters, by keyword where they are options
    gradient: Array,
    momentum: Array,
    residual: Array,
    k: int,
    momentum_factor: float,
    *,
    nesterov: bool = False,
    masking: bool = True,
    workspace: _core.Workspace | None = None,
) -> Selection:
    """Select what Deep Gradient Compression sends (Lin et al., 2018, arXiv 1712.01887, algorithm 4).

    u = m u + g; v = v + u; select top k of |v|; v = 0 there, and u = 0 there too (momentum factor masking). The
    Nesterov form is u = m (u + g); v = v + u + g. One pass reads g, u, v and writes u, v; zeroing touches the selected
    elements. The server applies plain SGD to what arrives: the momentum is in u. Clip the gradient before, to N**-0.5
    of the global norm.

    Args:
        gradient: float32.
        momentum: u, float32 of the same shape, updated in place.
        residual: v, float32 of the same shape, updated in place; no two arrays share memory.
        k: 1 to the number of elements.
        momentum_factor: m, a finite number; 0 gives top_k_residual.
        nesterov: The Nesterov form.
        masking: Whether u is zeroed where v was sent.
        workspace: As in top_k.

    Returns:
        The selection of v.

    Raises:
        TypeError: An array is not float32 or not C-contiguous.
        ValueError: An argument is out of range, shapes differ, memory is shared, or a state is read-only.
        NotANumber: v holds a NaN; names the first. u and v were accumulated, nothing was zeroed.
    """
    return dgc_tree(
        [gradient],
        [momentum],
        [residual],
        k,
        momentum_factor,
        nesterov=nesterov,
        masking=masking,
        workspace=workspace,
    )[0]


def top_k_tree(
    arrays: Sequence[Array], k: int, *, dtype: str | None = None, workspace: _core.Workspace | None = None
) -> list[Selection]:
    """Select the k largest over all arrays together, without joining them.

    Args:
        arrays: All of one dtype, as in top_k; some may be empty.
        k: 1 to the number of elements of all.
        dtype: As in top_k.
        workspace: As in top_k.

    Returns:
        A selection for each array, with indices into it; some may be empty. Of equals the earlier array goes first.

    Raises:
        TypeError: As in top_k.
        ValueError: As in top_k.
        NotANumber: As in top_k.
    """
    words = [_words(x, dtype) for x in arrays]
    infinity = words[0][1] if words else 0
    found = _core.top_k(workspace or _core.Workspace(), [word for word, _ in words], infinity, k)
    if found is None:
        raise _not_a_number(arrays, "array", dtype)
    return _split(found[0], found[1].view(arrays[0].dtype), arrays)


def top_k_residual_tree(
    gradients: Sequence[Array], residuals: Sequence[Array], k: int, *, workspace: _core.Workspace | None = None
) -> list[Selection]:
    """Do what top_k_residual does with one k over all tensors together.

    Args:
        gradients: float32 arrays.
        residuals: One for each, of its shape, updated in place.
        k: 1 to the number of elements of all.
        workspace: As in top_k.

    Returns:
        A selection for each tensor; some may be empty.

    Raises:
        TypeError: As in top_k_residual.
        ValueError: As in top_k_residual.
        NotANumber: As in top_k_residual.
    """
    found = _core.top_k_residual(workspace or _core.Workspace(), gradients, residuals, k)
    if found is None:
        raise _not_a_number(residuals, "residual", None)
    return _split(found[0], found[1], gradients)


def dgc_tree(  # noqa: PLR0913 - the method's own parameters, by keyword where they are options
    gradients: Sequence[Array],
    momenta: Sequence[Array],
    residuals: Sequence[Array],
    k: int,
    momentum_factor: float,
    *,
    nesterov: bool = False,
    masking: bool = True,
    workspace: _core.Workspace | None = None,
) -> list[Selection]:
    """Do what dgc does with one k over all tensors together.

    Args:
        gradients: float32 arrays.
        momenta: u of each, of its shape, updated in place.
        residuals: v of each, of its shape, updated in place.
        k: 1 to the number of elements of all.
        momentum_factor: As in dgc.
        nesterov: As in dgc.
        masking: As in dgc.
        workspace: As in top_k.

    Returns:
        A selection for each tensor; some may be empty.

    Raises:
        TypeError: As in dgc.
        ValueError: As in dgc.
        NotANumber: As in dgc.
    """
    if not np.isfinite(momentum_factor):
        raise ValueError(f"momentum_factor must be finite, got {momentum_factor}")
    workspace = workspace or _core.Workspace()
    found = _core.dgc(workspace, gradients, momenta, residuals, k, momentum_factor, nesterov, masking)
    if found is None:
        raise _not_a_number(residuals, "residual", None)
    return _split(found[0], found[1], gradients)


def _words(x: Array, dtype: str | None) -> tuple[Array, int]:
    """What the core takes x as, and the bits of infinity there."""
    if dtype is None and x.dtype == np.float32:
        return x, INFINITY["float32"]
    if dtype is None and x.dtype == np.float16:
        return x.view(np.uint16), INFINITY["float16"]
    if dtype == "bfloat16" and x.dtype == np.uint16:
        return x, INFINITY["bfloat16"]
    raise TypeError(f'x must be float32, float16, or uint16 with dtype="bfloat16"; got {x.dtype} with dtype={dtype!r}')


def key_at_least(threshold: float, dtype: np.dtype[Any], name: str | None) -> int:
    """The bits of the least number of this dtype that is not below the threshold; a half's in the upper 16 of 32."""
    wide = np.float16 if dtype == np.float16 else np.float32
    with np.errstate(over="ignore"):
        rounded = wide(threshold)
    if float(rounded) < threshold:
        rounded = np.nextafter(rounded, wide(np.inf))
    if dtype == np.float16:
        return int(rounded.view(np.uint16)) << 16
    bits = int(rounded.view(np.uint32))
    return bits + 0xFFFF & 0x7FFF0000 if name == "bfloat16" else bits


def _value_of(key: int, infinity: int) -> float:
    """The magnitude that a key stands for."""
    if infinity == INFINITY["float16"]:
        return float(np.uint16(key >> 16).view(np.float16))
    return float(np.uint32(key).view(np.float32))


def _split(indices: NDArray[np.int32], values: Array, arrays: Sequence[Array]) -> list[Selection]:
    """The selection of each array, by what it holds of the joined ones."""
    if len(arrays) == 1:
        return [Selection(indices, values)]
    ends = np.cumsum([x.size for x in arrays])
    cuts = [0, *np.searchsorted(indices, ends)]
    selections = []
    for x, end, begin, stop in zip(arrays, ends, cuts, cuts[1:], strict=False):
        own = indices[begin:stop]
        own -= np.int32(end - x.size)
        selections.append(Selection(own, values[begin:stop]))
    return selections


def _not_a_number(arrays: Sequence[Array], name: str, dtype: str | None) -> NotANumber:
    """The error that names the first NaN."""
    for number, x in enumerate(arrays):
        places = np.flatnonzero((x & 0x7FFF) > 0x7F80 if dtype == "bfloat16" else np.isnan(x))
        if places.size:
            whose = name if len(arrays) == 1 else f"{name} {number}"
            return NotANumber(f"element {places[0]} of {whose} is NaN, which has no magnitude; selected was nothing")
    raise AssertionError("a NaN was selected, and none is there")
