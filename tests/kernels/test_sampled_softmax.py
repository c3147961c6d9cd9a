"""Sampled softmax and linear cross-entropy against their twin, torch, central differences and each other."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from edge_runtime import kernels
from edge_runtime.kernels import Workspace, info
from edge_runtime.kernels import reference_sampled_softmax as reference

F32, I32 = np.float32, np.int32


class Problem(NamedTuple):
    features: Any
    rows: Any
    labels: Any
    classes: Any

    def settings(self, **more: Any) -> dict[str, Any]:
        positives = max(1, len(self.classes) // 5)
        return {"positives": positives, "correction": 1.3, **more}


def problem(batch: int, width: int, sampled: int, table: int, seed: int = 0) -> Problem:
    rng = np.random.default_rng(seed)
    positives = max(1, sampled // 5)
    return Problem(
        rng.standard_normal((batch, width)).astype(F32) / F32(np.sqrt(width)),
        rng.standard_normal((table, width)).astype(F32),
        rng.integers(-1, positives, batch).astype(I32) if batch > 1 else np.zeros(1, I32),
        rng.permutation(table)[:sampled].astype(I32),
    )


def close(made: Any, truth: Any, relative: float = 1e-5) -> bool:
    """Every number to `relative` of the largest."""
    return bool(np.abs(made - truth).max() <= relative * max(np.abs(truth).max(), 1e-12))


# One of everything, widths and batches around vectors and tiles, units of 48 classes, more than one block of rows, and
# more logits than are kept.
SHAPES = [
    (1, 1, 1, 1),
    (1, 5, 2, 9),
    (5, 33, 7, 50),
    (3, 17, 49, 60),
    (16, 32, 96, 96),
    (17, 64, 47, 300),
    (33, 31, 145, 200),
    (32, 64, 1300, 1500),
    (40, 600, 250, 260),
    (1100, 20, 300, 310),
]


@pytest.mark.parametrize("scale", [None, 7.0])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_loss_and_gradients_are_the_twins(shape: tuple[int, ...], scale: float | None, workspace: Workspace) -> None:
    it = problem(*shape)
    settings = it.settings(scale=scale)
    made = kernels.sampled_softmax(*it, **settings, workspace=workspace)
    truth = reference.sampled_softmax(*it, **settings)
    assert abs(made[0] - truth[0]) <= 1e-6 * max(truth[0], 1.0)
    assert close(made[1], truth[1])
    assert close(made[2], truth[2])


@pytest.mark.parametrize("own", [0, 1])
def test_corrections_are_one_for_each_negative_and_none_for_positives(own: int, workspace: Workspace) -> None:
    it = problem(19, 24, 130, 200)
    correction = np.random.default_rng(1).standard_normal(130).astype(F32)
    settings = it.settings(correction=correction, own_positives=bool(own))
    made = kernels.sampled_softmax(*it, **settings, workspace=workspace)
    truth = reference.sampled_softmax(*it, **settings)
    assert all(close(a, b) for a, b in zip(made, truth, strict=True))
    correction[: settings["positives"]] = 50.0
    again = kernels.sampled_softmax(*it, **settings, workspace=workspace)
    assert all(np.array_equal(a, b) for a, b in zip(made, again, strict=True))


def test_all_classes_without_corrections_are_the_full_softmax(workspace: Workspace) -> None:
    it = problem(21, 40, 333, 333)
    order = np.arange(333, dtype=I32)
    labels = np.random.default_rng(2).integers(0, 333, 21).astype(I32)
    sampled = kernels.sampled_softmax(
        it.features, it.rows, labels, order, positives=333, correction=0.0, workspace=workspace
    )
    full = kernels.linear_cross_entropy(it.features, it.rows, labels, workspace=workspace)
    assert all(np.array_equal(a, b) for a, b in zip(sampled, full, strict=True))
    f, w = (torch.from_numpy(v).double().requires_grad_() for v in (it.features, it.rows))
    loss = torch.nn.functional.cross_entropy(f @ w.T, torch.from_numpy(labels).long())
    loss.backward()
    assert abs(full[0] - loss.item()) <= 1e-6 * loss.item()
    assert close(full[1], f.grad.numpy())
    assert close(full[2], w.grad.numpy())


def test_unlabelled_examples_carry_nothing_whatever_they_hold(workspace: Workspace) -> None:
    it = problem(9, 20, 60, 80)
    labels = np.array([0, -1, 3, -1, 2, 1, -1, 0, 5], I32)
    it.features[labels < 0] = np.nan
    it = it._replace(labels=labels)
    made = kernels.sampled_softmax(*it, **it.settings(), workspace=workspace)
    few = it._replace(features=it.features[labels >= 0].copy(), labels=labels[labels >= 0].copy())
    truth = reference.sampled_softmax(*few, **it.settings())
    assert abs(made[0] - truth[0]) <= 1e-6 * truth[0]
    assert close(made[1][labels >= 0], truth[1])
    assert not made[1][labels < 0].any()
    assert close(made[2], truth[2])


def test_no_labels_at_all_make_a_loss_of_zero(workspace: Workspace) -> None:
    it = problem(3, 8, 20, 30)._replace(labels=np.full(3, -1, I32))
    loss, d_features, d_rows = kernels.sampled_softmax(*it, **it.settings(), workspace=workspace)
    assert loss == 0.0
    assert not d_features.any()
    assert not d_rows.any()


def test_logits_of_ten_thousand_do_not_overflow(workspace: Workspace) -> None:
    it = problem(8, 16, 100, 120)
    it = it._replace(features=it.features * F32(3000.0))
    made = kernels.sampled_softmax(*it, **it.settings(), workspace=workspace)
    truth = reference.sampled_softmax(*it, **it.settings())
    assert np.abs(it.features @ it.rows.T).max() > 1e4
    assert abs(made[0] - truth[0]) <= 1e-6 * truth[0]
    assert np.isfinite(made[2]).all()
    assert close(made[1], truth[1], 1e-3)  # a logit of 1e4 itself is rounded by 1e-3


def test_what_is_left_of_a_nearly_certain_example_keeps_its_digits(workspace: Workspace) -> None:
    rows = np.array([[1.0, 0.0], [-1.0, 0.5], [-1.0, -0.25]], F32)
    it = Problem(np.array([[12.0, 1.0]], F32), rows, np.zeros(1, I32), np.arange(3, dtype=I32))
    made = kernels.sampled_softmax(*it, positives=1, workspace=workspace)
    truth = reference.sampled_softmax(*it, positives=1)
    assert 0.0 < truth[0] < 1e-9  # one minus it is one in float32
    assert all(close(a, b, 1e-5) for a, b in zip(made, truth, strict=True))


def test_a_single_class_is_certain(workspace: Workspace) -> None:
    it = problem(6, 12, 1, 5)._replace(labels=np.zeros(6, I32))
    loss, d_features, d_rows = kernels.sampled_softmax(*it, positives=1, correction=2.0, workspace=workspace)
    assert (loss, np.abs(d_features).max(), np.abs(d_rows).max()) == (0.0, 0.0, 0.0)


def test_gradients_of_the_logits_sum_to_zero_for_every_example(workspace: Workspace) -> None:
    """With the features e_b, d_rows holds the gradients of the logits, one column an example."""
    batch = 13
    rows = np.random.default_rng(3).standard_normal((70, batch)).astype(F32)
    labels = np.array([0, 1, 1, 1, 2, 0, 3, 4, 5, 6, 7, 7, 0], I32)
    _, _, d_rows = kernels.sampled_softmax(
        np.eye(batch, dtype=F32), rows, labels, np.arange(70, dtype=I32), positives=8, workspace=workspace
    )
    assert np.abs(d_rows.sum(axis=0)).max() < 1e-7


def test_a_constant_on_all_logits_changes_nothing_and_one_on_negatives_does(workspace: Workspace) -> None:
    it = problem(10, 6, 40, 60)
    lifted = it._replace(
        features=np.column_stack([it.features, np.full(10, 2.0, F32)]).astype(F32),
        rows=np.column_stack([it.rows, np.ones(60, F32)]).astype(F32),
    )
    plain = kernels.sampled_softmax(*it, **it.settings(), workspace=workspace)
    moved = kernels.sampled_softmax(*lifted, **it.settings(), workspace=workspace)
    assert abs(plain[0] - moved[0]) < 1e-6
    assert close(moved[1][:, :6], plain[1])
    other = kernels.sampled_softmax(*it, **it.settings(correction=2.3), workspace=workspace)
    assert other[0] > plain[0] + 0.01


def test_an_accidental_hit_is_left_out(workspace: Workspace) -> None:
    it = problem(12, 10, 50, 70)
    settings = it.settings()
    hit = it.classes.copy()
    hit[20], hit[33] = hit[3], hit[0]
    made = kernels.sampled_softmax(*it._replace(classes=hit), **settings, workspace=workspace)
    keep = np.delete(np.arange(50), [20, 33])
    truth = reference.sampled_softmax(*it._replace(classes=it.classes[keep]), **settings)
    assert abs(made[0] - truth[0]) <= 1e-6 * truth[0]
    assert close(made[1], truth[1])
    assert close(made[2][keep], truth[2])
    assert not made[2][[20, 33]].any()
    correction = np.full(50, settings["correction"], F32)
    again = kernels.sampled_softmax(
        *it._replace(classes=hit), **{**settings, "correction": correction}, workspace=workspace
    )
    assert all(np.array_equal(a, b) for a, b in zip(made, again, strict=True))
    assert (correction == F32(settings["correction"])).all()
    rows = it.rows.copy()
    kernels.sampled_softmax_update(it.features, rows, it.labels, hit, lr=0.5, **settings, workspace=workspace)
    expected = it.rows.copy()
    expected[it.classes[keep]] -= F32(0.5) * made[2][keep]
    assert np.allclose(rows, expected, rtol=1e-6, atol=1e-7)


def test_a_negative_drawn_twice_counts_twice(workspace: Workspace) -> None:
    it = problem(5, 9, 30, 40)
    it.classes[20] = it.classes[25]
    made = kernels.sampled_softmax(*it, **it.settings(), workspace=workspace)
    truth = reference.sampled_softmax(*it, **it.settings())
    assert all(close(a, b) for a, b in zip(made, truth, strict=True))


@pytest.mark.parametrize("scale", [None, 16.0])
@pytest.mark.parametrize("shape", [(32, 64, 100, 900), (5, 33, 145, 200), (1100, 20, 300, 310)])
def test_an_update_is_a_step_down_the_gradient_and_touches_no_other_row(
    shape: tuple[int, ...], scale: float | None, workspace: Workspace
) -> None:
    it = problem(*shape)
    loss, d_features, d_rows = kernels.sampled_softmax(*it, **it.settings(scale=scale), workspace=workspace)
    rows = it.rows.copy()
    updated = kernels.sampled_softmax_update(
        it.features, rows, it.labels, it.classes, lr=0.25, **it.settings(scale=scale), workspace=workspace
    )
    assert updated[0] == loss
    assert np.array_equal(updated[1], d_features)
    expected = it.rows.copy()
    expected[it.classes] -= F32(0.25) * d_rows
    assert np.allclose(rows, expected, rtol=1e-6, atol=1e-7)
    others = np.setdiff1d(np.arange(shape[3]), it.classes)
    assert np.array_equal(rows[others], it.rows[others])


def test_the_full_update_is_a_step_down_the_full_gradient(workspace: Workspace) -> None:
    it = problem(7, 32, 90, 90)
    rows = it.rows.copy()
    loss, d_features = kernels.linear_cross_entropy_update(it.features, rows, it.labels, lr=0.5, workspace=workspace)
    truth = kernels.linear_cross_entropy(it.features, it.rows, it.labels, workspace=workspace)
    assert loss == truth[0]
    assert np.array_equal(d_features, truth[1])
    assert np.allclose(rows, it.rows - F32(0.5) * truth[2], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("isa", info()["available"])
@pytest.mark.parametrize("shape", SHAPES[-4:])
def test_any_number_of_threads_makes_the_same_bits(shape: tuple[int, ...], isa: str) -> None:
    it = problem(*shape)
    one, *others = (
        kernels.sampled_softmax(*it, **it.settings(scale=3.0), workspace=Workspace(threads=n, isa=isa))
        for n in (1, 2, 3, 5)
    )
    assert all(np.array_equal(a, b) for other in others for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("scale", [None, 5.0])
@pytest.mark.parametrize("own", [0, 1])
def test_the_twins_gradients_are_central_differences(scale: float | None, own: int) -> None:
    it = problem(4, 5, 9, 12)
    f, w = it.features.astype(np.float64), it.rows.astype(np.float64)
    settings: dict[str, Any] = {"positives": 3, "correction": 0.7, "scale": scale, "own_positives": bool(own)}
    labels = np.array([0, 2, -1, 1], I32)
    _, d_f, d_w = reference.sampled_softmax(f, w, labels, it.classes, **settings)
    for array, gradient, places in ((f, d_f, np.arange(4)), (w, d_w, it.classes)):
        for row, place in enumerate(places):
            for k in range(5):
                losses = []
                for step in (1e-5, -1e-5):
                    array[place, k] += step
                    losses.append(reference.sampled_softmax(f, w, labels, it.classes, **settings)[0])
                    array[place, k] -= step
                assert abs((losses[0] - losses[1]) / 2e-5 - gradient[row, k]) < 1e-8


def test_a_vector_without_direction_has_cosine_zero_and_no_gradient(workspace: Workspace) -> None:
    it = problem(6, 12, 30, 40)
    it.features[1] = 0.0
    it.rows[it.classes[[0, 20]]] = 0.0
    made = kernels.sampled_softmax(*it, **it.settings(scale=9.0), workspace=workspace)
    truth = reference.sampled_softmax(*it, **it.settings(scale=9.0))
    assert all(close(a, b) for a, b in zip(made, truth, strict=True))
    assert not made[1][1].any()
    assert not made[2][[0, 20]].any()


def test_a_nan_reaches_the_loss(workspace: Workspace) -> None:
    it = problem(4, 8, 60, 70)._replace(labels=np.zeros(4, I32))
    it.rows[it.classes[50], 3] = np.nan
    loss, d_features, _ = kernels.sampled_softmax(*it, **it.settings(), workspace=workspace)
    assert np.isnan(loss)
    assert np.isnan(d_features).all()


def test_memory_is_a_tile_of_logits_and_a_few_copies_of_the_features() -> None:
    """1 MiB of features' copies and sums of rows where all logits would be 61 MB."""
    batch, width, count = 128, 256, 120_000
    rng = np.random.default_rng(5)
    features, rows = (rng.standard_normal((n, width)).astype(F32) for n in (batch, count))
    workspace = Workspace()
    kernels.linear_cross_entropy_update(features, rows, np.zeros(batch, I32), lr=0.1, workspace=workspace)
    sums, copies = 4 * 128 * 1024, 2 * features.nbytes
    assert workspace.peak_bytes <= sums + copies + 4 * (16 * 2 * batch + 110 * width + 16 * 1024)


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("label above the positives", {"labels": np.array([0, 6, 0, 0], I32)}, "labels must be in -1..5, at 1 is 6"),
    ("label below -1", {"labels": np.array([0, 0, -2, 0], I32)}, "labels must be in -1..5, at 2 is -2"),
    ("labels of another batch", {"labels": np.zeros(5, I32)}, "labels must be one for each of the 4 features"),
    ("row that is not there", {"classes": np.arange(21, 51, dtype=I32)}, r"classes must be in 0..39, at 19 is 40"),
    ("no classes", {"classes": np.zeros(0, I32)}, "classes must name at least one row"),
    ("two positives of one row", {"classes": np.array([0, 1, 2, 3, 4, 1, 7], I32)}, "row 1 is at 1 and 5"),
    ("another width", {"features": np.zeros((4, 7), F32)}, "rows must be as wide as the features, 7, are 8"),
    ("nothing", {"features": np.zeros((0, 8), F32)}, "at least one row"),
    ("positives", {"positives": 31}, "positives must be in 0..30, is 31"),
    ("correction", {"correction": np.inf}, "correction must be finite"),
    ("corrections", {"correction": np.full(30, np.nan, F32)}, "correction must be finite"),
    ("number of corrections", {"correction": np.zeros(29, F32)}, "one for each of the 30 classes, has 29"),
    ("scale", {"scale": -1.0}, "scale must be above 0"),
    ("scale", {"scale": np.nan}, "scale must be finite"),
    ("output shape", {"d_rows": np.zeros((29, 8), F32)}, "d_rows must be 30 x 8, is 29 x 8"),
]


@pytest.mark.parametrize(("change", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_a_bad_argument_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    it = problem(4, 8, 30, 40)
    with pytest.raises(ValueError, match=message):
        kernels.sampled_softmax(**{**it._asdict(), **it.settings(), **change})


@pytest.mark.parametrize(
    "change",
    [
        {"features": np.zeros((4, 8))},
        {"rows": np.zeros((8, 40), F32).T},
        {"labels": np.zeros(4, np.int64)},
        {"classes": np.arange(60, dtype=I32)[::2]},
        {"d_features": np.zeros((4, 8), np.float64)},
    ],
    ids=["features", "rows", "labels", "classes", "d_features"],
)
def test_arrays_are_refused_rather_than_converted(change: dict[str, Any]) -> None:
    it = problem(4, 8, 30, 40)
    (name,) = change
    with pytest.raises(TypeError, match=f"{name} must be a C-contiguous"):
        kernels.sampled_softmax(**{**it._asdict(), **it.settings(), **change})


def test_a_list_is_no_array() -> None:
    it = problem(4, 8, 30, 40)
    for change in ({"classes": [np.int32(1)] * 30}, {"d_rows": [[np.float32(0)] * 8] * 30}):
        (name,) = change
        with pytest.raises(TypeError, match=f"{name} must be an array"):
            kernels.sampled_softmax(**{**it._asdict(), **it.settings(), **change})


def test_outputs_that_share_memory_are_refused() -> None:
    it = problem(4, 8, 4, 40)
    both = np.zeros((4, 8), F32)
    for outputs in ({"d_features": it.features}, {"d_rows": it.rows[:4]}, {"d_features": both, "d_rows": both}):
        with pytest.raises(ValueError, match="shares memory"):
            kernels.sampled_softmax(*it, **it.settings(), **outputs)


def test_an_update_refuses_a_negative_named_twice() -> None:
    it = problem(4, 8, 30, 40)
    it.classes[29] = it.classes[28]
    with pytest.raises(ValueError, match="classes must be distinct"):
        kernels.sampled_softmax_update(*it, lr=0.1, **it.settings())
