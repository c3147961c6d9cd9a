"""Truncated singular value decompositions of float32 matrices, and PowerSGD's warm-started step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime import _core

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["LowRank", "as_matrix", "power_step", "saving_rank", "truncated_svd", "truncated_svd_tree"]

TOLERANCE = 0.02
ITERATIONS = 12


@dataclass(frozen=True)
class LowRank:
    """A (m, n) ~ u diag(s) vt, with s descending.

    Attributes:
        u: (m, r) float32, orthonormal columns, whose element of largest magnitude (the first of several) is positive.
        s: (r,) float32, not negative.
        vt: (r, n) float32, orthonormal rows.
        error: ||A - u diag(s) vt|| / ||A|| in Frobenius norms, from sqrt(1 - sum s^2 / ||A||^2); what float32 products
            leave out hides errors below 3e-3.
        passes: Products with A or its transpose that were made.
    """

    u: Floats
    s: Floats
    vt: Floats
    error: float
    passes: int

    @property
    def rank(self) -> int:
        """The number of singular values."""
        return self.s.size

    def dense(self) -> Floats:
        """The matrix that this stands for, (m, n)."""
        product: Floats = np.matmul(self.u * self.s, self.vt)
        return product


def truncated_svd(  # noqa: PLR0913 one keyword for each thing that can be asked of it
    a: Floats,
    *,
    rank: int | None = None,
    energy: float | None = None,
    warm: Floats | None = None,
    seed: int = 0,
    tolerance: float = TOLERANCE,
    iterations: int = ITERATIONS,
    workspace: _core.Workspace | None = None,
) -> LowRank:
    """Find the leading singular values and vectors: randomised subspace iteration, or A^T A where that is cheaper.

    Halko, Martinsson and Tropp (2011), with one reading of A per iteration; csrc/algorithms/svd.h has formulas, memory
    and when which route is taken. The same seed gives the same bits for any number of threads of an instruction set.

    Args:
        a: (m, n) float32, C-contiguous, finite, not empty.
        rank: How many; with `energy`, the most there may be. At most min(m, n).
        energy: In (0, 1]: the smallest rank with sum s^2 >= energy * ||A||^2 (FedKD, Wu et al., 2022). If `rank` does
            not allow it, LowRank.error says what is missing.
        warm: vt of an earlier decomposition of a similar matrix, (any rank, n) float32: saves an iteration.
        seed: Of the random start.
        tolerance: Iterations go on while the next is expected to lower the error by more than this share of it. The
            default keeps the error within 1.02 of the least possible on the spectra of docs/kernels.md.
        iterations: The most of them, 1 to 1,000; each reads A once or twice.
        workspace: Memory and threads; None makes one for the call.

    Raises:
        ValueError: `a` or `warm` is not finite (the error says where), or an argument is out of its range.
        TypeError: An array is not float32, two-dimensional and C-contiguous.
    """
    if rank is None and energy is None:
        raise ValueError("truncated_svd needs a rank, an energy, or both")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"energy must be in (0, 1], got {energy}")
    workspace = _core.Workspace() if workspace is None else workspace
    most = min(a.shape, default=0) if rank is None else rank
    found = _core.truncated_svd(workspace, a, most, energy or 0.0, warm, _word(seed), tolerance, iterations)
    return LowRank(*found)


def power_step(
    a: Floats, q: Floats, *, seed: int = 0, workspace: _core.Workspace | None = None
) -> tuple[Floats, Floats]:
    """One step of subspace iteration from last round's q: a ~ p q^T (PowerSGD, Vogels et al., NeurIPS 2019).

    Args:
        a: (m, n) float32, C-contiguous, finite: a gradient, with what earlier rounds left out.
        q: (n, r) float32, C-contiguous, finite: the q that the last step returned, or anything of full rank; only the
            span counts. r <= min(m, n). Columns that are zero or dependent on earlier ones are drawn anew.
        seed: Of columns that are drawn.
        workspace: Memory and threads; None makes one for the call.

    Returns:
        p (m, r) with orthonormal columns, zero ones where a has less than rank r, and q = a^T p (n, r).

    Raises:
        ValueError: `a` or `q` is not finite (the error says where), or shapes do not fit.
        TypeError: An array is not float32, two-dimensional and C-contiguous.
    """
    workspace = _core.Workspace() if workspace is None else workspace
    return _core.power_step(workspace, a, q, _word(seed))


def as_matrix(shape: Sequence[int]) -> tuple[int, int] | None:
    """The (rows, columns) that a tensor is decomposed as: the first axis against all others.

    So a convolution's weight (out, in, kh, kw) is (out, in * kh * kw), as in PowerSGD. None where no factors are made:
    scalars and vectors (FedKD sends them as they are), empty tensors, and those with a single row or column.
    """
    rows, columns = (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, 1)
    return (rows, columns) if min(rows, columns) > 1 else None


def saving_rank(rows: int, columns: int) -> int:
    """The largest rank whose factors, rank * (rows + columns + 1) numbers, are fewer than the matrix has (FedKD)."""
    return (rows * columns - 1) // (rows + columns + 1)


def truncated_svd_tree(  # noqa: PLR0913 those of truncated_svd
    arrays: Sequence[Floats],
    *,
    rank: int | None = None,
    energy: float | None = None,
    warm: Sequence[Floats | None] | None = None,
    seed: int = 0,
    workspace: _core.Workspace | None = None,
) -> list[LowRank | None]:
    """Decompose every tensor that it saves numbers for, each as `as_matrix` says.

    Args:
        arrays: float32, C-contiguous, finite, of any shapes.
        rank: As in truncated_svd; lowered to min(m, n) of a smaller matrix.
        energy: As in truncated_svd.
        warm: For each array, vt of last round or None.
        seed: Of the random starts; the tensors' are different.
        workspace: Memory and threads for all of them; None makes one for the call.

    Returns:
        For each array its factors, or None where it is best sent as it is: it is no matrix, or what was asked for takes
        more numbers than it has.

    Raises:
        ValueError: As in truncated_svd, or `warm` is not as long as `arrays`.
        TypeError: As in truncated_svd.
    """
    workspace = _core.Workspace() if workspace is None else workspace
    starts = [None] * len(arrays) if warm is None else warm
    found: list[LowRank | None] = []
    for number, (array, start) in enumerate(zip(arrays, starts, strict=True)):
        shape = as_matrix(array.shape)
        most = None if shape is None else _most(shape, rank, exact=energy is None)
        if shape is None or most is None:
            found.append(None)
            continue
        matrix = array.reshape(shape)
        factors = truncated_svd(matrix, rank=most, energy=energy, warm=start, seed=seed + number, workspace=workspace)
        missed = energy is not None and most != rank and factors.error**2 > 1 - energy
        found.append(None if missed else factors)
    return found


def _most(shape: tuple[int, int], rank: int | None, *, exact: bool) -> int | None:
    """The rank to ask for, or None where factors of it, or of any rank unless `exact`, save nothing."""
    wanted, saving = min(*shape, *([] if rank is None else [rank])), saving_rank(*shape)
    if saving == 0 or (exact and wanted > saving):
        return None
    return min(wanted, saving)


def _word(seed: int) -> int:
    """A seed as the 64 bits that the core takes."""
    return seed & 0xFFFFFFFFFFFFFFFF
