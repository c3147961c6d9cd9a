"""Quantisers: the bits of their twins on every instruction set, their bounds, and that they are unbiased."""

import math
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edge_runtime import kernels
from edge_runtime.kernels import Workspace
from edge_runtime.kernels import reference_quantizers as reference

Floats = NDArray[np.float32]
SIZES = (0, 1, 2, 7, 8, 9, 31, 63, 64, 65, 255, 256, 257, 1000, 5003)
BLOCKS = (8, 64, 256, 1024, 100_000)


def values(n: int, scale: float = 1.0) -> Floats:
    """From the second element of an allocation on, so not aligned to a vector."""
    x = np.random.default_rng(n).standard_normal(n + 1).astype(np.float32)[1:]
    return x * np.float32(scale)


def every_float16() -> NDArray[np.float16]:
    return np.arange(2**16, dtype=np.uint32).astype(np.uint16).view(np.float16)


def edges() -> Floats:
    """Every float16, the float32 on both sides of each, halfway between neighbours, and both sides of that."""
    exact = every_float16()[np.isfinite(every_float16())].astype(np.float32)
    halfway = (exact[:-1] + exact[1:]) / 2
    near = [np.nextafter(x, np.float32(to), dtype=np.float32) for x in (exact, halfway) for to in (-np.inf, np.inf)]
    more = [65519.996, 65520, 65536, 1e38, np.inf, 1e-40, 1.4e-45, 2.0**-25, np.nextafter(2.0**-25, 1), 3.39e38, 3.4e38]
    x = np.concatenate([exact, halfway, *near, np.array(more, np.float32)])
    return np.concatenate([x, -x])


def special_nans() -> Floats:
    return np.array([0x7FC00000, 0x7F800001, 0xFF812345, 0xFFFFFFFF, 0x7FBFFFFF], np.uint32).view(np.float32)


def test_float16_rounds_as_numpy_and_torch_do(workspace: Workspace) -> None:
    x = edges()
    ours = kernels.to_float16(x, workspace=workspace)
    np.testing.assert_array_equal(ours.view(np.uint16), reference.to_float16(x).view(np.uint16))
    np.testing.assert_array_equal(ours.view(np.uint16), torch.from_numpy(x).half().numpy().view(np.uint16))


def test_every_float16_comes_back(workspace: Workspace) -> None:
    h = every_float16()
    x = kernels.from_float16(h, workspace=workspace)
    np.testing.assert_array_equal(x, h.astype(np.float32))
    quiet = np.where(np.isnan(h), h.view(np.uint16) | 0x200, h.view(np.uint16))
    np.testing.assert_array_equal(kernels.to_float16(x, workspace=workspace).view(np.uint16), quiet)


def test_bfloat16_rounds_as_its_twin_and_torch_do(workspace: Workspace) -> None:
    x = np.concatenate([edges(), values(5003, 1e30), values(5003, 1e-39)])
    ours = kernels.to_bfloat16(x, workspace=workspace)
    np.testing.assert_array_equal(ours, reference.to_bfloat16(x))
    np.testing.assert_array_equal(ours, torch.from_numpy(x).bfloat16().view(torch.uint16).numpy())


def test_every_bfloat16_comes_back(workspace: Workspace) -> None:
    h = np.arange(2**16, dtype=np.uint32).astype(np.uint16)
    x = kernels.from_bfloat16(h, workspace=workspace)
    np.testing.assert_array_equal(x.view(np.uint32), reference.from_bfloat16(h).view(np.uint32))
    numbers = ~np.isnan(x)
    np.testing.assert_array_equal(kernels.to_bfloat16(x[numbers], workspace=workspace), h[numbers])


def test_a_nan_stays_one_with_its_sign_and_upper_bits(workspace: Workspace) -> None:
    x = special_nans()
    half = kernels.to_float16(x, workspace=workspace).view(np.uint16)
    assert half.tolist() == [0x7E00, 0x7E00, 0xFE09, 0xFFFF, 0x7FFF]
    assert kernels.to_bfloat16(x, workspace=workspace).tolist() == [0x7FC0, 0x7FC0, 0xFFC1, 0xFFFF, 0x7FFF]


def test_halves_of_any_size_are_converted(workspace: Workspace) -> None:
    for x in map(values, SIZES):
        half = kernels.to_float16(x, workspace=workspace)
        np.testing.assert_array_equal(half, x.astype(np.float16))
        np.testing.assert_array_equal(kernels.from_float16(half[1:], workspace=workspace), half[1:].astype(np.float32))
        brain = kernels.to_bfloat16(x, workspace=workspace)
        np.testing.assert_array_equal(brain, reference.to_bfloat16(x))
        np.testing.assert_array_equal(kernels.from_bfloat16(brain, workspace=workspace), reference.from_bfloat16(brain))


def test_int8_worked_out_by_hand() -> None:
    q, scales = kernels.quantize_int8(np.array([254, -3, 1, 5, 7, 0, 0, 1e-40], np.float32), 4)
    assert scales.tolist() == [2, np.float32(7) / np.float32(127)]
    assert q.tolist() == [127, -2, 0, 2, 127, 0, 0, 0]  # -1.5 and 0.5 and 2.5 to even


@pytest.mark.parametrize("block", [1, 3, *BLOCKS])
def test_int8_are_the_bits_of_the_twin(workspace: Workspace, block: int) -> None:
    for x in map(values, SIZES):
        q, scales = kernels.quantize_int8(x, block, workspace=workspace)
        expected_q, expected_scales = reference.quantize_int8(x, block)
        np.testing.assert_array_equal(q, expected_q)
        np.testing.assert_array_equal(scales, expected_scales)
        back = kernels.dequantize_int8(q, scales, block, workspace=workspace)
        np.testing.assert_array_equal(back, reference.dequantize_int8(q, scales, block))


@pytest.mark.parametrize("scale", [0.0, 1e-44, 1e-40, 1e-37, 1e-36, 1e-20, 1e30, 8e37])
def test_int8_keeps_its_bound_at_any_magnitude(workspace: Workspace, scale: float) -> None:
    x = values(5003, scale)
    q, scales = kernels.quantize_int8(x, 64, workspace=workspace)
    np.testing.assert_array_equal(q, reference.quantize_int8(x, 64)[0])
    back = kernels.dequantize_int8(q, scales, 64, workspace=workspace).astype(np.float64)
    step = np.maximum(np.repeat(scales, 64)[:5003].astype(np.float64), 2 * 127 * 2.0**-126)
    assert (np.abs(x - back) <= (0.5 + 2.0**-16) * step).all()


@pytest.mark.parametrize("norm", ["l2", "max"])
@pytest.mark.parametrize("block", [1, 3, *BLOCKS])
def test_qsgd_are_the_bits_of_the_twin(workspace: Workspace, block: int, norm: Literal["l2", "max"]) -> None:
    for n in SIZES:
        x, levels, seed = values(n), 1 + n % 127, 2**64 - 1 - n
        q, scales = kernels.quantize_qsgd(x, levels, seed, block, norm=norm, workspace=workspace)
        expected_q, expected_scales = reference.quantize_qsgd(x, levels, seed, block, norm)
        np.testing.assert_array_equal(scales, expected_scales)
        np.testing.assert_array_equal(q, expected_q)
        assert np.abs(q.astype(int)).max(initial=0) <= levels


@pytest.mark.parametrize("scale", [0.0, 1e-44, 1e-38, 1e-36, 1e-20, 1e30, 6e37])
def test_qsgd_takes_any_magnitude(workspace: Workspace, scale: float) -> None:
    x = values(5003, scale)
    for norm in ("l2", "max"):
        ours = kernels.quantize_qsgd(x, 15, 7, 5003, norm=norm, workspace=workspace)  # type: ignore[arg-type]  # a loop over literals
        twin = reference.quantize_qsgd(x, 15, 7, 5003, norm)  # type: ignore[arg-type]  # the same
        np.testing.assert_array_equal(ours[0], twin[0])
        np.testing.assert_array_equal(ours[1], twin[1])
        assert np.isfinite(ours[1]).all()


@pytest.mark.parametrize("norm", ["l2", "max"])
@pytest.mark.parametrize("levels", [1, 4, 127])
def test_qsgd_is_unbiased_and_its_variance_bounded(levels: int, norm: Literal["l2", "max"]) -> None:
    x, draws = values(64), 4000
    workspace = Workspace()
    sent = np.stack(
        [
            kernels.dequantize_int8(*kernels.quantize_qsgd(x, levels, seed, 64, norm=norm, workspace=workspace), 64)
            for seed in range(draws)
        ]
    ).astype(np.float64)
    scale = kernels.quantize_qsgd(x, levels, 0, 64, norm=norm)[1][0].astype(np.float64)
    r = np.abs(x) / scale
    sd = scale * np.sqrt((r - np.floor(r)) * (1 - r + np.floor(r)))
    # Six standard deviations of a mean, for 64 elements: 1e-7 by chance; a bias of a tenth of a step is 6 to 60.
    assert (np.abs(sent.mean(axis=0) - x) <= 6 * sd / math.sqrt(draws) + 1e-6 * scale).all()
    assert (np.abs(sent.var(axis=0) - sd**2) <= 0.1 * scale**2).all()
    total = sent.var(axis=0).sum()
    if norm == "l2":
        assert total <= 1.1 * min(64 / levels**2, 8 / levels) * float(x.astype(np.float64) @ x)


def test_elements_round_independently() -> None:
    """A common number would round all of them alike; neighbours share a hash."""
    x = np.full(100_000, 0.5, np.float32)
    x[0] = 1.0
    q, _ = kernels.quantize_qsgd(x, 1, 3, 100_000, norm="max")
    up = q[2:].astype(np.float64) - 0.5
    assert abs(up.mean()) < 6 * 0.5 / math.sqrt(up.size)
    for lag in (1, 2, 3, 8, 16):
        assert abs((up[lag:] * up[:-lag]).mean()) < 6 * 0.25 / math.sqrt(up.size)


@pytest.mark.parametrize("block", BLOCKS)
def test_signs_are_the_bits_of_the_twin(workspace: Workspace, block: int) -> None:
    for x in map(values, SIZES):
        x[::5] = 0
        x[::10] = -0.0
        bits, scales = kernels.quantize_sign(x, block, workspace=workspace)
        expected_bits, expected_scales = reference.quantize_sign(x, block)
        np.testing.assert_array_equal(bits, expected_bits)
        np.testing.assert_array_equal(scales, expected_scales)
        back = kernels.dequantize_sign(bits, scales, len(x), block, workspace=workspace)
        np.testing.assert_array_equal(back, reference.dequantize_sign(bits, scales, len(x), block))


def test_signs_lose_what_they_are_said_to() -> None:
    x = values(5000)
    back = kernels.dequantize_sign(*kernels.quantize_sign(x, 1000), 5000, 1000).astype(np.float64)
    for part, kept in zip(x.astype(np.float64).reshape(5, -1), back.reshape(5, -1), strict=True):
        lost = part @ part - np.abs(part).sum() ** 2 / 1000
        assert ((part - kept) ** 2).sum() == pytest.approx(lost, rel=1e-6)
        assert 0 < lost < part @ part


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 777, 4999])
def test_the_first_value_that_is_not_finite_is_named(workspace: Workspace, bad: float, place: int) -> None:
    x = values(5000)
    x[[place, 4999]] = bad
    message = rf"x\[{place}\] is -?(nan|inf); only finite values"
    with pytest.raises(ValueError, match=message):
        kernels.quantize_int8(x, 64, workspace=workspace)
    with pytest.raises(ValueError, match=message):
        kernels.quantize_qsgd(x, 4, 0, 64, workspace=workspace)
    with pytest.raises(ValueError, match=message):
        kernels.quantize_sign(x, 64, workspace=workspace)


def test_arguments_that_cannot_be_are_refused() -> None:
    x = values(10)
    q, scales = kernels.quantize_int8(x, 4)
    bits, sign_scales = kernels.quantize_sign(x, 8)
    with pytest.raises(ValueError, match=r"block must be in 1..2147483647, got 0"):
        kernels.quantize_int8(x, 0)
    with pytest.raises(ValueError, match=r"levels must be in 1..127, got 128"):
        kernels.quantize_qsgd(x, 128, 0)
    with pytest.raises(ValueError, match="norm must be 'l2' or 'max', got 'l1'"):
        kernels.quantize_qsgd(x, 1, 0, norm="l1")  # type: ignore[arg-type]  # what is tested
    with pytest.raises(ValueError, match="block must be a multiple of 8 for signs, got 12"):
        kernels.quantize_sign(x, 12)
    with pytest.raises(ValueError, match="10 values in blocks of 5 have 2 scales, got 3"):
        kernels.dequantize_int8(q, scales, 5)
    with pytest.raises(ValueError, match="2 bytes of signs are not those of 17 values"):
        kernels.dequantize_sign(bits, sign_scales, 17, 8)
    with pytest.raises(TypeError, match="x must be a C-contiguous float32 array"):
        kernels.quantize_int8(x.astype(np.float64), 4)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(TypeError, match="x must be a C-contiguous float32 array"):
        kernels.to_float16(x[::2])
    with pytest.raises(TypeError, match="h must be float16, got float32"):
        kernels.from_float16(x)  # type: ignore[arg-type]  # what is tested


def test_no_quantiser_holds_memory(workspace: Workspace) -> None:
    x = values(5003)
    kernels.from_float16(kernels.to_float16(x, workspace=workspace), workspace=workspace)
    kernels.dequantize_int8(*kernels.quantize_int8(x, 64, workspace=workspace), 64, workspace=workspace)
    kernels.quantize_qsgd(x, 4, 1, 64, workspace=workspace)
    kernels.quantize_sign(x, 64, workspace=workspace)
    assert workspace.peak_bytes == 0
