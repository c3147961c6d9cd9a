"""Softmax cross-entropy of linear logits, over some classes or all, fused with its gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime.kernels.cuda.devices import device_module

if TYPE_CHECKING:
    from edge_runtime.kernels.cuda.devices import DeviceArray, Queue

__all__ = ["Gradients", "Head", "Step", "sampled_softmax", "sampled_softmax_workspace_bytes"]


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
