"""The slow twins of low_rank.py, in float64 NumPy: the best there is, and the same algorithm from the same start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.rng import hash64

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = ["best_rank", "power_step", "randomised", "start_of", "truncated_svd"]


def best_rank(s: Array, energy: float) -> int:
    """The smallest rank whose squares are at least `energy` of all; singular values s, descending."""
    captured = np.cumsum(np.square(s, dtype=np.float64))
    return min(int(np.searchsorted(captured, energy * captured[-1])) + 1, s.size)


def truncated_svd(a: Array, rank: int) -> tuple[Array, Array, Array]:
    """The best approximation of that rank (Eckart and Young): u (m, r), s (r,), vt (r, n) with signs as in LowRank."""
    u, s, vt = np.linalg.svd(a.astype(np.float64), full_matrices=False)
    signs = np.sign(u[np.argmax(np.abs(u), axis=0), np.arange(s.size)])
    return (u * signs)[:, :rank], s[:rank], (vt.T * signs).T[:rank]


def start_of(rows: int, width: int, seed: int) -> Array:
    """The random start (rows, width): uniform in [-0.5, 0.5), the bits that the kernel draws."""
    h = hash64(0, seed, 0, np.arange(rows * width, dtype=np.uint64))
    return ((h >> np.uint64(40)).astype(np.float64) * 2.0**-24 - 0.5).reshape(rows, width)


def randomised(a: Array, width: int, seed: int, iterations: int = 2) -> Array:
    """Singular values (width,) of a restricted to the space that so many iterations of A^T A find."""
    a = a.astype(np.float64)
    v = start_of(a.shape[1], width, seed)
    for _ in range(iterations):
        v = np.linalg.qr(a.T @ (a @ v))[0]
    return np.linalg.svd(a @ v, compute_uv=False)


def power_step(a: Array, q: Array) -> tuple[Array, Array]:
    """P = orth(A Q), Q = A^T P."""
    a = a.astype(np.float64)
    p = np.linalg.qr(a @ q.astype(np.float64))[0]
    return p, a.T @ p
