"""Softmax cross-entropy of linear logits, over some classes or all, fused with its gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge_runtime import _core

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Numbers = NDArray[np.int32]

__all__ = [
    "linear_cross_entropy",
    "linear_cross_entropy_update",
    "sampled_softmax",
    "sampled_softmax_update",
]


def sampled_softmax(  # noqa: PLR0913 - the operands and settings of one loss
    features: Floats,
    rows: Floats,
    labels: Numbers,
    classes: Numbers,
    *,
    positives: int,
    correction: float | Floats = 0.0,
    scale: float | None = None,
    own_positives: bool = False,
    d_features: Floats | None = None,
    d_rows: Floats | None = None,
    workspace: _core.Workspace | None = None,
) -> tuple[float, Floats, Floats]:
    """Compute the mean sampled-softmax loss and its gradients, never with more than a tile of the logits.

        o[b, j] = f_b . w_j, or scale * cosine(f_b, w_j), + correction[j] where j >= P;   w_j = rows[classes[j]]
        loss = mean over labelled b of  log(sum_j e^o[b, j]) - o[b, y_b]

    The denominator is that of the full softmax on average over the negatives drawn when correction is -log q, with q
    the probability that the class is among them; samplers give it. Positives are there with certainty: none for them.

    Args:
        features: (B, D); examples.
        rows: (C, D); one row a class.
        labels: (B,); places in `classes` below `positives`, -1 for an example that does not count.
        classes: (S,); places in `rows`, first the positives, all different, then the negatives. A negative that is
            also a positive (an accidental hit) is left out; one that is named twice counts twice.
        positives: P, the number of leading classes that are labels of somebody here.
        correction: What is added to the logits of negatives, one number or (S,) of which the first P are not read.
        scale: For logits from cosines; None for dot products. A zero vector has cosine 0 and no gradient.
        own_positives: Let an example see, of the positives, only its own label.
        d_features: (B, D); where to write, or None for new memory.
        d_rows: (S, D); where to write, or None for new memory.
        workspace: What to run with.

    Returns:
        The loss; d loss / d features; d loss / d rows[classes], which is zero for what was left out. To go on from
        d loss / d loss = u, multiply both by u. Gradients of each example's features sum to those of the mean.

    Raises:
        TypeError: An array of another dtype, order or number of dimensions.
        ValueError: Shapes that do not fit, numbers out of range, two positives with the same row, outputs that share
            memory with something else.

    Source: Federated sampled softmax (Waghmare et al., 2022); online log-sum-exp as in Milakov and Gimelshein, 2018.
    """
    d_features = np.empty_like(features) if d_features is None else d_features
    d_rows = np.empty((len(classes), rows.shape[1]), np.float32) if d_rows is None else d_rows
    loss = _core.sampled_softmax(
        workspace or _core.Workspace(),
        features,
        rows,
        labels,
        classes,
        positives,
        correction,
        _scale(scale),
        own_positives=own_positives,
        d_features=d_features,
        d_rows=d_rows,
    )
    return loss, d_features, d_rows


def sampled_softmax_update(  # noqa: PLR0913 - as above
    features: Floats,
    rows: Floats,
    labels: Numbers,
    classes: Numbers,
    *,
    lr: float,
    positives: int,
    correction: float | Floats = 0.0,
    scale: float | None = None,
    own_positives: bool = False,
    d_features: Floats | None = None,
    workspace: _core.Workspace | None = None,
) -> tuple[float, Floats]:
    """Do what sampled_softmax does and take a step down the rows' gradient, which is never stored.

    `rows[classes] -= lr * d_rows` in place; all other rows keep their bits. Arguments as in sampled_softmax, but no
    negative may be named twice.

    Returns:
        The loss and d loss / d features, both of the rows as they were.
    """
    d_features = np.empty_like(features) if d_features is None else d_features
    loss = _core.sampled_softmax(
        workspace or _core.Workspace(),
        features,
        rows,
        labels,
        classes,
        positives,
        correction,
        _scale(scale),
        own_positives=own_positives,
        lr=lr,
        d_features=d_features,
    )
    return loss, d_features


def linear_cross_entropy(  # noqa: PLR0913 - the operands and settings of one loss
    features: Floats,
    rows: Floats,
    labels: Numbers,
    *,
    scale: float | None = None,
    d_features: Floats | None = None,
    d_rows: Floats | None = None,
    workspace: _core.Workspace | None = None,
) -> tuple[float, Floats, Floats]:
    """Compute the mean softmax cross-entropy over all classes with its gradients; the (B, C) logits are never stored.

    sampled_softmax with every class a positive: log(sum_j e^o[b, j]) - o[b, y_b], labels being places in `rows`.

    Args:
        features: (B, D).
        rows: (C, D); one row a class.
        labels: (B,); below C, -1 for an example that does not count.
        scale: For logits from cosines; None for dot products.
        d_features: (B, D); where to write, or None for new memory.
        d_rows: (C, D); where to write, or None for new memory.
        workspace: What to run with.

    Returns:
        The loss, d loss / d features, d loss / d rows.

    Raises:
        TypeError, ValueError: As sampled_softmax.

    Source: tiles and online log-sum-exp as in cut cross-entropy (Wijmans et al., 2025), but no term is skipped.
    """
    d_features = np.empty_like(features) if d_features is None else d_features
    d_rows = np.empty_like(rows) if d_rows is None else d_rows
    loss = _core.sampled_softmax(
        workspace or _core.Workspace(),
        features,
        rows,
        labels,
        scale=_scale(scale),
        d_features=d_features,
        d_rows=d_rows,
    )
    return loss, d_features, d_rows


def linear_cross_entropy_update(  # noqa: PLR0913 - as above
    features: Floats,
    rows: Floats,
    labels: Numbers,
    *,
    lr: float,
    scale: float | None = None,
    d_features: Floats | None = None,
    workspace: _core.Workspace | None = None,
) -> tuple[float, Floats]:
    """Do what linear_cross_entropy does and take a step, `rows -= lr * d_rows` in place, without storing d_rows.

    Returns:
        The loss and d loss / d features, both of the rows as they were.
    """
    d_features = np.empty_like(features) if d_features is None else d_features
    loss = _core.sampled_softmax(
        workspace or _core.Workspace(),
        features,
        rows,
        labels,
        scale=_scale(scale),
        lr=lr,
        d_features=d_features,
    )
    return loss, d_features


def _scale(scale: float | None) -> float:
    if scale is None:
        return 0.0
    if scale <= 0.0:
        raise ValueError(f"scale must be above 0, or None for dot products, is {scale}")
    return scale
