"""Samplers of negatives: who is drawn, how often, and that sampled denominators are right on average."""

from __future__ import annotations

import tracemalloc
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy import stats

from edge_runtime import kernels

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.kernels import Negatives

POSITIVES = np.array([3, 17, 0, 29, 4])
N, DRAWS, ROUNDS = 30, 12, 4000
COUNTS = np.array([5, 0, 1, 9, 2] * 6)
NONE = np.zeros(0, np.int64)

SAMPLERS: dict[str, Callable[[int], Negatives]] = {
    "uniform": lambda seed: kernels.uniform_negatives(N, POSITIVES, DRAWS, seed=seed),
    "uniform, most": lambda seed: kernels.uniform_negatives(N, POSITIVES, 20, seed=seed),
    "log-uniform": lambda seed: kernels.log_uniform_negatives(N, POSITIVES, DRAWS, seed=seed),
    "frequent": lambda seed: kernels.frequent_negatives(COUNTS, POSITIVES, DRAWS, seed=seed),
}


def inclusion(name: str) -> np.ndarray:
    """The probability of every class by the definition, (N,)."""
    p = {
        "log-uniform": np.log((np.arange(N) + 2) / (np.arange(N) + 1)) / np.log(N + 1),
        "frequent": COUNTS / COUNTS.sum(),
    }.get(name)
    q = np.full(N, {"uniform": DRAWS, "uniform, most": 20}.get(name, 0) / 25) if p is None else 1 - (1 - p) ** DRAWS
    q[POSITIVES] = 0.0
    return q


@pytest.mark.parametrize("name", SAMPLERS)
def test_classes_are_distinct_no_positives_and_carry_their_probability(name: str) -> None:
    q = inclusion(name)
    for seed in range(200):
        drawn = SAMPLERS[name](seed)
        assert drawn.classes.dtype == np.int32
        assert len(set(drawn.classes.tolist())) == len(drawn.classes)
        assert not set(drawn.classes.tolist()) & set(POSITIVES.tolist())
        np.testing.assert_allclose(drawn.q, q[drawn.classes], rtol=1e-12)
        np.testing.assert_allclose(drawn.correction, -np.log(drawn.q), rtol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_class_is_drawn_as_often_as_its_probability_says(name: str) -> None:
    q, seen = inclusion(name), np.zeros(N)
    for seed in range(ROUNDS):
        seen[SAMPLERS[name](seed).classes] += 1
    possible = q > 0
    assert not seen[~possible].any()
    deviation = np.zeros(N)
    np.divide(seen - ROUNDS * q, np.sqrt(ROUNDS * q * (1 - q)), out=deviation, where=possible)
    assert np.abs(deviation).max() < 4.0  # 25 classes: beyond it once in 600 runs, were the seeds not fixed
    if name.startswith("uniform"):  # counts of a fixed sum: Pearson's statistic, times what no replacement takes away
        m = 20 if "most" in name else DRAWS
        statistic = np.sum((seen[possible] - ROUNDS * m / 25) ** 2) / (ROUNDS * m / 25) * 24 / (25 - m)
        assert stats.chi2.cdf(statistic, 24) < 0.999
        assert stats.chi2.cdf(statistic, 24) > 0.001


def test_pairs_of_a_uniform_sample_are_as_frequent_as_without_replacement() -> None:
    pairs = np.zeros((N, N))
    for seed in range(ROUNDS):
        classes = SAMPLERS["uniform"](seed).classes
        pairs[np.ix_(classes, classes)] += 1
    others = np.setdiff1d(np.arange(N), POSITIVES)
    upper = pairs[np.ix_(others, others)][np.triu_indices(25, 1)]
    expected = ROUNDS * DRAWS * (DRAWS - 1) / (25 * 24)
    assert np.abs(upper - expected).max() < 4.5 * np.sqrt(expected)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_sampled_denominator_is_the_full_one_on_average(name: str) -> None:
    """Over draws, sum of e^(o + correction) is the sum over all classes that can be drawn, to three standard errors."""
    o = np.random.default_rng(0).normal(size=N)
    can = inclusion(name) > 0
    sums = []
    for seed in range(10_000):
        drawn = SAMPLERS[name](seed + 50_000)
        sums.append(np.sum(np.exp(o[drawn.classes] + drawn.correction.astype(np.float64))))
    assert abs(np.mean(sums) - np.exp(o[can]).sum()) < 3 * np.std(sums) / np.sqrt(len(sums))


def test_the_sampled_softmax_of_all_negatives_is_the_full_softmax() -> None:
    rng = np.random.default_rng(1)
    features, rows = (rng.standard_normal((n, 8)).astype(np.float32) for n in (6, N))
    drawn = kernels.uniform_negatives(N, POSITIVES, N - len(POSITIVES), seed=4)
    classes = np.concatenate([POSITIVES, drawn.classes]).astype(np.int32)
    labels = rng.integers(0, len(POSITIVES), 6).astype(np.int32)
    correction = np.concatenate([np.zeros(len(POSITIVES), np.float32), drawn.correction])
    sampled = kernels.sampled_softmax(features, rows, labels, classes, positives=len(POSITIVES), correction=correction)
    full = kernels.linear_cross_entropy(features, rows, POSITIVES[labels].astype(np.int32))
    assert sampled[0] == pytest.approx(full[0], rel=1e-6)
    np.testing.assert_allclose(sampled[1], full[1], atol=1e-6)
    np.testing.assert_allclose(sampled[2], full[2][classes], atol=1e-6)


def test_the_seed_decides_and_nothing_else() -> None:
    for draw in SAMPLERS.values():
        assert np.array_equal(draw(9).classes, draw(9).classes)
        assert not np.array_equal(draw(9).classes, draw(10).classes)
    first = kernels.uniform_negatives(1_000_000, POSITIVES, 5, seed=1).classes
    assert first.tolist() == [51703, 940126, 175372, 14590, 348795]  # the same on every machine


def test_ten_of_two_billion_classes_take_no_memory_for_the_others() -> None:
    tracemalloc.start()
    drawn = kernels.uniform_negatives((1 << 31) - 1, POSITIVES, 1000, seed=3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(drawn.classes) == 1000
    assert peak < 400_000


def test_the_probability_of_a_rare_class_is_right_to_the_last_digits() -> None:
    """1 - (1 - p)^t written down so would lose ten digits."""
    drawn = kernels.frequent_negatives(np.ones(1_000_000, np.int64), NONE, 3, seed=0)
    exact = 1 - (1 - Fraction(1, 1_000_000)) ** 3
    assert drawn.q[0] == pytest.approx(float(exact), rel=1e-15, abs=0.0)
    assert kernels.frequent_negatives(np.array([0, 7]), NONE, 3, seed=0).q.tolist() == [1.0]


def test_nothing_to_draw_is_an_empty_sample() -> None:
    assert len(kernels.uniform_negatives(3, np.arange(3), 0, seed=0).classes) == 0
    assert len(kernels.log_uniform_negatives(3, np.arange(3), 50, seed=0).classes) == 0
    assert len(kernels.frequent_negatives(np.ones(3, np.int64), NONE, 0, seed=0).classes) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kernels.uniform_negatives(30, POSITIVES, 26, seed=0), r"m must be in 0..25"),
        (lambda: kernels.uniform_negatives(0, NONE, 0, seed=0), r"number of classes must be in 1..2147483647, is 0"),
        (lambda: kernels.uniform_negatives(29, POSITIVES, 3, seed=0), r"positives must be in 0..28, are 0..29"),
        (lambda: kernels.uniform_negatives(30, np.array([2, 5, 2]), 3, seed=0), "2 is there twice"),
        (lambda: kernels.uniform_negatives(30, np.array([2.0]), 3, seed=0), "positives must be .* whole numbers"),
        (lambda: kernels.log_uniform_negatives(30, NONE, -1, seed=0), "draws must be in 0.."),
        (lambda: kernels.frequent_negatives(np.array([1.0, 2.0]), NONE, 1, seed=0), "whole numbers"),
        (lambda: kernels.frequent_negatives(np.array([1, -2]), NONE, 1, seed=0), "none negative"),
        (lambda: kernels.frequent_negatives(np.array([0, 0]), NONE, 1, seed=0), "must add up to 1.."),
        (lambda: kernels.frequent_negatives(np.array([2**62, 2**62, 2**62]), NONE, 1, seed=0), "must add up to"),
        (lambda: kernels.uniform_negatives(30, NONE, 3, seed=-1), r"-1 is not in 0"),
    ],
)
def test_bad_arguments_are_refused(call: Callable[[], Negatives], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
