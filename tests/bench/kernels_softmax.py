"""Rows T4 to T7: a step of sampled softmax beside what torch users write.

A step is the loss, the gradient of the features, and the update of the class rows in place, with 32 examples, eight
positive classes and negatives drawn from 100,000 classes (a million for T7).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bench.kernel_rows import rows_of
from edge_runtime import kernels
from edge_runtime.kernels import reference_sampled_softmax

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from bench.kernel_rows import Machine

BATCH, POSITIVES, LR = 32, 8, 0.1
CLASSES = 100_000
# Ratios asked for, at widths of 64, 128 and 512.
TARGETS: dict[str, tuple[int, dict[str, tuple[float | None, float | None, float | None]]]] = {
    "T4": (100, {"torch, sparse embedding": (18, 13, 5.5), "torch, by hand": (8, 6, 2.8)}),
    "T5": (1000, {"torch, sparse embedding": (5.5, 4.5, 3.2), "torch, by hand": (None, None, None)}),
    "T6": (8192, {"torch, sparse embedding": (6, 5, 3.6), "torch, by hand": (None, None, None)}),
}
WIDTHS = (64, 128, 512)


@dataclass(frozen=True)
class Problem:
    """Operands of one step, and the same memory as torch sees it."""

    features: NDArray[np.float32]
    rows: NDArray[np.float32]
    labels: NDArray[np.int32]
    classes: NDArray[np.int32]
    correction: float

    def torch(self) -> tuple[torch.Tensor, ...]:
        """features, a copy of the rows, labels, classes, corrections."""
        added = np.where(np.arange(len(self.classes)) < POSITIVES, 0.0, self.correction).astype(np.float32)
        arrays = (self.features, self.rows.copy(), self.labels.astype(np.int64), self.classes.astype(np.int64), added)
        return tuple(torch.from_numpy(a) for a in arrays)


def problem(classes: int, sampled: int, width: int) -> Problem:
    """Random operands, the same in every run."""
    rng = np.random.default_rng(sampled + width)
    return Problem(
        rng.standard_normal((BATCH, width), np.float32) / np.float32(np.sqrt(width)),
        rng.standard_normal((classes, width), np.float32),
        rng.integers(0, POSITIVES, BATCH).astype(np.int32),
        rng.choice(classes, sampled, replace=False).astype(np.int32),
        float(np.log((classes - POSITIVES) / (sampled - POSITIVES))),
    )


def ours(it: Problem, threads: int) -> Callable[[], object]:
    """One call of our step."""
    workspace, rows, d_features = kernels.Workspace(threads=threads), it.rows.copy(), np.empty_like(it.features)

    def step() -> object:
        return kernels.sampled_softmax_update(
            it.features,
            rows,
            it.labels,
            it.classes,
            lr=LR,
            positives=POSITIVES,
            correction=it.correction,
            d_features=d_features,
            workspace=workspace,
        )

    return step


def sparse(it: Problem) -> Callable[[], object]:
    """torch.nn.functional.embedding with a sparse gradient, which autograd makes and add_ applies."""
    features, rows, labels, classes, added = it.torch()
    features.requires_grad_()
    rows.requires_grad_()

    def step() -> object:
        features.grad = rows.grad = None
        chosen = torch.nn.functional.embedding(classes, rows, sparse=True)
        torch.nn.functional.cross_entropy(features @ chosen.T + added, labels).backward()
        with torch.no_grad():
            rows.add_(rows.grad, alpha=-LR)
        return features.grad

    return step


def naive(it: Problem) -> Callable[[], object]:
    """Indexing, whose gradient is as large as all rows."""
    features, rows, labels, classes, added = it.torch()
    features.requires_grad_()
    rows.requires_grad_()

    def step() -> object:
        features.grad = rows.grad = None
        torch.nn.functional.cross_entropy(features @ rows[classes].T + added, labels).backward()
        with torch.no_grad():
            rows.add_(rows.grad, alpha=-LR)
        return features.grad

    return step


def by_hand(it: Problem) -> Callable[[], object]:
    """The formulas in torch without autograd, updating only the rows that were chosen."""
    features, rows, labels, classes, added = it.torch()
    examples = torch.arange(BATCH)

    def step() -> object:
        chosen = rows.index_select(0, classes)
        log_p = torch.log_softmax(torch.addmm(added, features, chosen.T), 1)
        loss = -log_p[examples, labels].mean()
        g = log_p.exp_()
        g[examples, labels] -= 1.0
        g /= BATCH
        d_features = g @ chosen
        rows.index_add_(0, classes, g.T @ features, alpha=-LR)
        return loss, d_features

    return step


def _error(it: Problem) -> dict[str, float]:
    """How far the loss and the largest gradients are from float64."""
    settings: dict[str, Any] = {"positives": POSITIVES, "correction": it.correction}
    operands = (it.features, it.rows, it.labels, it.classes)
    made, truth = (
        f(*operands, **settings) for f in (kernels.sampled_softmax, reference_sampled_softmax.sampled_softmax)
    )
    return {
        name: float(np.abs(a - b).max() / np.abs(b).max())
        for name, a, b in zip(("loss", "d_features", "d_rows"), made, truth, strict=True)
    }


def _cases(
    machine: Machine, it: Problem, peers: dict[str, Callable[[], object]], targets: dict[str, float | None]
) -> list[dict[str, Any]]:
    sampled, width = len(it.classes), it.features.shape[1]
    floor_s = machine.peak.seconds(3 * BATCH * sampled * width, 0)
    steps = {"ours": ours(it, machine.threads), **peers}
    cases = machine.measured(f"S={sampled} d={width}", steps, targets, floor_s)
    return [{**case, "errors": _error(it)} for case in cases]


def _sampled(row_id: str) -> Callable[[Machine], list[dict[str, Any]]]:
    sampled, targets = TARGETS[row_id]

    def measure(machine: Machine) -> list[dict[str, Any]]:
        cases = []
        for number, width in enumerate(WIDTHS):
            it = problem(CLASSES, sampled, width)
            peers = {"torch, sparse embedding": sparse(it), "torch, by hand": by_hand(it)}
            cases += _cases(machine, it, peers, {peer: asked[number] for peer, asked in targets.items()})
        return rows_of(row_id, f"sampled softmax step, {sampled} of {CLASSES} classes", cases)

    return measure


def against_naive(machine: Machine) -> list[dict[str, Any]]:
    """T7: a million classes."""
    it = problem(1_000_000, 1000, 64)
    cases = _cases(machine, it, {"torch, indexed": naive(it)}, {"torch, indexed": 1000.0})
    return rows_of("T7", "sampled softmax step, 1000 of 1000000 classes", cases)


MEASURES = {**{row_id: _sampled(row_id) for row_id in TARGETS}, "T7": against_naive}
