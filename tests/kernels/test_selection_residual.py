"""Selection that accumulates: error feedback and Deep Gradient Compression, against their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_runtime.kernels import (
    NotANumber,
    Workspace,
    dgc,
    dgc_tree,
    reference_selection,
    top_k_residual,
    top_k_residual_tree,
)

Array = NDArray[Any]


def _normal(seed: int, n: int) -> Array:
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)


@pytest.mark.parametrize("n", [1, 17, 1000, 16384, 16400, 60_001])
def test_the_residual_keeps_what_was_not_sent(workspace: Workspace, n: int) -> None:
    for k in sorted({1, max(1, n // 1000), max(1, n // 50), max(1, n // 2), n}):
        gradient, residual = _normal(1, n), _normal(2, n)
        places, values, rest = reference_selection.sent(residual + gradient, k)
        found = top_k_residual(gradient, residual, k, workspace=workspace)
        np.testing.assert_array_equal(found.indices, places)
        np.testing.assert_array_equal(found.values, values)
        np.testing.assert_array_equal(residual, rest)


def test_constant_gradients_send_the_lowest_places_first(workspace: Workspace) -> None:
    n, k = 40_000, 1000
    residual = np.zeros(n, np.float32)
    gradient = np.ones(n, np.float32)
    first = top_k_residual(gradient, residual, k, workspace=workspace)
    second = top_k_residual(gradient, residual, k, workspace=workspace)
    assert first.indices.tolist() == list(range(k))
    assert second.indices.tolist() == list(range(k, 2 * k))
    assert residual.sum() == 2 * n - k - 2 * k


def test_what_was_sent_and_what_stays_is_what_was_added(workspace: Workspace) -> None:
    n = 30_000
    residual, total, received = np.zeros(n, np.float32), np.zeros(n), np.zeros(n)
    for step in range(20):
        gradient = _normal(step, n)
        total += gradient
        found = top_k_residual(gradient, residual, n // 100, workspace=workspace)
        received[found.indices] += found.values
    np.testing.assert_allclose(received + residual, total, atol=20 * 20 * 2.0**-23)


def test_without_loss_the_residual_is_empty_and_sgd_is_dense(workspace: Workspace) -> None:
    n = 2000
    residual, w, dense = np.zeros(n, np.float32), _normal(9, n), _normal(9, n)
    for step in range(5):
        gradient = _normal(step, n)
        found = top_k_residual(gradient, residual, n, workspace=workspace)
        w[found.indices] -= np.float32(0.1) * found.values
        dense -= np.float32(0.1) * gradient
        assert not residual.any()
    assert w.tobytes() == dense.tobytes()


def test_feedback_converges_where_top_1_alone_diverges() -> None:
    """f_i(x) = <a_i, x>^2 + |x|^2 / 4 on three nodes: without memory x grows by exactly 1 + 11 gamma / 6 a step."""
    a = np.array([[-3, 2, 2], [2, -3, 2], [2, 2, -3]], np.float32)
    gamma, workspace = np.float32(0.01), Workspace()

    def step(x: Array, residuals: Array) -> Array:
        update = np.zeros(3, np.float32)
        for node, residual in zip(a, residuals, strict=True):
            gradient = (2 * node * (node @ x) + x / 2).astype(np.float32)
            found = top_k_residual(gradient, residual, 1, workspace=workspace)
            update[found.indices] += found.values
        return np.asarray(x - gamma * update / 3)

    x, residuals = np.ones(3, np.float32), np.zeros((3, 3), np.float32)
    forgetful = x
    for _ in range(50):
        forgetful = step(forgetful, np.zeros((3, 3), np.float32))
    np.testing.assert_allclose(forgetful, np.full(3, (1 + 11 * 0.01 / 6) ** 50), rtol=1e-4)
    for _ in range(5000):
        x = step(x, residuals)
    assert np.abs(x).max() < 1e-6


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("masking", [False, True])
@pytest.mark.parametrize("n", [1, 33, 16384, 50_003])
def test_dgc_corrects_momentum_and_masks_it(workspace: Workspace, n: int, *, masking: bool, nesterov: bool) -> None:
    k = max(1, n // 100)
    gradient, momentum, residual = _normal(1, n), _normal(2, n), _normal(3, n)
    u, v = reference_selection.accumulate_dgc(gradient, momentum, residual, 0.9, nesterov=nesterov)
    places, values, rest = reference_selection.sent(v, k)
    found = dgc(gradient, momentum, residual, k, 0.9, nesterov=nesterov, masking=masking, workspace=workspace)
    np.testing.assert_array_equal(found.indices, places)
    assert found.values.tobytes() == values.tobytes()
    assert residual.tobytes() == rest.tobytes()
    if masking:
        u[places] = 0
    assert momentum.tobytes() == u.tobytes()


def test_dgc_that_sends_all_is_sgd_without_momentum_when_masked_and_with_it_when_not(workspace: Workspace) -> None:
    n, m = 500, np.float32(0.9)
    sums = {True: np.zeros(n, np.float32), False: np.zeros(n, np.float32)}
    states = {masking: (np.zeros(n, np.float32), np.zeros(n, np.float32)) for masking in sums}
    plain, velocity, heavy = np.zeros(n, np.float32), np.zeros(n, np.float32), np.zeros(n, np.float32)
    for step in range(6):
        gradient = _normal(step, n)
        for masking, (u, v) in states.items():
            found = dgc(gradient, u, v, n, 0.9, masking=masking, workspace=workspace)
            sums[masking][found.indices] += found.values
        plain += gradient
        velocity = m * velocity + gradient
        heavy += velocity
    assert sums[True].tobytes() == plain.tobytes()
    assert sums[False].tobytes() == heavy.tobytes()


@pytest.mark.parametrize("k", [100, 3000])
def test_a_tree_shares_one_k_and_clears_where_it_sent(workspace: Workspace, k: int) -> None:
    sizes = [40, 0, 20_000, 1, 9000]
    gradients = [_normal(10 + i, n) * (i + 1) for i, n in enumerate(sizes)]
    residuals, momenta = ([_normal(seed + i, n) for i, n in enumerate(sizes)] for seed in (20, 30))
    copies = [r.copy() for r in residuals]
    found = top_k_residual_tree(gradients, copies, k, workspace=workspace)
    joined = np.concatenate([r + g for r, g in zip(residuals, gradients, strict=True)])
    _, values, rest = reference_selection.sent(joined, k)
    assert np.concatenate([f.values for f in found]).tobytes() == values.tobytes()
    assert np.concatenate(copies).tobytes() == rest.tobytes()
    u, v = reference_selection.accumulate_dgc(*(np.concatenate(part) for part in (gradients, momenta, residuals)), 0.5)
    places, values, rest = reference_selection.sent(v, k)
    u[places] = 0
    found = dgc_tree(gradients, momenta, residuals, k, 0.5, workspace=workspace)
    assert np.concatenate([f.values for f in found]).tobytes() == values.tobytes()
    assert np.concatenate(residuals).tobytes() == rest.tobytes()
    assert np.concatenate(momenta).tobytes() == u.tobytes()


@pytest.mark.parametrize("n", [100, 40_000])
def test_a_nan_leaves_the_sum_and_zeroes_nothing(workspace: Workspace, n: int) -> None:
    gradient, residual = _normal(1, n), _normal(2, n)
    gradient[n // 3], residual[n // 3] = np.inf, -np.inf
    expected = residual + np.where(np.isinf(gradient), np.nan, gradient)
    with pytest.raises(NotANumber, match=f"element {n // 3} of residual is NaN"):
        top_k_residual(gradient, residual, 5, workspace=workspace)
    np.testing.assert_array_equal(residual, expected)


def test_shared_memory_wrong_shapes_and_read_only_states_are_refused_before_anything_changes() -> None:
    gradient, residual, momentum = _normal(1, 64), _normal(2, 64), _normal(3, 64)
    before = (gradient.copy(), residual.copy(), momentum.copy())
    frozen = residual.copy()
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="must not share memory"):
        top_k_residual(gradient, gradient, 1)
    with pytest.raises(ValueError, match="must not share memory"):
        top_k_residual_tree([gradient[:32], gradient[:32]], [residual[:32], residual[16:48]], 1)
    with pytest.raises(ValueError, match="must not share memory"):
        dgc(gradient, momentum, momentum, 1, 0.9)
    with pytest.raises(ValueError, match=r"residual 0 has shape \(63,\), its gradient \(64,\)"):
        top_k_residual(gradient, residual[:63], 1)
    with pytest.raises(ValueError, match="there are 1 gradients and 2 residuals"):
        top_k_residual_tree([gradient], [residual, momentum], 1)
    with pytest.raises(ValueError, match="there are 1 gradients and 0 momenta"):
        dgc_tree([gradient], [], [residual], 1, 0.9)
    with pytest.raises(ValueError, match="residual is read-only"):
        top_k_residual(gradient, frozen, 1)
    with pytest.raises(ValueError, match=r"k must be in 1\.\.64"):
        top_k_residual(gradient, residual, 65)
    with pytest.raises(ValueError, match="momentum_factor must be finite, got inf"):
        dgc(gradient, momentum, residual, 1, np.inf)
    with pytest.raises(TypeError, match="gradient must be a C-contiguous float32 array"):
        top_k_residual(gradient.astype(np.float64), residual, 1)
    for array, kept in zip((gradient, residual, momentum), before, strict=True):
        np.testing.assert_array_equal(array, kept)


def test_extra_memory_follows_k_however_large_the_residual() -> None:
    n, k = 1_000_000, 1000
    workspace = Workspace()
    top_k_residual(_normal(1, n), _normal(2, n), k, workspace=workspace)
    assert workspace.peak_bytes < 400_000
