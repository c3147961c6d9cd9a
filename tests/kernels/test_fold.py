"""Sums that no order changes: the bits of the twin, whatever form values come in, and hostile pieces."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime import kernels
from edge_runtime.kernels import Accumulator, CodedUpdate, Layout, Piece, StreamError
from edge_runtime.kernels import reference_fold as reference

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_runtime.kernels import Workspace

SIZES = (0, 1, 7, 255, 4095, 4096, 4097, 10_001)


def values(n: int, scale: float = 1e-2, seed: int = 0) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal(n) * scale).astype(np.float32)


def forms(x: NDArray[np.float32]) -> dict[str, Piece]:
    """The same values in every form, rounded as the form has it."""
    q, scales = kernels.quantize_int8(x, 64)
    wide_q, wide_scales = kernels.quantize_int8(x, 5000)
    return {
        "float32": Piece(x),
        "float16": Piece(kernels.to_float16(x)),
        "bfloat16": Piece(kernels.to_bfloat16(x)),
        "int8": Piece(q, scales=scales, block=64),
        "int8 wide": Piece(wide_q, scales=wide_scales, block=5000),
    }


@pytest.mark.parametrize("size", SIZES)
def test_every_form_gives_the_bits_of_the_twin(workspace: Workspace, size: int) -> None:
    layout = Layout({"w": (size,)})
    for name, piece in forms(values(size)).items():
        sums = Accumulator(layout, workspace=workspace)
        twin = []
        for weight in (600.0, 3.0, 0.37):
            sums.add(CodedUpdate([piece], layout, workspace=workspace), np.array([weight]))
            twin.append((reference.dense([piece], layout.shapes)["w"], weight))
        np.testing.assert_array_equal(sums.sum("w"), reference.weighted_sum(twin, size), err_msg=name)


@pytest.mark.parametrize("form", ["float32", "float16", "bfloat16", "int8", "int8 wide"])
def test_places_give_the_bits_of_the_dense_update(workspace: Workspace, form: str) -> None:
    layout = Layout({"a": (30, 100), "b": (1,), "c": (2, 0), "d": (9000,)})
    places = np.sort(np.random.default_rng(1).choice(layout.total, 6000, replace=False)).astype(np.int32)
    piece = forms(values(6000))[form]
    sparse = CodedUpdate([Piece(piece.values, 0, places, piece.scales, piece.block)], layout, workspace=workspace)
    tensors = reference.dense([Piece(piece.values, 0, places, piece.scales, piece.block)], layout.shapes)
    whole = CodedUpdate(layout.pieces(tensors), layout, workspace=workspace)
    weights = np.array([5.0, 2.5, 1.0, 1 / 3])
    ours, twin = Accumulator(layout, workspace=workspace), Accumulator(layout, workspace=workspace)
    ours.add(sparse, weights)
    twin.add(whole, weights)
    for name in layout.shapes:
        np.testing.assert_array_equal(ours.sum(name), twin.sum(name))
        flat = reference.weighted_sum([(tensors[name].reshape(-1), weights["abcd".index(name)])], tensors[name].size)
        np.testing.assert_array_equal(ours.sum(name), flat.reshape(layout.shapes[name]))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e9), st.integers(-30, 30)), max_size=8), st.randoms()
)
def test_no_order_of_updates_changes_a_bit(terms: list[tuple[int, float, int]], shuffle: object) -> None:
    layout = Layout({"w": (13,)})
    updates = [
        (CodedUpdate([Piece(values(13, 2.0**power, seed))], layout), np.array([weight]))
        for seed, weight, power in terms
    ]
    sums = []
    for _ in range(2):
        accumulator = Accumulator(layout)
        for update, weights in updates:
            accumulator.add(update, weights)
        sums.append(accumulator.sum("w").tobytes())
        shuffle.shuffle(updates)  # type: ignore[attr-defined]
    assert sums[0] == sums[1]


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1.0, 1e6, 1e12, 1e15])
def test_sums_are_those_of_exact_arithmetic(scale: float) -> None:
    """Within 2**-65 a term, and one rounding of the sum; terms from 2**27 on take a third sum."""
    layout = Layout({"w": (50,)})
    sums, exact = Accumulator(layout), [Fraction(0)] * 50
    for seed, weight in enumerate((600.0, 1.0, 12345.0, 2.0**20)):
        x = values(50, scale, seed)
        sums.add(CodedUpdate([Piece(x)], layout), np.array([weight]))
        exact = [total + Fraction(float(value)) * Fraction(weight) for total, value in zip(exact, x, strict=True)]
    for ours, total in zip(sums.sum("w"), exact, strict=True):
        assert abs(Fraction(float(ours)) - total) <= 4 * Fraction(2) ** -65 + abs(total) * Fraction(2) ** -51
    assert sums.nbytes == 50 * (24 if scale * 2**20 > 2**27 else 16)


def test_terms_that_cancel_leave_nothing() -> None:
    layout = Layout({"w": (100,)})
    sums = Accumulator(layout)
    for scale in (1e-3, 1e3, 1e15):
        x = values(100, scale)
        for sign in (1, -1):
            sums.add(CodedUpdate([Piece(sign * x)], layout), np.array([77.0]))
    assert not sums.sum("w").any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 4095, 4096, 8999])
def test_what_is_not_finite_is_named_and_never_added(workspace: Workspace, bad: float, place: int) -> None:
    layout = Layout({"a": (4096,), "b": (4904,)})
    x = values(9000)
    x[place] = bad
    sums = Accumulator(layout, workspace=workspace)
    for piece in (Piece(x), Piece(kernels.to_float16(x)), Piece(x, places=np.arange(9000, dtype=np.int32))):
        update = CodedUpdate([piece], layout, workspace=workspace)
        assert update.first_bad == ("a" if place < 4096 else "b")
        with pytest.raises(ValueError, match=f"place {place} is not finite"):
            sums.add(update, np.ones(2))
    assert not sums.sum("a").any()
    assert sums.terms == 0


def test_the_peak_is_the_largest_magnitude() -> None:
    x = values(9000)
    x[8123] = -5.5
    assert CodedUpdate([Piece(x)], Layout({"w": (9000,)})).peak == 5.5


@pytest.mark.parametrize("places", [[0, 1, 1], [2, 1, 3], [-1, 0, 1], [0, 5, 10], [0, 1, 2**31 - 1]])
def test_places_that_do_not_ascend_within_the_tensors_are_refused(places: list[int]) -> None:
    with pytest.raises(StreamError) as caught:
        CodedUpdate([Piece(values(3), places=np.array(places, np.int32))], Layout({"w": (10,)}))
    assert caught.value.args[0] == "NotAscending"


@pytest.mark.parametrize("begin", [-1, 8, 11, 2**62])
def test_values_beyond_the_tensors_are_refused(begin: int) -> None:
    with pytest.raises(StreamError) as caught:
        CodedUpdate([Piece(values(3), begin)], Layout({"w": (10,)}))
    assert caught.value.args[0] == "OutOfRange"


def test_sums_refuse_what_they_cannot_hold() -> None:
    layout = Layout({"a": (3,), "b": (2,)})
    sums, update = Accumulator(layout), CodedUpdate([Piece(values(5, 1e10))], layout)
    for weights, message in ((np.ones(1), "1 weights"), (np.array([1.0, np.nan]), "weight is not finite")):
        with pytest.raises(ValueError, match=message):
            sums.add(update, weights)
    with pytest.raises(ValueError, match=r"not below 2\^72"):
        sums.add(update, np.full(2, 1e20))
    with pytest.raises(ValueError, match="other tensors"):
        sums.add(CodedUpdate([], Layout({"a": (5,)})), np.ones(1))
    assert sums.terms == 0


def test_pieces_that_are_none_are_refused() -> None:
    layout, q = Layout({"w": (10,)}), np.zeros(10, np.int8)
    with pytest.raises(ValueError, match="10 values in blocks of 4 have 3 scales, got 2"):
        CodedUpdate([Piece(q, scales=np.ones(2, np.float32), block=4)], layout)
    with pytest.raises(ValueError, match="block must be at least 1"):
        CodedUpdate([Piece(q, scales=np.ones(2, np.float32), block=0)], layout)
    with pytest.raises(ValueError, match="values and places differ"):
        CodedUpdate([Piece(values(3), places=np.zeros(2, np.int32))], layout)
    with pytest.raises(TypeError, match="values must be a C-contiguous float32"):
        CodedUpdate([Piece(np.zeros(10))], layout)
    with pytest.raises(TypeError, match="places must be a C-contiguous int32"):
        CodedUpdate([Piece(values(3), places=np.zeros(3, np.int64))], layout)  # type: ignore[arg-type]  # what is tested


def test_views_at_odd_addresses_are_taken() -> None:
    layout = Layout({"w": (5,)})
    data = b"x" + values(5).tobytes()
    view = np.frombuffer(data, np.float32, 5, 1)
    sums = Accumulator(layout)
    sums.add(CodedUpdate([Piece(view)], layout), np.ones(1))
    np.testing.assert_array_equal(sums.sum("w"), values(5).astype(np.float64))


def test_an_update_keeps_what_it_looks_into() -> None:
    layout = Layout({"w": (50_000,)})
    update = CodedUpdate([Piece(values(50_000))], layout)
    rubbish = [np.full(50_000, 7.0, np.float32) for _ in range(20)]
    sums = Accumulator(layout)
    sums.add(update, np.ones(1))
    np.testing.assert_array_equal(sums.sum("w"), values(50_000).astype(np.float64))
    assert len(rubbish) == 20
