"""The k largest magnitudes, with and without error feedback, of one tensor or of several together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.kernels.cuda.devices import device_module, module
from edge_runtime.kernels.selection import key_at_least

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.kernels.cuda.devices import DeviceArray, Queue

__all__ = [
    "Reached",
    "Selected",
    "Velocities",
    "above",
    "above_workspace_bytes",
    "dgc",
    "top_k",
    "top_k_residual",
    "top_k_workspace_bytes",
]


@dataclass(frozen=True)
class Selected:
    """Outputs of a selection of k: places (k,) int32 ascending, values (k,), and where the first NaN is.

    `first_nan` is (1,) int32, and receives -1 where there is none; in several tensors it counts through all of them. A
    NaN counts as larger than infinity.
    `starts` is (T + 1,) int32: what was selected from tensor t are places and values starts[t] to starts[t + 1], and a
    place is one in that tensor. None: places count through all tensors, as they must where there is one.
    """

    indices: DeviceArray
    values: DeviceArray
    first_nan: DeviceArray
    starts: DeviceArray | None = None


@dataclass(frozen=True)
class Reached:
    """Outputs of a selection by threshold: places (room,) int32 ascending, values (room,), their number (1,) int32.

    Those beyond the room are counted and not written. `first_nan` as in `Selected`.
    """

    indices: DeviceArray
    values: DeviceArray
    count: DeviceArray
    first_nan: DeviceArray


@dataclass(frozen=True)
class Velocities:
    """What deep gradient compression carries from step to step, updated in place: u and v of each tensor, float32."""

    momenta: Sequence[DeviceArray]
    residuals: Sequence[DeviceArray]
    factor: float  # m
    nesterov: bool = False
    masking: bool = True  # momentum factor masking: what was sent is cleared in u too


def top_k_workspace_bytes(n: int, k: int, dtype: str = "float32", tensors: int = 1) -> int:
    """Bytes of workspace that selecting k of the n elements of `tensors` together takes.

    Args:
        n: Elements of all.
        k: How many are selected.
        dtype: float32, float16 or bfloat16; float32 with feedback.
        tensors: How many there are.
    """
    return int(module().top_k_workspace_bytes(n, k, dtype, tensors))


def top_k(arrays: Sequence[DeviceArray], k: int, out: Selected, queue: Queue) -> None:
    """Select the k elements of largest magnitude of all arrays together; of equal ones, those that come first.

    Exact, and the same bits in every run and as `edge_runtime.kernels.top_k_tree` gives.

    Args:
        arrays: (n,) each, some may be empty; all float32, all float16 or all bfloat16; not modified. Together they have
            1 to 2^31 - 1 elements.
        k: How many, 1 to the number of elements of all.
        out: Receives them; values of the arrays' dtype.
        queue: With `top_k_workspace_bytes` bytes.

    Source: Alabi et al., 2012 (radix select); Merrill and Garland, 2016 (decoupled look-back).
    """
    device_module().top_k(
        list(arrays), k, out.indices, out.values, out.first_nan, out.starts, queue.workspace, queue.stream
    )


def above_workspace_bytes(n: int, dtype: str = "float32") -> int:
    """Bytes of workspace that `above` takes for n elements."""
    return int(module().above_workspace_bytes(n, dtype))


def above(x: DeviceArray, dtype: str, threshold: float, out: Reached, queue: Queue) -> None:
    """Select every element with |x| >= threshold, reading x once.

    Args:
        x: (n,), 1 to 2^31 - 1 elements of `dtype`; not modified.
        dtype: float32, float16 or bfloat16.
        threshold: At least 0; compared as a real number, not after rounding to x's dtype.
        out: Receives them.
        queue: With `above_workspace_bytes` bytes.
    """
    if not threshold >= 0:
        message = f"threshold must be at least 0, got {threshold}"
        raise ValueError(message)
    words = np.dtype(np.float16 if dtype == "float16" else np.uint16 if dtype == "bfloat16" else np.float32)
    key = key_at_least(threshold, words, dtype)
    device_module().above(
        x, dtype, key, out.indices, out.values, out.count, out.first_nan, queue.workspace, queue.stream
    )


def top_k_residual(
    gradients: Sequence[DeviceArray], residuals: Sequence[DeviceArray], k: int, out: Selected, queue: Queue
) -> None:
    """Add gradients to residuals, select the k largest magnitudes of all, and set those to zero in the residuals.

    Args:
        gradients: (n,) float32 each; not modified.
        residuals: One for each, of its size, updated in place; what is sent and what is left are together gradient and
            what was there. Where an element is NaN nothing is set to zero.
        k: As in `top_k`.
        out: Receives them; values (k,) float32.
        queue: With `top_k_workspace_bytes` bytes.

    Source: Aji and Heafield, 2017, arXiv 1704.05021.
    """
    _feedback(gradients, Velocities((), residuals, 0.0, masking=False), k, out, queue)


def dgc(gradients: Sequence[DeviceArray], velocities: Velocities, k: int, out: Selected, queue: Queue) -> None:
    """Deep gradient compression: accumulate the velocity, not the gradient, and select from that.

    u = m u + g; v = v + u (Nesterov: u = m (u + g); v = v + (u + g)), no multiply-add fused; the k largest |v| of all
    are sent and set to zero in v, and with masking in u.

    Args:
        gradients: (n,) float32 each; not modified.
        velocities: u, v and m. Where an element of v becomes NaN nothing is set to zero.
        k: As in `top_k`.
        out: Receives them; values (k,) float32.
        queue: With `top_k_workspace_bytes` bytes.

    Source: Lin et al., 2018, arXiv 1712.01887, section 3.
    """
    if len(velocities.momenta) != len(gradients):
        message = f"there must be momentum for each of {len(gradients)} gradients, got {len(velocities.momenta)}"
        raise ValueError(message)
    _feedback(gradients, velocities, k, out, queue)


def _feedback(gradients: Sequence[DeviceArray], it: Velocities, k: int, out: Selected, queue: Queue) -> None:
    device_module().top_k_feedback(
        gradients=list(gradients),
        residuals=list(it.residuals),
        momenta=list(it.momenta),
        factor=it.factor,
        nesterov=it.nesterov,
        masked=it.masking,
        k=k,
        indices=out.indices,
        values=out.values,
        first_nan=out.first_nan,
        starts=out.starts,
        workspace=queue.workspace,
        stream=queue.stream,
    )
