"""The kernels on an NVIDIA device, for arrays of torch, CuPy and whatever offers DLPack or `__cuda_array_interface__`.

They are in a module of their own, `edge_runtime._cuda`, built by `EDGE_CUDA=ON` where nvcc is. Every function puts its
work on the stream of its `Queue` and returns; nothing here allocates device memory, copies, converts or waits. The
caller gives outputs and a workspace, and reads them after its own synchronisation.
Arrays are C-contiguous, on one device, and do not overlap.

Every function raises
    CudaUnavailable: the module is not built, or there is no device;
    TypeError: an array has another dtype or shape than said, or lies in other memory;
    ValueError: a number is out of range, an output read-only, a workspace too small or not at a multiple of 256 bytes,
        or the arrays are on several devices;
    RuntimeError: a launch failed; names the CUDA error.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from types import ModuleType
    from typing import Literal, Protocol

    class DeviceArray(Protocol):
        """An array in CUDA memory."""

        def __dlpack_device__(self) -> tuple[int, int]: ...


__all__ = [
    "CudaInfo",
    "CudaUnavailable",
    "Device",
    "Gradients",
    "Head",
    "Quantized",
    "Quantizer",
    "Queue",
    "Selected",
    "Step",
    "Velocity",
    "convert",
    "dequantize",
    "dgc",
    "info",
    "quantize",
    "sampled_softmax",
    "sampled_softmax_workspace_bytes",
    "top_k",
    "top_k_residual",
    "top_k_workspace_bytes",
]

BUILD = "pip install --config-settings=cmake.define.EDGE_CUDA=ON . (needs nvcc 12 or newer)"


class CudaUnavailable(RuntimeError):
    """The module is not built, or there is no device to run on; the message says which, and what to do."""


class Device(TypedDict):
    """One device."""

    name: str
    capability: str  # compute capability, as "8.7"
    memory_bytes: int


class CudaInfo(TypedDict):
    """What `kernels.info()["cuda"]` says."""

    built: bool
    compiled_for: list[str]  # compute capabilities: "75-real" runs there alone, "90" on what came later too
    devices: list[Device]
    why: str  # why there are no devices, or ""


@dataclass(frozen=True)
class Queue:
    """Where work goes: a workspace, uint8, of the bytes that the function asks for, and a stream.

    0 is the default stream; another is its handle (`torch.cuda.current_stream().cuda_stream`,
    `cupy.cuda.get_current_stream().ptr`). Work queued on one stream may share a workspace.
    """

    workspace: DeviceArray
    stream: int = 0


@dataclass(frozen=True)
class Selected:
    """Outputs of a selection of k: places (k,) int32 ascending, values (k,), and where the first NaN is.

    `first_nan` is (1,) int32, and receives -1 where there is none. A NaN counts as larger than infinity.
    """

    indices: DeviceArray
    values: DeviceArray
    first_nan: DeviceArray


@dataclass(frozen=True)
class Velocity:
    """What deep gradient compression carries from step to step, updated in place: u and v, (n,) float32."""

    momentum: DeviceArray | None  # None: no velocity, v accumulates the gradient itself
    residual: DeviceArray
    factor: float  # m
    nesterov: bool = False
    masking: bool = True  # momentum factor masking: what was sent is cleared in u too


@dataclass(frozen=True)
class Head:
    """Rows and which of them are classes here; the fields are those of `edge_runtime.kernels.sampled_softmax`.

    `classes` None: every row is a class and a positive, which is linear cross-entropy.
    """

    rows: DeviceArray  # (C, D) float32
    classes: DeviceArray | None = None  # (S,) int32
    positives: int = 0
    correction: DeviceArray | float = 0.0  # (S,) float32, or the same for all
    scale: float | None = None
    own_positives: bool = False


@dataclass(frozen=True)
class Gradients:
    """Outputs of a loss: itself (1,), by the features (B, D), by the rows of the classes (S, D); float32."""

    loss: DeviceArray
    d_features: DeviceArray
    d_rows: DeviceArray


@dataclass(frozen=True)
class Step:
    """Outputs of a loss whose rows take a step, rows[classes] -= lr * d_rows in place, without d_rows being stored."""

    loss: DeviceArray
    d_features: DeviceArray
    lr: float


@dataclass(frozen=True)
class Quantizer:
    """How values become fewer bits; each gives the bits of its function in `edge_runtime.kernels`.

    nearest: `quantize_int8`, levels 127; stochastic: `quantize_qsgd` with levels, seed and norm; sign: `quantize_sign`.
    """

    rounding: Literal["nearest", "stochastic", "sign"]
    block: int = 256  # values to a scale; for sign a multiple of 8
    levels: int = 127  # 1..127
    seed: int = 0  # 0..2^64 - 1
    norm: Literal["l2", "max"] = "l2"


@dataclass(frozen=True)
class Quantized:
    """Codes (n,) int8, or for sign (ceil(n / 8),) uint8, and a scale a block, (ceil(n / block),) float32.

    `first_bad`, (1,) int32, receives the place of the first value that is not finite, or -1; the block of such a value
    becomes zeros with a scale of NaN. Reading back does not look at it.
    """

    q: DeviceArray
    scales: DeviceArray
    first_bad: DeviceArray


def module() -> ModuleType:
    """The compiled part; CudaUnavailable where it is not there."""
    try:
        return import_module("edge_runtime._cuda")
    except ImportError as error:
        message = f"edge_runtime._cuda is not built ({error}); {BUILD}"
        raise CudaUnavailable(message) from error


def device_module() -> ModuleType:
    """The compiled part, where it has a device to run on."""
    built = module()
    try:
        built.devices()
    except RuntimeError as error:
        message = f"no CUDA device can be used: {error}"
        raise CudaUnavailable(message) from error
    return built


def info() -> CudaInfo:
    """Say whether the device kernels are built, for what, and which devices they can run on."""
    try:
        built = module()
    except CudaUnavailable as error:
        return {"built": False, "compiled_for": [], "devices": [], "why": str(error)}
    found: CudaInfo = {"built": True, "compiled_for": built.compiled_for.split(), "devices": [], "why": ""}
    try:
        found["devices"] = built.devices()
    except RuntimeError as error:
        found["why"] = str(error)
    return found


def top_k_workspace_bytes(n: int, k: int, dtype: str = "float32") -> int:
    """Bytes of workspace that selecting k of n elements of `dtype` (float32, float16, bfloat16) takes."""
    return int(module().top_k_workspace_bytes(n, k, dtype))


def top_k(x: DeviceArray, k: int, out: Selected, queue: Queue) -> None:
    """Select the k elements of largest magnitude; of equal ones, those of the lower index.

    Exact, and the same bits in every run and as `edge_runtime.kernels.top_k` gives.

    Args:
        x: (n,) float32, float16 or bfloat16, 1 <= k <= n <= 2^31 - 1; not modified.
        k: How many.
        out: Receives them; values of x's dtype.
        queue: With `top_k_workspace_bytes` bytes.

    Source: Alabi et al., 2012 (radix select); Merrill and Garland, 2016 (decoupled look-back).
    """
    device_module().top_k(x, k, out.indices, out.values, out.first_nan, queue.workspace, queue.stream)


def top_k_residual(gradient: DeviceArray, residual: DeviceArray, k: int, out: Selected, queue: Queue) -> None:
    """Add a gradient to the residual, select its k largest magnitudes, and set those to zero in the residual.

    Args:
        gradient: (n,) float32; not modified.
        residual: (n,) float32, updated in place; values sent + what is left == gradient + what was there.
            Where an element is NaN nothing is set to zero.
        k: How many, 1 <= k <= n.
        out: Receives them; values (k,) float32.
        queue: With `top_k_workspace_bytes` bytes.

    Source: Aji and Heafield, 2017, arXiv 1704.05021.
    """
    no_momentum = Velocity(momentum=None, residual=residual, factor=0.0, masking=False)
    feedback(gradient, no_momentum, k, out, queue)


def dgc(gradient: DeviceArray, velocity: Velocity, k: int, out: Selected, queue: Queue) -> None:
    """Deep gradient compression: accumulate the velocity, not the gradient, and select from that.

    u = m u + g; v = v + u (Nesterov: u = m (u + g); v = v + (u + g)), no multiply-add fused; the k largest |v| are sent
    and set to zero in v, and with masking in u.

    Args:
        gradient: (n,) float32; not modified.
        velocity: u, v and m. Where an element of v becomes NaN nothing is set to zero.
        k: How many, 1 <= k <= n.
        out: Receives them; values (k,) float32.
        queue: With `top_k_workspace_bytes` bytes.

    Source: Lin et al., 2018, arXiv 1712.01887, section 3.
    """
    feedback(gradient, velocity, k, out, queue)


def feedback(gradient: DeviceArray, it: Velocity, k: int, out: Selected, queue: Queue) -> None:
    """`dgc`, and without momentum `top_k_residual`."""
    device_module().top_k_feedback(
        gradient=gradient,
        residual=it.residual,
        momentum=it.momentum,
        factor=it.factor,
        nesterov=it.nesterov,
        masked=it.masking,
        k=k,
        indices=out.indices,
        values=out.values,
        first_nan=out.first_nan,
        workspace=queue.workspace,
        stream=queue.stream,
    )


def sampled_softmax_workspace_bytes(batch: int, width: int, classes: int, *, step: bool) -> int:
    """Bytes of workspace that `sampled_softmax` takes on the current device, with a `Step` or with `Gradients`."""
    return int(device_module().softmax_workspace_bytes(batch, width, classes, step))


def sampled_softmax(
    features: DeviceArray, labels: DeviceArray, head: Head, out: Gradients | Step, queue: Queue
) -> None:
    """Compute the mean sampled-softmax loss and its gradients; logits exist as tiles of 64 x 64 in shared memory alone.

    What is computed, and from what, is said at `edge_runtime.kernels.sampled_softmax` and `linear_cross_entropy`. Where
    that raises for the contents of an array this cannot: two positives with one row, or with a `Step` any two classes
    that count, move that row by one of both; a class that names no row makes the loss and the gradients NaN.

    Args:
        features: (B, D) float32.
        labels: (B,) int32: places among the classes, -1 for an example that does not count.
        head: The rows.
        out: Receives loss and gradients.
        queue: With `sampled_softmax_workspace_bytes` bytes.

    Source: Waghmare et al., 2022 (federated sampled softmax); Wijmans et al., 2025 (tiles, logits made again).
    """
    if head.scale is not None and not head.scale > 0.0:
        message = f"scale must be above 0, or None for dot products, got {head.scale}"
        raise ValueError(message)
    number = isinstance(head.correction, float | int)
    device_module().sampled_softmax(
        features=features,
        labels=labels,
        rows=head.rows,
        classes=head.classes,
        positives=head.positives,
        correction=None if number else head.correction,
        correction_of_all=head.correction if number else 0.0,
        scale=head.scale or 0.0,
        own_positives=head.own_positives,
        loss=out.loss,
        d_features=out.d_features,
        d_rows=out.d_rows if isinstance(out, Gradients) else None,
        lr=out.lr if isinstance(out, Step) else 0.0,
        workspace=queue.workspace,
        stream=queue.stream,
    )


def convert(x: DeviceArray, out: DeviceArray, stream: int = 0) -> None:
    """Round float32 to float16 or bfloat16, to nearest with ties to even, or widen back: whichever `out` is.

    Args:
        x: (n,) float32, or float16 or bfloat16.
        out: (n,) of the other kind.
        stream: As in `Queue`.
    """
    device_module().convert(x, out, stream)


def quantize(x: DeviceArray, quantizer: Quantizer, out: Quantized, stream: int = 0) -> None:
    """Write the codes and scales of x, (n,) float32 of at most 2^31 - 1 values.

    Bit for bit what the processor gives, so either side can read what the other wrote. A block above 4,096 values is
    one thread block's work, and with norm "l2" or sign its sum 16 threads': blocks should be small here.
    """
    device_module().quantize(
        x=x,
        rounding=quantizer.rounding,
        norm=quantizer.norm,
        block=quantizer.block,
        levels=127 if quantizer.rounding == "nearest" else quantizer.levels,
        seed=quantizer.seed,
        q=out.q,
        scales=out.scales,
        first_bad=out.first_bad,
        stream=stream,
    )


def dequantize(coded: Quantized, quantizer: Quantizer, x: DeviceArray, stream: int = 0) -> None:
    """Write what the codes stand for to x, (n,) float32; of `quantizer` the rounding and block count."""
    sign = quantizer.rounding == "sign"
    device_module().dequantize(coded.q, coded.scales, sign, quantizer.block, x, stream)
