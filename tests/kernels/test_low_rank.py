"""Truncated decompositions against float64 ones, on every instruction set, with one thread and with three."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import scipy.sparse.linalg

from edge_runtime.kernels import (
    Workspace,
    as_matrix,
    power_step,
    reference_low_rank,
    saving_rank,
    truncated_svd,
    truncated_svd_tree,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

EPSILON = float(np.finfo(np.float32).eps)
SHAPES = [(1, 1), (1, 7), (7, 1), (2, 3), (17, 16), (16, 17), (31, 200), (200, 31), (257, 129), (129, 257)]
SPECTRA = {
    "harmonic": lambda i: 1.0 / i,
    "slow": lambda i: i**-0.5,
    "geometric": lambda i: 0.95**i,
    "steep": lambda i: 0.5**i,
    "repeated": lambda i: np.where(i <= 6, 1.0, 0.01),
    "flat": np.ones_like,
}


@functools.cache
def spectral(m: int, n: int, spectrum: str = "harmonic", seed: int = 0) -> NDArray[np.float32]:
    """A matrix (m, n) with the singular values of `spectrum` and random vectors."""
    rng, least = np.random.default_rng(seed), min(m, n)
    u = np.linalg.qr(rng.standard_normal((m, least)))[0]
    v = np.linalg.qr(rng.standard_normal((n, least)))[0]
    return ((u * SPECTRA[spectrum](np.arange(1.0, least + 1))) @ v.T).astype(np.float32)


@functools.cache
def _values(a: bytes, shape: tuple[int, int]) -> NDArray[np.float64]:
    return np.linalg.svd(np.frombuffer(a, np.float32).reshape(shape).astype(np.float64), compute_uv=False)


def ratio_to_best(a: NDArray[Any], found: NDArray[Any], rank: int) -> float:
    """The error of `found` over that of the best matrix of that rank; 1 where both are round-off."""
    s = _values(a.tobytes(), a.shape)
    best, floor = np.linalg.norm(s[rank:]), 1e-5 * np.linalg.norm(s)
    return float(max(np.linalg.norm(a.astype(np.float64) - found), floor) / max(best, floor))


def departure(columns: NDArray[np.float32]) -> float:
    columns = columns.astype(np.float64)
    return float(np.abs(columns.T @ columns - np.eye(columns.shape[1])).max())


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_error_is_within_1_02_of_the_best_and_vectors_are_orthonormal(
    workspace: Workspace, shape: tuple[int, int], spectrum: str
) -> None:
    a = spectral(*shape, spectrum)
    for rank in sorted({1, min(5, *shape), min(24, *shape), min(shape)}):
        found = truncated_svd(a, rank=rank, workspace=workspace)
        assert (found.u.shape, found.s.shape, found.vt.shape) == ((shape[0], rank), (rank,), (rank, shape[1]))
        assert ratio_to_best(a, found.dense(), rank) <= 1.02
        assert departure(found.u) <= 10 * EPSILON * math.sqrt(shape[0])
        assert departure(found.vt.T) <= 10 * EPSILON * math.sqrt(shape[1])
        assert np.all(np.diff(found.s) <= 0)
        assert np.all(found.s >= 0)


@pytest.mark.parametrize("shape", [(96, 512), (512, 96), (300, 301)], ids=str)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_the_estimated_error_is_the_error(workspace: Workspace, shape: tuple[int, int], spectrum: str) -> None:
    a = spectral(*shape, spectrum)
    found = truncated_svd(a, rank=10, workspace=workspace)
    true = np.linalg.norm(a - (found.u.astype(np.float64) * found.s) @ found.vt) / np.linalg.norm(a)
    assert found.error == pytest.approx(true, rel=1e-3, abs=2e-3)


@pytest.mark.parametrize("shape", [(64, 48), (48, 64), (20, 20)], ids=str)
def test_small_matrices_give_the_singular_values_and_vectors_of_float64(
    workspace: Workspace, shape: tuple[int, int]
) -> None:
    a = spectral(*shape)
    u, s, vt = reference_low_rank.truncated_svd(a, 6)
    found = truncated_svd(a, rank=6, workspace=workspace)
    np.testing.assert_allclose(found.s, s, rtol=1e-5)
    np.testing.assert_allclose(found.u, u, atol=1e-4)
    np.testing.assert_allclose(found.vt, vt, atol=1e-4)


def test_large_matrices_follow_the_twin_that_iterates_from_the_same_start(workspace: Workspace) -> None:
    a = spectral(300, 200, "slow")
    found = truncated_svd(a, rank=8, seed=3, workspace=workspace)
    assert found.passes == 5
    np.testing.assert_allclose(found.s, reference_low_rank.randomised(a, 16, 3)[:8], rtol=2e-6)


def test_a_strict_tolerance_reaches_what_arpack_finds(workspace: Workspace) -> None:
    a = spectral(300, 200, "slow")
    strict = truncated_svd(a, rank=8, tolerance=1e-6, iterations=100, workspace=workspace)
    theirs = scipy.sparse.linalg.svds(a.astype(np.float64), k=8, return_singular_vectors=False)
    np.testing.assert_allclose(strict.s, np.sort(theirs)[::-1], rtol=2e-5)
    assert strict.passes > truncated_svd(a, rank=8, workspace=workspace).passes


def test_white_noise_takes_more_iterations_until_it_is_within_1_02(workspace: Workspace) -> None:
    a = np.random.default_rng(0).standard_normal((400, 400)).astype(np.float32)
    found = truncated_svd(a, rank=96, workspace=workspace)
    assert ratio_to_best(a, found.dense(), 96) <= 1.02


@pytest.mark.parametrize("shape", [(40, 30), (200, 150)], ids=str)
def test_the_same_seed_gives_the_same_bits_for_any_number_of_threads(shape: tuple[int, int]) -> None:
    a = spectral(*shape, "slow")
    runs = [truncated_svd(a, rank=9, seed=5, workspace=Workspace(threads)) for threads in (1, 2, 3, 5)]
    for other in runs[1:]:
        assert (runs[0].u == other.u).all()
        assert (runs[0].s == other.s).all()
        assert (runs[0].vt == other.vt).all()
        assert (runs[0].error, runs[0].passes) == (other.error, other.passes)


def test_another_seed_gives_other_bits() -> None:
    a = spectral(200, 150, "slow")
    assert (truncated_svd(a, rank=9, seed=1).s != truncated_svd(a, rank=9, seed=2).s).any()


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (200, 150), (150, 200)], ids=str)
@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e30])
def test_scales_of_float32_do_not_matter(workspace: Workspace, shape: tuple[int, int], scale: float) -> None:
    a = spectral(*shape) * np.float32(scale)
    found = truncated_svd(a, rank=5, workspace=workspace)
    s = _values(a.tobytes(), a.shape)
    np.testing.assert_allclose(found.s, s[:5], rtol=1e-3)
    assert departure(found.u) <= 1e-5
    assert found.error == pytest.approx(np.linalg.norm(s[5:]) / np.linalg.norm(s), rel=0.02)


@pytest.mark.parametrize("shape", [(6, 9), (60, 50), (300, 200), (200, 300)], ids=str)
@pytest.mark.parametrize("true_rank", [0, 1, 3])
def test_matrices_of_low_rank_give_zeros_and_full_bases(
    workspace: Workspace, shape: tuple[int, int], true_rank: int
) -> None:
    rng = np.random.default_rng(1)
    left, right = rng.integers(-2, 3, (shape[0], true_rank)), rng.integers(-2, 3, (true_rank, shape[1]))
    a = (left @ right).astype(np.float32)
    found = truncated_svd(a, rank=5, workspace=workspace)
    assert departure(found.u) <= 1e-5
    assert departure(found.vt.T) <= 1e-5
    np.testing.assert_allclose(found.dense(), a, atol=1e-4)
    assert found.error <= 3e-3
    assert np.all(found.s[true_rank:] <= 1e-5 * max(found.s[0], 1))


@pytest.mark.parametrize("shape", [(50, 40), (40, 300), (400, 300)], ids=str)
@pytest.mark.parametrize("energy", [0.3, 0.9, 0.99, 1.0])
def test_an_energy_gives_the_smallest_rank_that_holds_it(
    workspace: Workspace, shape: tuple[int, int], energy: float
) -> None:
    a = spectral(*shape)
    s = _values(a.tobytes(), a.shape)
    found = truncated_svd(a, energy=energy, tolerance=1e-3, iterations=50, workspace=workspace)
    assert found.rank == reference_low_rank.best_rank(s, energy)
    true = np.linalg.norm(a - found.dense().astype(np.float64)) / np.linalg.norm(a)
    assert true**2 <= 1 - energy + 1e-6


@pytest.mark.parametrize("count", [5, 20])
def test_a_flat_spectrum_sends_its_full_rank(count: int) -> None:
    found = truncated_svd(np.eye(count, dtype=np.float32), energy=0.99)
    assert found.rank == count
    np.testing.assert_allclose(found.dense(), np.eye(count), atol=1e-6)


def test_a_rank_caps_an_energy_and_the_error_says_what_is_missing() -> None:
    found = truncated_svd(spectral(300, 200, "slow"), rank=12, energy=0.99)
    assert found.rank == 12
    assert found.error**2 > 1 - 0.99


def test_a_warm_start_saves_an_iteration_on_a_drifted_matrix(workspace: Workspace) -> None:
    a, drift = spectral(300, 200), spectral(300, 200, seed=9)
    before = truncated_svd(a, rank=8, workspace=workspace)
    found = truncated_svd(a + np.float32(0.1) * drift, rank=8, warm=before.vt, workspace=workspace)
    assert found.passes == 3
    assert ratio_to_best(a + np.float32(0.1) * drift, found.dense(), 8) <= 1.02


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("shape", [(5, 4), (200, 300)], ids=str)
def test_what_is_not_finite_is_refused_with_its_place(
    workspace: Workspace, shape: tuple[int, int], value: float
) -> None:
    a = spectral(*shape).copy()
    a[3, 2] = value
    named = "NaN" if math.isnan(value) else "infinite"
    with pytest.raises(ValueError, match=rf"a\[3, 2\] is {named}"):
        truncated_svd(a, rank=2, workspace=workspace)
    with pytest.raises(ValueError, match=rf"a\[3, 2\] is {named}"):
        power_step(a, np.eye(shape[1], 2, dtype=np.float32), workspace=workspace)
    with pytest.raises(ValueError, match=rf"q\[3, 1\] is {named}"):
        power_step(spectral(*shape), np.where(np.arange(2 * shape[1]) == 7, value, 1).reshape(-1, 2).astype(np.float32))
    with pytest.raises(ValueError, match=rf"warm\[0, 2\] is {named}"):
        truncated_svd(spectral(200, 300), rank=2, warm=np.where(np.arange(300) == 2, value, 1)[None].astype(np.float32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs a rank, an energy, or both"),
        ({"rank": 0}, "rank must be in 1..4, got 0"),
        ({"rank": 5}, "rank must be in 1..4, got 5"),
        ({"energy": 0.0}, r"energy must be in \(0, 1\], got 0.0"),
        ({"energy": 1.5}, r"energy must be in \(0, 1\], got 1.5"),
        ({"energy": math.nan}, r"energy must be in \(0, 1\], got nan"),
        ({"rank": 1, "tolerance": 0.0}, "tolerance must be positive"),
        ({"rank": 1, "iterations": 0}, "iterations must be in 1..1000, got 0"),
        ({"rank": 1, "warm": np.ones((1, 5), np.float32)}, "a column for each of the 4 columns of a, got 5"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        truncated_svd(np.ones((6, 4), np.float32), **options)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)])
def test_empty_matrices_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"a must have 1 to 2\^40 elements"):
        truncated_svd(np.ones(shape, np.float32), rank=1)


def test_other_dtypes_and_layouts_are_refused() -> None:
    for wrong in (np.ones((4, 4)), np.ones((4, 8), np.float32)[:, ::2], np.ones(4, np.float32)):
        with pytest.raises(TypeError, match="a must be a C-contiguous float32 array of 2 dimension"):
            truncated_svd(wrong, rank=1)


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (40, 30), (300, 200), (200, 300)], ids=str)
def test_a_power_step_is_that_of_the_twin(workspace: Workspace, shape: tuple[int, int]) -> None:
    a, rank = spectral(*shape, "slow"), min(5, *shape)
    q = np.random.default_rng(2).standard_normal((shape[1], rank)).astype(np.float32)
    p, fresh = power_step(a, q, workspace=workspace)
    p64, q64 = reference_low_rank.power_step(a, q)
    np.testing.assert_allclose(p.astype(np.float64) @ fresh.T, p64 @ q64.T, atol=1e-5)
    np.testing.assert_allclose(fresh, a.T @ p, atol=1e-5)
    assert departure(p) <= 1e-5


@pytest.mark.parametrize("seed", range(3))
def test_power_steps_from_their_own_q_approach_the_best_as_in_float64(seed: int) -> None:
    a = spectral(200, 300)
    q = np.random.default_rng(seed).standard_normal((300, 4)).astype(np.float32)
    q64: NDArray[Any] = q
    curve = []
    for _ in range(8):
        p, q = power_step(a, q)
        p64, q64 = reference_low_rank.power_step(a, q64)
        curve.append(ratio_to_best(a, p @ q.T, 4))
        assert curve[-1] == pytest.approx(ratio_to_best(a, p64 @ q64.T, 4), rel=1e-4)
    assert curve == sorted(curve, reverse=True)
    assert curve[-1] < 1.05 < curve[0]


def test_power_steps_with_error_feedback_conserve_what_they_were_given() -> None:
    rng = np.random.default_rng(3)
    q, left, sent, given = rng.standard_normal((50, 3)).astype(np.float32), 0.0, 0.0, 0.0
    for _ in range(6):
        gradient = rng.standard_normal((70, 50))
        matrix = (gradient + left).astype(np.float32)
        p, q = power_step(matrix, q)
        left, sent, given = matrix - p.astype(np.float64) @ q.T, sent + p.astype(np.float64) @ q.T, given + gradient
    np.testing.assert_allclose(sent + left, given, atol=1e-4)


def test_a_zero_gradient_gives_zero_factors_and_the_next_step_starts_anew() -> None:
    p, q = power_step(np.zeros((30, 20), np.float32), np.eye(20, 3, dtype=np.float32))
    assert not p.any()
    assert not q.any()
    a = spectral(30, 20)
    p, q = power_step(a, q)
    assert departure(p) <= 1e-5
    assert np.linalg.norm(a - p @ q.T) < 0.95 * np.linalg.norm(a)


def test_power_steps_of_denormals_stay_finite_and_conserve_what_they_were_given(workspace: Workspace) -> None:
    """As from weights that began at zero, and hardly have a gradient."""
    a = np.random.default_rng(0).choice(np.array([1e-45, 3e-42, -2e-40, 0], np.float32), (7, 9))
    residual, q = np.zeros_like(a), np.zeros((9, 2), np.float32)
    told = np.zeros(a.shape)
    for _ in range(12):
        residual += a
        p, q = power_step(residual, q, workspace=workspace)
        said = (p.astype(np.float64) @ q.T).astype(np.float32)
        residual -= said
        told += said
    np.testing.assert_allclose(told + residual, 12 * a.astype(np.float64), atol=1e-43)
    assert np.linalg.norm(residual / 12) < 0.7 * np.linalg.norm(a.astype(np.float64))


@pytest.mark.parametrize("scale", [1e-38, 1e-25, 1e25, 1e36])
def test_power_steps_work_at_any_scale_of_float32(scale: float) -> None:
    a = spectral(60, 40) * np.float32(scale)
    p, q = power_step(a, np.eye(40, 4, dtype=np.float32))
    assert departure(p) <= 1e-5
    assert np.linalg.norm(a.astype(np.float64) - p.astype(np.float64) @ q.T) < np.linalg.norm(a.astype(np.float64))


@pytest.mark.parametrize(
    ("shape", "matrix"),
    [
        ((), None),
        ((5,), None),
        ((5, 1), None),
        ((1, 5), None),
        ((0, 5), None),
        ((6, 5), (6, 5)),
        ((16, 3, 5, 5), (16, 75)),
        ((32, 1, 3, 3), (32, 9)),
    ],
)
def test_tensors_are_matrices_of_their_first_axis_against_the_others(
    shape: tuple[int, ...], matrix: tuple[int, int] | None
) -> None:
    assert as_matrix(shape) == matrix


def test_the_saving_rank_is_the_last_whose_factors_are_smaller() -> None:
    assert (saving_rank(768, 768), saving_rank(768, 3072)) == (383, 614)
    for m, n in ((2, 2), (5, 7), (64, 576)):
        rank = saving_rank(m, n)
        assert rank * (m + n + 1) < m * n <= (rank + 1) * (m + n + 1)


def test_a_tree_gives_factors_where_they_are_smaller_and_none_elsewhere(workspace: Workspace) -> None:
    arrays = [
        spectral(40, 60),
        np.ones(40, np.float32),
        spectral(16, 75).reshape(16, 3, 5, 5),
        spectral(2, 2),
        np.eye(30, dtype=np.float32),
    ]
    found = truncated_svd_tree(arrays, energy=0.95, workspace=workspace)
    assert [factors is not None for factors in found] == [True, False, True, False, False]
    for array, factors in zip(arrays, found, strict=True):
        if factors is not None:
            assert factors.rank * (factors.u.shape[0] + factors.vt.shape[1] + 1) < array.size
            assert np.linalg.norm(factors.dense() - array.reshape(factors.dense().shape)) ** 2 <= 0.05 * np.sum(
                array**2
            )
    ranked = truncated_svd_tree(arrays, rank=4, warm=[f and f.vt for f in found], workspace=workspace)
    assert [f and f.rank for f in ranked] == [4, None, 4, None, 4]


def bytes_of(m: int, n: int, width: int, square: int, threads: int) -> int:
    """What csrc/algorithms/svd.h promises."""
    return 8 * width * (m + n) + 28 * square**2 + 256 * square * threads + 4096


@pytest.mark.parametrize(("m", "n", "rank"), [(300, 200, 8), (200, 300, 40), (1000, 70, 4)])
def test_memory_is_what_the_contract_says(m: int, n: int, rank: int) -> None:
    workspace = Workspace(threads=2)
    truncated_svd(spectral(m, n), rank=rank, workspace=workspace)
    width = (rank + 8 + 15) // 16 * 16
    assert 0 < workspace.peak_bytes <= bytes_of(m, n, width, width, 2)


def test_memory_of_the_small_route_is_what_the_contract_says() -> None:
    workspace = Workspace()
    truncated_svd(spectral(60, 90), rank=40, workspace=workspace)
    assert 0 < workspace.peak_bytes <= bytes_of(60, 90, 48, 64, 1) + 4 * 60 * 90
