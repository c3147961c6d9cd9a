"""The k largest magnitudes, with and without error feedback."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime.kernels.cuda.devices import device_module, module

if TYPE_CHECKING:
    from edge_runtime.kernels.cuda.devices import DeviceArray, Queue

__all__ = ["Selected", "Velocity", "dgc", "top_k", "top_k_residual", "top_k_workspace_bytes"]


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
