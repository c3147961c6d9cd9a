"""Depthwise, pointwise and vertical convolutions have kernels of their own: random shapes, edges of their blocks."""

from __future__ import annotations

import numpy as np
import pytest
from convshape import ConvShape, conv_cases
from hypothesis import given, settings
from hypothesis import strategies as st
from opcase import ISAS, Case, arrays_of, assert_close, compute, name_of, twin


def check(case: Case) -> None:
    inputs = arrays_of(case)
    want = twin(case, inputs)[0]
    for isa in ISAS:
        got = compute(case, inputs, isa, 1)[0]
        assert got.tobytes() == compute(case, inputs, isa, 3)[0].tobytes()
        assert_close(got, want, case.terms)


small = st.integers(1, 3)
sides = st.integers(1, 21)
pads = st.tuples(*[st.integers(0, 4)] * 4)


@st.composite
def depthwise(draw: st.DrawFn) -> ConvShape:
    """Squares of 3 and 5, which have unrolled taps, as often as any other kernel."""
    kernel = draw(st.sampled_from([(3, 3), (5, 5)]) | st.tuples(st.integers(1, 6), st.integers(1, 6)))
    plain = draw(st.booleans())
    stride = draw(st.sampled_from([(1, 1), (2, 2)]) if plain else st.tuples(small, small))
    dilation = (1, 1) if plain else draw(st.tuples(small, small))
    size, around = (draw(sides), draw(sides)), draw(pads)
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    height, width = (max(s, e) for s, e in zip(size, extent, strict=True))
    return ConvShape(draw(small), draw(st.integers(1, 5)), 1, 1, (height, width), kernel, stride, around, dilation)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(depthwise())
def test_any_depthwise_convolution_equals_its_twin(shape: ConvShape) -> None:
    for case in conv_cases(shape):
        check(case)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.tuples(small, small, st.integers(1, 30), st.integers(1, 30)),
    st.tuples(sides, sides),
    st.just((1, 1)) | st.tuples(small, small),
)
def test_any_pointwise_convolution_equals_its_twin(
    counts: tuple[int, int, int, int], size: tuple[int, int], stride: tuple[int, int]
) -> None:
    for case in conv_cases(ConvShape(*counts, size, (1, 1), stride)):
        check(case)


POINTWISE = [  # small images share a tile, many channels take several passes, long rows several chunks
    ConvShape(19, 1, 5, 13, (3, 3), (1, 1)),
    ConvShape(2, 1, 600, 3, (5, 7), (1, 1)),
    ConvShape(1, 2, 3, 520, (4, 8), (1, 1)),
    ConvShape(1, 1, 7, 5, (3, 683), (1, 1)),
    ConvShape(70, 1, 3, 2, (1, 16), (1, 1)),
    ConvShape(2, 1, 5, 13, (9, 66), (1, 1), (2, 2)),
    ConvShape(1, 2, 3, 520, (4, 21), (1, 1), (3, 2)),
    ConvShape(2, 1, 5, 3, (6, 7), (1, 1), (2, 2), pads=(0, 0, 1, 0)),
    ConvShape(2, 1, 5, 3, (7, 7), (1, 1), (2, 2), pads=(0, 0, 3, 2)),
]


@pytest.mark.parametrize("case", [case for shape in POINTWISE for case in conv_cases(shape)], ids=name_of)
def test_pointwise_tiles_passes_and_chunks_add_up(case: Case) -> None:
    check(case)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    counts=st.tuples(small, small, st.integers(1, 14), st.integers(1, 14)),
    size=st.tuples(st.integers(1, 9), st.integers(32, 70)),
    kernel=st.integers(1, 4),
    steps=st.tuples(small, small),
    around=st.tuples(st.integers(0, 4), st.integers(0, 4)),
)
def test_any_vertical_convolution_equals_its_twin(
    counts: tuple[int, int, int, int],
    size: tuple[int, int],
    kernel: int,
    steps: tuple[int, int],
    around: tuple[int, int],
) -> None:
    stride, dilation = steps
    size = (max(size[0], (kernel - 1) * dilation + 1), size[1])
    pads = (around[0], 0, around[1], 0)
    for case in conv_cases(ConvShape(*counts, size, (kernel, 1), (stride, 1), pads, (dilation, 1))):
        check(case)


VERTICAL = [  # several passes over the channels, several chunks of positions
    ConvShape(1, 1, 190, 3, (3, 33), (3, 1), pads=(1, 0, 1, 0)),
    ConvShape(1, 1, 2, 180, (4, 40), (3, 1), (2, 1), pads=(1, 0, 1, 0)),
    ConvShape(2, 1, 3, 2, (3, 700), (3, 1), pads=(1, 0, 1, 0)),
]


@pytest.mark.parametrize("case", [case for shape in VERTICAL for case in conv_cases(shape)], ids=name_of)
def test_vertical_passes_and_chunks_add_up(case: Case) -> None:
    check(case)


SAME = [  # planes of whole vectors: rows of one and of several, several rows in one, one row, one vector
    *(ConvShape(2, 3, 1, 1, size, (3, 3), pads=(1, 1, 1, 1)) for size in [(4, 4), (8, 4), (3, 4), (2, 4), (1, 4)]),
    *(ConvShape(2, 3, 1, 1, size, (3, 3), pads=(1, 1, 1, 1)) for size in [(8, 8), (3, 8), (1, 8), (6, 12), (5, 24)]),
    *(ConvShape(3, 2, 1, 1, size, (3, 3), pads=(1, 1, 1, 1)) for size in [(16, 16), (1, 16), (3, 32), (2, 48)]),
    ConvShape(2, 2, 1, 1, (6, 8), (3, 3), pads=(1, 1, 0, 2)),
    ConvShape(2, 2, 1, 1, (8, 8), (3, 3), pads=(0, 2, 2, 0)),
]


@pytest.mark.parametrize("case", [case for shape in SAME for case in conv_cases(shape)], ids=name_of)
def test_planes_of_whole_vectors_need_no_padded_copy(case: Case) -> None:
    check(case)


LARGE = [
    ConvShape(1, 2, 1, 1, (50, 90), (3, 3), pads=(1, 1, 1, 1)),
    ConvShape(1, 1, 1, 1, (130, 67), (3, 3), (2, 2), pads=(1, 1, 1, 1)),
    ConvShape(1, 1, 1, 1, (90, 70), (5, 5), (2, 2), pads=(2, 2, 2, 2)),
    ConvShape(1, 1, 1, 1, (120, 50), (3, 2), (3, 3), pads=(0, 3, 1, 0), dilation=(2, 2)),
    ConvShape(1, 1, 1, 1, (1, 4200), (1, 3), pads=(0, 1, 0, 1)),
    ConvShape(1, 1, 1, 1, (2, 4500), (2, 3), (1, 2), pads=(5, 0, 5, 3)),
]


@pytest.mark.parametrize("case", [case for shape in LARGE for case in conv_cases(shape)], ids=name_of)
def test_planes_that_do_not_fit_the_scratch_are_cut_into_bands(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width", [2, 4, 6, 8, 16, 18])
def test_depthwise_gradients_keep_nan_in_its_channel(width: int, isa: str) -> None:
    shape = ConvShape(2, 3, 1, 1, (4, width), (3, 3), pads=(1, 1, 1, 1))
    case = conv_cases(shape)[3]
    d_y, x = arrays_of(case)
    x[1, 1, 2, width - 1] = np.nan
    d_w = compute(case, [d_y, x], isa, 1)[0]
    assert np.isnan(d_w[1]).any()
    assert np.isfinite(d_w[[0, 2]]).all()
