"""Selection by magnitude against a stable sort, torch and NumPy: every instruction set, one and three threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from numpy.typing import NDArray

from edge_runtime.kernels import (
    NotANumber,
    Selection,
    Workspace,
    above,
    info,
    reference_selection,
    sampled_threshold,
    top_k,
    top_k_tree,
)

Array = NDArray[Any]

# Where the way of selecting changes (16,384), and around whole vectors and groups of them.
SIZES = (1, 2, 3, 15, 16, 17, 63, 64, 65, 129, 1000, 16383, 16384, 16385, 40001, 131072)
SHAPES_OF_DATA = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "heavy tails": lambda rng, n: rng.standard_cauchy(n),
    "all equal": lambda _rng, n: np.full(n, -2.5),
    "all zero": lambda _rng, n: np.zeros(n),
    "two values": lambda rng, n: rng.integers(0, 2, n),
    "heavy ties": lambda rng, n: rng.integers(-3, 4, n),
    "sorted": lambda _rng, n: np.arange(n),
    "reversed": lambda _rng, n: np.arange(n)[::-1],
    "mostly zero": lambda rng, n: np.where(rng.random(n) < 0.02, rng.standard_normal(n), 0),
    "denormal": lambda rng, n: rng.standard_normal(n) * 1e-41,
    "one row far larger": lambda rng, n: rng.standard_normal(n) * np.where(np.arange(n) < n // 20, 1e6, 1),
    "infinities": lambda rng, n: np.where(rng.random(n) < 0.1, np.inf, rng.standard_normal(n)) * rng.choice([-1, 1], n),
}


def _data(shape: str, n: int) -> Array:
    x = SHAPES_OF_DATA[shape](np.random.default_rng(n), n)
    return np.ascontiguousarray(x, np.float32)


def _ks(n: int) -> list[int]:
    return sorted({1, max(1, n // 1000), max(1, n // 100), max(1, n // 10), max(1, n // 3), max(1, n - 1), n})


def _same_bits(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _assert_selects(selection: Selection, x: Array, places: Array) -> None:
    assert selection.indices.dtype == np.int32
    np.testing.assert_array_equal(selection.indices, places)
    assert _same_bits(selection.values, x.reshape(-1)[places])


@pytest.mark.parametrize("shape", SHAPES_OF_DATA)
def test_the_k_largest_are_those_of_a_stable_sort(workspace: Workspace, shape: str) -> None:
    for n in SIZES:
        x = _data(shape, n)
        order = np.argsort(-np.abs(x), kind="stable")
        for k in _ks(n):
            _assert_selects(top_k(x, k, workspace=workspace), x, np.sort(order[:k]))


def test_ten_million_elements_agree_with_torch_and_argpartition() -> None:
    x = np.random.default_rng(3).standard_normal(10_000_000, np.float32)
    workspace = Workspace(threads=2)
    for k in (10_000, 100_000, 1_000_000):
        found = top_k(x, k, workspace=workspace)
        theirs = torch.topk(torch.from_numpy(x).abs(), k)
        assert np.abs(found.values).min() == theirs.values.min().item()
        least = np.abs(x[np.argpartition(-np.abs(x), k - 1)[:k]]).min()
        assert np.abs(found.values).min() == least
        assert (np.abs(x) > least).sum() < k
        assert _same_bits(found.values, x[found.indices])
        assert (np.diff(found.indices) > 0).all()


@given(
    x=st_numpy.arrays(
        np.float32,
        st.integers(1, 200),
        elements=st.floats(width=32, allow_nan=False) | st.sampled_from([0.0, -0.0, 1.0]),
    ),
    share=st.floats(0, 1),
)
@settings(deadline=None, max_examples=200)
def test_any_floats_but_nan_are_ordered_by_magnitude_then_index(x: Array, share: float) -> None:
    k = max(1, round(share * x.size))
    for isa in info()["available"]:
        _assert_selects(top_k(x, k, workspace=Workspace(isa=isa)), x, reference_selection.top_k(x, k))


def test_both_zeros_tie_below_the_least_denormal(workspace: Workspace) -> None:
    x = np.array([-0.0, 0.0, -1e-45, -0.0], np.float32)
    _assert_selects(top_k(x, 1, workspace=workspace), x, np.array([2]))
    _assert_selects(top_k(x, 3, workspace=workspace), x, np.array([0, 1, 2]))


def test_slices_at_every_misalignment_select_alike(workspace: Workspace) -> None:
    base = np.random.default_rng(5).standard_normal(20_100).astype(np.float32)
    for begin in range(17):
        x = base[begin : begin + 20_000 + begin % 7]
        _assert_selects(top_k(x, 211, workspace=workspace), x, reference_selection.top_k(x, 211))


def test_an_array_of_any_shape_is_taken_in_c_order(workspace: Workspace) -> None:
    x = np.random.default_rng(5).standard_normal((7, 3, 11)).astype(np.float32)
    _assert_selects(top_k(x, 20, workspace=workspace), x, reference_selection.top_k(x, 20))


@pytest.mark.parametrize("n", [1, 31, 5000, 16384, 60_000])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_are_selected_exactly(workspace: Workspace, dtype: str, n: int) -> None:
    rng = np.random.default_rng(n)
    words = rng.integers(0, 2**16, n, np.uint16)
    bfloat16 = dtype == "bfloat16"
    words[(words & 0x7FFF) > (0x7F80 if bfloat16 else 0x7C00)] = 0x3C01
    x, name = (words, "bfloat16") if bfloat16 else (words.view(np.float16), None)
    for k in _ks(n):
        found = top_k(x, k, dtype=name, workspace=workspace)
        _assert_selects(found, x, reference_selection.top_k(words, k, bfloat16=bfloat16))


@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 5000, 70_001])
def test_a_threshold_selects_all_that_reach_it(workspace: Workspace, n: int) -> None:
    x = _data("heavy tails", n)
    for threshold in (0.0, 1e-45, 0.1, 1.0, 1e30, np.inf):
        _assert_selects(above(x, threshold, workspace=workspace), x, reference_selection.above(x, threshold))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_threshold_is_a_real_number_not_a_rounded_one(workspace: Workspace, dtype: str) -> None:
    bfloat16 = dtype == "bfloat16"
    one = np.array([0x3F80], np.uint16) if bfloat16 else np.ones(1, dtype)
    name = "bfloat16" if bfloat16 else None
    assert above(one, 1.0, dtype=name, workspace=workspace).indices.size == 1
    assert above(one, 1.0 + 1e-12, dtype=name, workspace=workspace).indices.size == 0
    assert above(one, 1.0 - 1e-12, dtype=name, workspace=workspace).indices.size == 1
    assert above(one, 1e300, dtype=name, workspace=workspace).indices.size == 0


@pytest.mark.parametrize("k", [50, 900, 20_000])
def test_a_tree_is_selected_as_if_it_were_joined(workspace: Workspace, k: int) -> None:
    rng = np.random.default_rng(k)
    shapes = [(3, 5), (0,), (64,), (300, 70), (1,), (10_000,), (0, 4), (17,)]
    tree = [(rng.integers(-40, 40, shape) * scale).astype(np.float32) for scale, shape in enumerate(shapes, 1)]
    joined = np.concatenate([x.reshape(-1) for x in tree])
    places = reference_selection.top_k(joined, k)
    found = top_k_tree(tree, k, workspace=workspace)
    begins = np.cumsum([0, *(x.size for x in tree)])[:-1]
    np.testing.assert_array_equal(np.concatenate([s.indices + b for s, b in zip(found, begins, strict=True)]), places)
    for selection, x in zip(found, tree, strict=True):
        assert _same_bits(selection.values, x.reshape(-1)[selection.indices])


@pytest.mark.parametrize("shape", ["all equal", "two values", "heavy ties"])
def test_ties_go_to_the_earlier_tensor(workspace: Workspace, shape: str) -> None:
    for n in (9, 130, 20_000):
        x = _data(shape, n)
        for k in _ks(n):
            places = reference_selection.top_k(x, k)
            first, second = top_k_tree([x[: n // 3], x[n // 3 :]], k, workspace=workspace)
            np.testing.assert_array_equal(np.concatenate([first.indices, second.indices + n // 3]), places)


@pytest.mark.parametrize("n", [5, 16384, 50_000])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.array(0x7F800001, np.uint32).view(np.float32)])
def test_a_nan_is_refused_and_the_first_is_named(workspace: Workspace, n: int, value: Any) -> None:
    for shape in ("normal", "all equal", "infinities"):
        x = _data(shape, n)
        x[[n // 2, n - 1]] = value
        for k in (1, max(1, n // 100), n):
            with pytest.raises(NotANumber, match=f"element {n // 2} of x is NaN"):
                top_k(x, k, workspace=workspace)
        with pytest.raises(NotANumber, match=f"element {n // 2} of x"):
            above(x, 1.0, workspace=workspace)
    with pytest.raises(NotANumber, match=r"element 3 of array 1"):
        top_k_tree([np.ones(2, np.float32), np.array([1, 2, 3, value], np.float32)], 1, workspace=workspace)


@pytest.mark.parametrize("bits", [0x7C01, 0xFE00])
def test_a_nan_among_halves_is_refused(workspace: Workspace, bits: int) -> None:
    x = np.ones(9, np.float16)
    x.view(np.uint16)[4] = bits
    with pytest.raises(NotANumber, match="element 4"):
        top_k(x, 2, workspace=workspace)
    y = np.full(9, 0x7F80, np.uint16)
    assert top_k(y, 2, dtype="bfloat16", workspace=workspace).indices.tolist() == [0, 1]
    y[6] = 0xFF81
    with pytest.raises(NotANumber, match="element 6"):
        top_k(y, 2, dtype="bfloat16", workspace=workspace)


def test_wrong_arguments_are_refused_with_the_rule() -> None:
    x = np.ones(4, np.float32)
    for k in (0, -1, 5):
        with pytest.raises(ValueError, match=rf"k must be in 1\.\.4, the number of elements, got {k}"):
            top_k(x, k)
    with pytest.raises(ValueError, match=r"k must be in 1\.\.0"):
        top_k(x[:0], 1)
    with pytest.raises(ValueError, match=r"k must be in 1\.\.0"):
        top_k_tree([], 1)
    with pytest.raises(TypeError, match="x must be float32, float16, or uint16"):
        top_k(x.astype(np.float64), 1)
    with pytest.raises(TypeError, match="x must be float32, float16, or uint16"):
        top_k(x.view(np.uint16), 1)
    with pytest.raises(TypeError, match="x must be a C-contiguous float32 array"):
        top_k(x[::2], 1)
    with pytest.raises(ValueError, match="threshold must be at least 0, got -1"):
        above(x, -1.0)
    with pytest.raises(ValueError, match="threshold must be at least 0, got nan"):
        above(x, float("nan"))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", ["normal", "sorted", "all equal", "heavy ties"])
def test_extra_memory_follows_k(threads: int, shape: str) -> None:
    n = 1_000_000
    x = _data(shape, n)
    for k in (100, 10_000, 100_000):
        workspace = Workspace(threads=threads)
        top_k(x, k, workspace=workspace)
        # The contract's formula: what is picked may be k and eight deviations of the sample's estimate of it.
        step = n / 2048
        picked = k + 8 * np.sqrt(3 * k * step) + 30 * step * threads
        assert workspace.peak_bytes <= 10 * picked + 4 * 2048 + threads * 33_000


class TestSampledThreshold:
    def test_the_count_lies_in_the_band_and_the_threshold_says_which(self, workspace: Workspace) -> None:
        x = _data("heavy tails", 100_000)
        for seed in range(20):
            found = sampled_threshold(x, 0.01, seed, sample=0.1, workspace=workspace)
            assert 800 <= found.indices.size <= 1300
            _assert_selects(Selection(found.indices, found.values), x, reference_selection.above(x, found.threshold))

    def test_the_spread_of_counts_is_that_of_the_law(self) -> None:
        x = _data("normal", 200_000)
        keep, size = 0.01, 20_000
        counts = [
            sampled_threshold(x, keep, seed, sample=size / x.size, band=(0, 100)).indices.size for seed in range(200)
        ]
        expected = keep * x.size
        deviation = expected / np.sqrt(size * keep)
        assert abs(np.mean(counts) - expected) < 5 * deviation / np.sqrt(200) + 0.01 * expected
        assert 0.6 * deviation < np.std(counts) < 1.4 * deviation

    def test_a_seed_gives_the_same_bits_on_every_instruction_set(self) -> None:
        x = _data("normal", 50_000)
        found = [
            sampled_threshold(x, 0.02, 7, workspace=Workspace(threads=threads, isa=isa))
            for isa in info()["available"]
            for threads in (1, 1)
        ]
        assert len({f.indices.tobytes() for f in found}) == 1
        assert len({sampled_threshold(x, 0.02, seed).threshold for seed in range(9)}) > 1

    @pytest.mark.parametrize("shape", ["all equal", "all zero", "two values"])
    def test_ties_at_the_threshold_give_exactly_k(self, workspace: Workspace, shape: str) -> None:
        x = _data(shape, 40_000)
        found = sampled_threshold(x, 0.01, 1, workspace=workspace)
        _assert_selects(Selection(found.indices, found.values), x, reference_selection.top_k(x, 400))

    def test_a_band_nobody_hits_ends_with_the_exact_top_k(self, workspace: Workspace) -> None:
        x = _data("normal", 40_000)
        found = sampled_threshold(x, 0.01, 1, band=(1, 1), attempts=2, workspace=workspace)
        _assert_selects(Selection(found.indices, found.values), x, reference_selection.top_k(x, 400))

    @pytest.mark.parametrize("dtype", [np.float16, np.float32])
    def test_one_element_is_kept_of_one(self, workspace: Workspace, dtype: Any) -> None:
        found = sampled_threshold(np.array([-0.5], dtype), 0.001, 3, workspace=workspace)
        assert (found.indices.tolist(), found.values.tolist(), found.threshold) == ([0], [-0.5], 0.5)

    def test_wrong_arguments_are_refused(self) -> None:
        x = np.ones(4, np.float32)
        for keep, sample in ((0.0, 0.1), (1.5, 0.1), (0.1, 0.0), (float("nan"), 0.1)):
            with pytest.raises(ValueError, match=r"keep and sample must be in \(0, 1\]"):
                sampled_threshold(x, keep, 0, sample=sample)
        with pytest.raises(ValueError, match="band must be two finite numbers around 1"):
            sampled_threshold(x, 0.5, 0, band=(1.1, 2))
        with pytest.raises(ValueError, match="attempts at least 1"):
            sampled_threshold(x, 0.5, 0, attempts=0)
        x[2] = np.nan
        with pytest.raises(NotANumber, match="element 2"):
            sampled_threshold(x, 0.5, 0)
