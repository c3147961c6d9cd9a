"""Truncated singular value decompositions, and PowerSGD's step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime.kernels.cuda.devices import device_module

if TYPE_CHECKING:
    from edge_runtime.kernels.cuda.devices import DeviceArray, Queue

__all__ = [
    "Factors",
    "PowerFactors",
    "Search",
    "power_step",
    "power_step_workspace_bytes",
    "truncated_svd",
    "truncated_svd_workspace_bytes",
]


@dataclass(frozen=True)
class Factors:
    """Outputs of a decomposition A (m, n) ~ u diag(s) vt, float32 and int32.

    u (m, r) and vt (r, n) orthonormal, s (r,) descending; the entry of largest magnitude of each column of u (the first
    of several) is positive. Where A has less than rank r, s is 0 and the columns of u and v are zero.
    `error` (1,): ||A - u diag(s) vt|| / ||A||, as in `edge_runtime.kernels.LowRank`.
    `used` (1,) int32: the smallest rank with sum s^2 >= energy ||A||^2, or r where none is.
    `first_bad` (1,) int32: the place of what is not finite, counted along the rows, or -1; the rest is then NaN or 0.
    """

    u: DeviceArray
    s: DeviceArray
    vt: DeviceArray
    error: DeviceArray
    used: DeviceArray
    first_bad: DeviceArray


@dataclass(frozen=True)
class Search:
    """How factors are found."""

    rank: int  # at most 120, and min(m, n)
    energy: float = 1.0  # what `used` is measured by
    warm: DeviceArray | None = None  # vt of an earlier decomposition, (any rank, n)
    seed: int = 0
    tolerance: float = 0.12  # iterations stop when one lowers what is missing by less than this share of it
    iterations: int = 8  # at most; each reads A twice


def truncated_svd_workspace_bytes(m: int, n: int, rank: int) -> int:
    """Bytes of workspace that `truncated_svd` takes on the current device."""
    return int(device_module().svd_workspace_bytes(m, n, rank, step=False))


def truncated_svd(a: DeviceArray, search: Search, out: Factors, queue: Queue) -> None:
    """Find the leading singular values and vectors by randomised subspace iteration.

    The start is the processor's for one seed; results differ from its by rounding. How many iterations are made is
    decided on the device, from the energy that is missing.

    Args:
        a: (m, n) float32.
        search: What to find.
        out: Receives it.
        queue: With `truncated_svd_workspace_bytes` bytes.

    Source: Halko, Martinsson and Tropp, 2011, algorithm 4.4.
    """
    device_module().truncated_svd(
        a=a,
        rank=search.rank,
        energy=search.energy,
        warm=search.warm,
        seed=search.seed,
        iterations=search.iterations,
        tolerance=search.tolerance,
        u=out.u,
        s=out.s,
        vt=out.vt,
        error=out.error,
        used=out.used,
        first_bad=out.first_bad,
        workspace=queue.workspace,
        stream=queue.stream,
    )


@dataclass(frozen=True)
class PowerFactors:
    """Outputs of a step: p (m, r) orthonormal; q (n, r), not the one that goes in; `first_bad` (1,) int32."""

    p: DeviceArray
    q: DeviceArray
    first_bad: DeviceArray


def power_step_workspace_bytes(m: int, n: int, rank: int) -> int:
    """Bytes of workspace that `power_step` takes on the current device."""
    return int(device_module().svd_workspace_bytes(m, n, rank, step=True))


def power_step(a: DeviceArray, q: DeviceArray, out: PowerFactors, queue: Queue) -> None:
    """One step of subspace iteration from last round's q: a ~ p q^T.

    Columns of p that a q does not reach are zero, and so is then what belongs to them in q: here no new ones are drawn.

    Args:
        a: (m, n) float32.
        q: (n, r) float32, r at most 128 and min(m, n); only its span counts.
        out: Receives the factors.
        queue: With `power_step_workspace_bytes` bytes.

    Source: Vogels et al., 2019 (PowerSGD).
    """
    device_module().power_step(a, q, out.p, out.q, out.first_bad, queue.workspace, queue.stream)
