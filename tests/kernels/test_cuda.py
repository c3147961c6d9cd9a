"""The device kernels: what can be said and refused without a device, and their results where there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edge_runtime import kernels
from edge_runtime.kernels import cuda
from edge_runtime.kernels.cuda import devices as cuda_devices

if TYPE_CHECKING:
    from types import ModuleType

FOUND = cuda.info()
on_device = pytest.mark.skipif(not FOUND["devices"], reason="no CUDA device")


class FakeArray:
    """Says of itself what `__cuda_array_interface__` says; its memory is the host's."""

    def __init__(self, typestr: str, shape: tuple[int, ...], strides: tuple[int, ...] | None = None) -> None:
        self.memory = np.zeros(64, np.uint8)
        self.__cuda_array_interface__ = {
            "typestr": typestr,
            "shape": shape,
            "strides": strides,
            "data": (self.memory.ctypes.data, False),
            "version": 3,
        }


@pytest.fixture
def built() -> ModuleType:
    if not FOUND["built"]:
        pytest.skip("edge_runtime._cuda is not built (make cuda)")
    return cuda_devices.module()


def test_info_says_whether_it_is_built_and_why_there_is_no_device() -> None:
    said = kernels.info()["cuda"]
    assert said == FOUND
    assert bool(said["devices"]) != bool(said["why"])
    assert said["built"] or "EDGE_CUDA=ON" in said["why"]


@pytest.mark.skipif(bool(FOUND["devices"]), reason="there is a CUDA device")
def test_without_a_device_the_error_says_what_is_missing() -> None:
    missing = "cudaGetDeviceCount: cudaError" if FOUND["built"] else "EDGE_CUDA=ON"
    some: Any = FakeArray("<f4", (4,))
    with pytest.raises(cuda.CudaUnavailable, match=missing):
        cuda.top_k([some], 1, cuda.Selected(some, some, some), cuda.Queue(some))


@pytest.mark.parametrize(
    ("typestr", "shape", "strides", "refusal"),
    [
        ("<f8", (4,), None, r"x must be float32 or float16 or bfloat16 \(-1,\).*got float64 \(4,\)"),
        ("<f4", (2, 2), None, r"got float32 \(2,2,\)"),
        ("<f4", (4,), (8,), "C-contiguous"),
        (">f4", (4,), None, "little-endian"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_by_name(
    built: ModuleType, typestr: str, shape: tuple[int, ...], strides: tuple[int, ...] | None, refusal: str
) -> None:
    x = FakeArray(typestr, shape, strides)
    with pytest.raises(TypeError, match=refusal):
        built.top_k([x], 1, x, x, x, None, x, 0)


def test_an_array_of_the_processor_is_refused(built: ModuleType) -> None:
    x = np.zeros(4, np.float32)
    with pytest.raises(TypeError, match=r"x must be in CUDA memory.*CPU"):
        built.top_k([x], 1, x, x, x, None, x, 0)


def test_something_else_than_an_array_is_refused(built: ModuleType) -> None:
    with pytest.raises(TypeError, match="__cuda_array_interface__"):
        built.top_k([1.0], 1, [], [], [], None, [], 0)


def test_the_workspace_grows_with_k_and_stays_below_what_the_contract_says(built: ModuleType) -> None:
    for n in (1, 1000, 10**6, 2**31 - 1):
        for k in (1, (n + 99) // 100, n):
            for dtype, size in (("float32", 4), ("float16", 2), ("bfloat16", 2)):
                said = (4 + size) * max(2**16, min(4 * k, n // 8)) + n / 256 + 26_000
                assert 0 < built.top_k_workspace_bytes(n, k, dtype, 1) <= said
    with pytest.raises(ValueError, match=r"k must be in 1\.\.10, got 11"):
        built.top_k_workspace_bytes(10, 11, "float32", 1)


def largest(x: np.ndarray, k: int) -> np.ndarray:
    """Places of the k largest magnitudes, ties to the lower, ascending."""
    return np.sort(np.argsort(-np.abs(x), kind="stable")[:k])


def on_cuda(k: int, dtype: str, workspace_bytes: int) -> tuple[cuda.Selected, cuda.Queue]:
    torch = pytest.importorskip("torch")
    out = cuda.Selected(
        indices=torch.empty(k, dtype=torch.int32, device="cuda"),
        values=torch.empty(k, dtype=getattr(torch, dtype), device="cuda"),
        first_nan=torch.empty(1, dtype=torch.int32, device="cuda"),
    )
    workspace = torch.empty(workspace_bytes, dtype=torch.uint8, device="cuda")
    return out, cuda.Queue(workspace, torch.cuda.current_stream().cuda_stream)


@pytest.mark.gpu
@on_device
@pytest.mark.parametrize("n", [1, 2, 1023, 4096, 4097, 1_000_003, 10**7])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("levels", [1000, 2**24])
def test_selection_on_a_device_is_exact(n: int, dtype: str, levels: int) -> None:
    torch = pytest.importorskip("torch")
    x = (np.random.default_rng(1).integers(-levels, levels, n) / levels).astype(dtype)
    for k in {1, max(1, n // 1000), max(1, n // 10), n}:
        out, queue = on_cuda(k, dtype, cuda.top_k_workspace_bytes(n, k, dtype))
        cuda.top_k([torch.from_numpy(x).cuda()], k, out, queue)
        expected = largest(x, k)
        np.testing.assert_array_equal(out.indices.cpu().numpy(), expected)
        np.testing.assert_array_equal(out.values.cpu().numpy(), x[expected])
        assert out.first_nan.item() == -1


@pytest.mark.gpu
@on_device
def test_residual_on_a_device_conserves_what_was_put_in() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(2)
    n, k = 100_003, 1000
    gradient = rng.standard_normal(n).astype(np.float32)
    residual = rng.standard_normal(n).astype(np.float32)
    total = gradient + residual
    carried = torch.from_numpy(residual).cuda()
    out, queue = on_cuda(k, "float32", cuda.top_k_workspace_bytes(n, k))
    cuda.top_k_residual([torch.from_numpy(gradient).cuda()], [carried], k, out, queue)
    left = carried.cpu().numpy()
    places = out.indices.cpu().numpy()
    np.testing.assert_array_equal(places, largest(total, k))
    assert not left[places].any()
    left[places] = out.values.cpu().numpy()
    np.testing.assert_array_equal(left, total)


@pytest.mark.gpu
@on_device
@pytest.mark.parametrize(("batch", "width", "classes"), [(1, 1, 1), (32, 64, 1000), (70, 100, 500), (300, 512, 130)])
@pytest.mark.parametrize("scale", [None, 10.0])
def test_linear_cross_entropy_on_a_device_agrees_with_torch(
    batch: int, width: int, classes: int, scale: float | None
) -> None:
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(batch, width, generator=generator).cuda().double().requires_grad_()
    rows = torch.randn(classes, width, generator=generator).cuda().double().requires_grad_()
    labels = torch.randint(classes, (batch,), generator=generator).cuda()
    normal = torch.nn.functional.normalize
    logits = features @ rows.T if scale is None else scale * normal(features) @ normal(rows).T
    wanted = torch.nn.functional.cross_entropy(logits, labels)
    wanted.backward()
    out = cuda.Gradients(
        loss=torch.empty(1, device="cuda"),
        d_features=torch.empty(batch, width, device="cuda"),
        d_rows=torch.empty(classes, width, device="cuda"),
    )
    size = cuda.sampled_softmax_workspace_bytes(batch, width, classes, step=False)
    queue = cuda.Queue(torch.empty(size, dtype=torch.uint8, device="cuda"), torch.cuda.current_stream().cuda_stream)
    head = cuda.Head(rows.detach().float(), scale=scale)
    cuda.sampled_softmax(features.detach().float(), labels.int(), head, out, queue)
    torch.testing.assert_close(out.loss[0].double(), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out.d_features.double(), features.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(out.d_rows.double(), rows.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
@on_device
@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "sign"])
@pytest.mark.parametrize(("n", "block"), [(1, 8), (1000, 64), (100_003, 256), (100_003, 100_000)])
def test_codes_on_a_device_are_those_of_the_processor(rounding: str, n: int, block: int) -> None:
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(4).standard_normal(n).astype(np.float32)
    wanted_q, wanted_scales = {
        "nearest": lambda: kernels.quantize_int8(x, block),
        "stochastic": lambda: kernels.quantize_qsgd(x, 15, 7, block),
        "sign": lambda: kernels.quantize_sign(x, block),
    }[rounding]()
    quantizer = cuda.Quantizer(rounding, block=block, levels=15, seed=7)
    out = cuda.Quantized(
        q=torch.from_numpy(np.zeros_like(wanted_q)).cuda(),
        scales=torch.empty(wanted_scales.shape, device="cuda"),
        first_bad=torch.empty(1, dtype=torch.int32, device="cuda"),
    )
    stream = torch.cuda.current_stream().cuda_stream
    cuda.quantize(torch.from_numpy(x).cuda(), quantizer, out, stream)
    np.testing.assert_array_equal(out.q.cpu().numpy(), wanted_q)
    np.testing.assert_array_equal(out.scales.cpu().numpy(), wanted_scales)
    assert out.first_bad.item() == -1
    back = torch.empty(n, device="cuda")
    cuda.dequantize(out, quantizer, back, stream)
    read = kernels.dequantize_sign(wanted_q, wanted_scales, n, block) if rounding == "sign" else None
    expected = kernels.dequantize_int8(wanted_q, wanted_scales, block) if read is None else read
    np.testing.assert_array_equal(back.cpu().numpy(), expected)


@pytest.mark.gpu
@on_device
@pytest.mark.parametrize(("m", "n", "rank"), [(1, 5, 1), (200, 300, 8), (1024, 1024, 32), (700, 64, 20)])
def test_factors_on_a_device_are_as_good_as_the_best(m: int, n: int, rank: int) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(5)
    size = min(m, n)
    left, right = (np.linalg.qr(rng.standard_normal((side, size)))[0] for side in (m, n))
    spectrum = np.arange(1, size + 1) ** -0.5
    a = ((left * spectrum) @ right.T).astype(np.float32)
    shapes = {"u": (m, rank), "s": (rank,), "vt": (rank, n), "error": (1,)}
    floats = {name: torch.empty(shape, device="cuda") for name, shape in shapes.items()}
    numbers = {name: torch.empty(1, dtype=torch.int32, device="cuda") for name in ("used", "first_bad")}
    out = cuda.Factors(**floats, **numbers)
    work = torch.empty(cuda.truncated_svd_workspace_bytes(m, n, rank), dtype=torch.uint8, device="cuda")
    queue = cuda.Queue(work, torch.cuda.current_stream().cuda_stream)
    cuda.truncated_svd(torch.from_numpy(a).cuda(), cuda.Search(rank), out, queue)
    u, s, vt = (x.cpu().numpy().astype(np.float64) for x in (out.u, out.s, out.vt))
    best = np.sqrt(np.sum(spectrum[rank:] ** 2))
    assert np.linalg.norm(a - (u * s) @ vt) <= 1.02 * best + 2e-6 * np.linalg.norm(a)
    assert np.abs(u.T @ u - np.eye(rank)).max() <= 1e-5
    assert np.abs(vt @ vt.T - np.eye(rank)).max() <= 1e-5


@pytest.mark.gpu
@on_device
def test_several_tensors_on_a_device_give_what_the_processor_gives() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(6)
    sizes = [0, 1, 3, 100_003, 5, 0, 4096, *range(100)]
    gradients, momenta, residuals = ([rng.standard_normal(n).astype(np.float32) for n in sizes] for _ in range(3))
    k = 3000
    on = {name: [torch.from_numpy(x).cuda() for x in arrays] for name, arrays in (("u", momenta), ("v", residuals))}
    out, queue = on_cuda(k, "float32", cuda.top_k_workspace_bytes(sum(sizes), k, tensors=len(sizes)))
    starts = torch.empty(len(sizes) + 1, dtype=torch.int32, device="cuda")
    velocities = cuda.Velocities(on["u"], on["v"], 0.9)
    selected = cuda.Selected(out.indices, out.values, out.first_nan, starts)
    cuda.dgc([torch.from_numpy(g).cuda() for g in gradients], velocities, k, selected, queue)
    wanted = kernels.dgc_tree(gradients, momenta, residuals, k, 0.9)
    bounds = starts.cpu().numpy()
    for number, part in enumerate(wanted):
        here = slice(bounds[number], bounds[number + 1])
        np.testing.assert_array_equal(out.indices.cpu().numpy()[here], part.indices)
        np.testing.assert_array_equal(out.values.cpu().numpy()[here], part.values)
        np.testing.assert_array_equal(on["u"][number].cpu().numpy(), momenta[number])
        np.testing.assert_array_equal(on["v"][number].cpu().numpy(), residuals[number])


@pytest.mark.gpu
@on_device
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_threshold_on_a_device_selects_what_the_processor_does(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(7).standard_normal(100_003).astype(dtype)
    wanted = kernels.above(x, 1.7)
    room = wanted.indices.size + 5
    out, queue = on_cuda(room, dtype, cuda.above_workspace_bytes(x.size, dtype))
    count = torch.empty(1, dtype=torch.int32, device="cuda")
    reached = cuda.Reached(out.indices, out.values, count, out.first_nan)
    cuda.above(torch.from_numpy(x).cuda(), dtype, 1.7, reached, queue)
    assert count.item() == wanted.indices.size
    np.testing.assert_array_equal(out.indices.cpu().numpy()[: count.item()], wanted.indices)
    np.testing.assert_array_equal(out.values.cpu().numpy()[: count.item()], wanted.values)


def test_tensors_and_residuals_must_go_together(built: ModuleType) -> None:
    x = FakeArray("<f4", (4,))
    with pytest.raises(ValueError, match="a residual for each of 2 gradients"):
        built.top_k_feedback(
            gradients=[x, x],
            residuals=[x],
            momenta=[],
            factor=0.0,
            nesterov=False,
            masked=False,
            k=1,
            indices=x,
            values=x,
            first_nan=x,
            starts=None,
            workspace=x,
            stream=0,
        )
    with pytest.raises(ValueError, match=r"1\.\.2\^20 tensors, got 0"):
        built.top_k([], 1, x, x, x, None, x, 0)
