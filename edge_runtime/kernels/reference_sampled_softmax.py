"""Twin of sampled_softmax: the formulas as they are printed, in float64, with all logits at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


def sampled_softmax(  # noqa: PLR0913 - the operands and settings of one loss
    features: Array,
    rows: Array,
    labels: Array,
    classes: Array,
    *,
    positives: int,
    correction: float | Array = 0.0,
    scale: float | None = None,
    own_positives: bool = False,
) -> tuple[float, Array, Array]:
    """Loss, d_features and d_rows (S, D) of edge_runtime.kernels.sampled_softmax, in float64."""
    added = np.where(np.arange(len(classes)) < positives, 0.0, correction)
    added[positives:][np.isin(classes[positives:], classes[:positives])] = -np.inf
    own = positives if own_positives else 0
    return linear_loss(features, rows[classes], labels, added, scale=scale, own=own)


def linear_loss(  # noqa: PLR0913 - as above
    features: Array, rows: Array, labels: Array, added: Array | None, *, scale: float | None, own: int
) -> tuple[float, Array, Array]:
    """Loss and gradients where `rows` are those of the classes that are here, and `added` joins their logits."""
    f, w = features.astype(np.float64), rows.astype(np.float64)
    o = logits(f, w, scale) + (0.0 if added is None else added)
    loss, g = _cross_entropy(o, labels, own)
    if scale is None:
        return loss, g @ w, g.T @ f
    (f_unit, f_length), (w_unit, w_length) = _directions(f), _directions(w)
    d_f, d_w = scale * g @ w_unit, scale * g.T @ f_unit
    return loss, _across(d_f, f_unit, f_length), _across(d_w, w_unit, w_length)


def linear_cross_entropy(
    features: Array, rows: Array, labels: Array, *, scale: float | None = None
) -> tuple[float, Array, Array]:
    """The same over all rows."""
    everything = np.arange(len(rows))
    return sampled_softmax(features, rows, labels, everything, positives=len(rows), scale=scale)


def logits(f: Array, w: Array, scale: float | None) -> Array:
    """Dot products (B, S), or scale times cosines."""
    factor: Array = f if scale is None else scale * _directions(f)[0]
    other: Array = w if scale is None else _directions(w)[0]
    products: Array = factor @ other.T
    return products


def _cross_entropy(o: Array, labels: Array, own: int) -> tuple[float, Array]:
    """The mean over labelled rows and its gradient; of the first `own` classes a row sees only its label."""
    labelled = np.flatnonzero(labels >= 0)
    if len(labelled) == 0:
        return 0.0, np.zeros_like(o)
    truth = np.zeros(o.shape, bool)
    truth[labelled, labels[labelled]] = True
    seen = truth | (np.arange(o.shape[1]) >= own)
    o = np.where(seen, o, -np.inf)[labelled]
    peak = o.max(axis=1, keepdims=True)
    e = np.exp(o - peak)
    z = e.sum(axis=1, keepdims=True)
    loss = np.mean(peak + np.log(z) - o[truth[labelled]][:, None])
    g = np.zeros(truth.shape)
    g[labelled] = (e / z - truth[labelled]) / len(labelled)
    return float(loss), g


def _directions(v: Array) -> tuple[Array, Array]:
    """Unit vectors and 1 / length; zeros where there is no direction."""
    length = np.sqrt(np.sum(v * v, axis=1, keepdims=True))
    inverse = np.divide(1.0, length, out=np.zeros_like(length), where=length >= 1e-19)
    return v * inverse, inverse


def _across(d: Array, unit: Array, inverse: Array) -> Array:
    sideways: Array = inverse * (d - unit * np.sum(unit * d, axis=1, keepdims=True))
    return sideways
