"""Rows T1 to T3: the k largest by magnitude of normally distributed floats, beside what torch and NumPy offer.

Ours gives ascending indices and the signed values; the peers give what they give, torch's unsorted. The bound is
reading x once and writing k indices and values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bench.kernel_rows import rows_of
from edge_runtime import kernels

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from bench.kernel_rows import Machine

SHARES = (0.001, 0.01, 0.1)
# Ratios asked for, at each share.
TARGETS: dict[str, tuple[tuple[int, ...], dict[str, tuple[float | None, ...]]]] = {
    "T1": ((100_000,), {"torch.topk": (12, 25, 25)}),
    "T2": ((1_000_000,), {"torch.topk": (20, 45, 35), "np.partition": (25, 25, 18)}),
    "T3": ((10_000_000, 25_000_000), {"torch.topk": (55, 80, 50)}),
}


def _partitioned(x: NDArray[np.float32], k: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """The stock way in NumPy: the k-th largest magnitude, then a comparison."""
    size = np.abs(x)
    indices = np.flatnonzero(size >= np.partition(size, x.size - k)[x.size - k])
    return indices, x[indices]


def _wrong(x: NDArray[np.float32], k: int) -> float:
    """In how many of its sorted magnitudes the selection differs from torch's."""
    found = np.sort(np.abs(kernels.top_k(x, k).values))[::-1]
    return float((found != torch.topk(torch.from_numpy(x).abs(), k).values.numpy()).sum())


def _case(machine: Machine, n: int, share: float, targets: dict[str, float | None]) -> list[dict[str, Any]]:
    x = np.random.default_rng(n).standard_normal(n, np.float32)
    k, workspace, tensor = round(n * share), kernels.Workspace(threads=machine.threads), torch.from_numpy(x)
    steps: dict[str, Callable[[], object]] = {
        "ours": lambda: kernels.top_k(x, k, workspace=workspace),
        "torch.topk": lambda: torch.topk(tensor.abs(), k, sorted=False),
        "np.partition": lambda: _partitioned(x, k),
    }
    floor_s = machine.peak.seconds(0, 4 * n + 8 * k)
    cases = machine.measured(f"n={n} k={100 * share:g}%", steps, targets, floor_s)
    return [{**case, "errors": {"wrong values": _wrong(x, k)}} for case in cases]


def _measure(row_id: str) -> Callable[[Machine], list[dict[str, Any]]]:
    sizes, targets = TARGETS[row_id]

    def measure(machine: Machine) -> list[dict[str, Any]]:
        cases = []
        for n in sizes:
            for number, share in enumerate(SHARES):
                cases += _case(machine, n, share, {peer: asked[number] for peer, asked in targets.items()})
        return rows_of(row_id, f"top-k by magnitude, n = {' and '.join(f'{n:g}' for n in sizes)}", cases)

    return measure


MEASURES = {row_id: _measure(row_id) for row_id in TARGETS}
