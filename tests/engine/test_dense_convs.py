"""Convolutions between many channels: random shapes on every path, the error of minimal filtering, and NaN."""

from __future__ import annotations

import numpy as np
import pytest
from convshape import ConvShape, conv_cases
from hypothesis import given, settings
from hypothesis import strategies as st
from opcase import F32, ISAS, arrays_of, assert_close, compute, twin

pads = st.tuples(*[st.integers(0, 4)] * 4)


@st.composite
def dense(draw: st.DrawFn) -> ConvShape:
    """Strides of 1 with three and five taps, which are filtered, as often as everything else."""
    filtered = draw(st.booleans())
    taps = st.sampled_from([1, 3, 5]) if filtered else st.integers(1, 5)
    kernel = (draw(taps), draw(taps))
    steps = st.just(1) if filtered else st.integers(1, 4)
    stride, dilation = (draw(steps), draw(steps)), (draw(steps), draw(steps))
    sides = st.integers(1, 40 if filtered else 20)
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    height, width = (max(draw(sides), e) for e in extent)
    images, groups = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    channels, filters = draw(st.integers(8, 40)), draw(st.integers(8, 40))
    return ConvShape(images, groups, channels, filters, (height, width), kernel, stride, draw(pads), dilation)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(dense())
def test_any_dense_convolution_equals_its_twin(shape: ConvShape) -> None:
    for case in conv_cases(shape)[1:]:
        inputs = arrays_of(case)
        want = twin(case, inputs)[0]
        for isa in ISAS:
            got = compute(case, inputs, isa, 1)[0]
            assert got.tobytes() == compute(case, inputs, isa, 3)[0].tobytes()
            assert_close(got, want, case.terms)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kernel", [3, 5])
def test_minimal_filtering_is_as_exact_as_float32_sums_nearly_are(kernel: int, isa: str) -> None:
    half = kernel // 2
    shape = ConvShape(2, 1, 64, 64, (16, 16), (kernel, kernel), pads=(half, half, half, half))
    for case in conv_cases(shape)[1:]:
        inputs = arrays_of(case)
        want = twin(case, inputs)[0]
        error = compute(case, inputs, isa, 1)[0] - want
        assert np.sqrt(np.mean(error**2)) < 2e-6 * np.sqrt(np.mean(want**2))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("stride", [1, 2])
def test_dense_convolutions_keep_nan_wherever_it_is_read(stride: int, isa: str) -> None:
    shape = ConvShape(1, 1, 32, 32, (12, 12), (3, 3), (stride, stride), (1, 1, 1, 1))
    forward, _, d_x, d_w = conv_cases(shape)
    x, w, bias = arrays_of(forward)
    x[0, 3, 5, 6] = np.nan
    rows, columns = (
        slice((5 - 1 + stride) // stride, 6 // stride + 1),
        slice((6 - 1 + stride) // stride, 7 // stride + 1),
    )
    assert np.isnan(compute(forward, [x, w, bias], isa, 1)[0][:, :, rows, columns]).all()
    d_y = np.ones(shape.y, F32)
    assert np.isnan(compute(d_w, [d_y, x], isa, 1)[0][:, 3]).any()
    d_y[0, 4, 2, 3] = np.nan
    place = slice(2 * stride, 2 * stride + 1), slice(3 * stride, 3 * stride + 1)
    assert np.isnan(compute(d_x, [d_y, w], isa, 1)[0][:, :, *place]).all()
