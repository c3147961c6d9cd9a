"""Staleness weights and the folds of FedAsync and FedBuff, in numbers worked by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from coordinator.jobfile import load_job
from coordinator.program import build_program, make_version
from coordinator.results import Diverged, fold
from coordinator.round_records import SYNCHRONOUS, ScheduleRules
from coordinator.staleness import against_present, as_models, update_weight
from coordinator.store import JournalUpdate
from edge_runtime.tensors import decode_tensors, encode_tensors
from support.tiny_job import JOB, make_site

if TYPE_CHECKING:
    from pathlib import Path

    from coordinator.program import Program
    from coordinator.store import Version

POLYNOMIAL = ScheduleRules(name="fedasync", alpha=0.6, staleness="polynomial", a=0.5)
HINGE = ScheduleRules(name="fedasync", alpha=0.9, staleness="hinge", a=10.0, b=4.0)


@pytest.mark.parametrize(
    ("rules", "staleness", "weight"),
    [
        (replace(POLYNOMIAL, staleness="constant"), 7, 0.6),
        (POLYNOMIAL, 0, 0.6),
        (POLYNOMIAL, 3, 0.3),  # 0.6 / sqrt(4)
        (POLYNOMIAL, 24, 0.12),  # 0.6 / sqrt(25)
        (replace(POLYNOMIAL, a=2.0), 1, 0.15),  # 0.6 / 4
        (HINGE, 4, 0.9),
        (HINGE, 5, 0.9 / 11),
        (HINGE, 6, 0.9 / 21),
        (replace(POLYNOMIAL, name="fedbuff", alpha=1.0), 8, 1 / 3),
        (SYNCHRONOUS, 0, 1.0),
    ],
)
def test_weights_are_those_of_the_formulas(rules: ScheduleRules, staleness: int, weight: float) -> None:
    assert update_weight(rules, staleness) == pytest.approx(weight, rel=1e-12)


def test_the_weight_is_made_of_the_constant_every_time_and_never_compounds() -> None:
    """A public implementation multiplies what it stores, so that its alpha decays to nothing."""
    assert {update_weight(POLYNOMIAL, 3) for _ in range(1000)} == {0.3}
    assert update_weight(POLYNOMIAL, 0) == 0.6


def test_fedasync_takes_all_tensors_as_models_and_fedbuff_only_running_statistics() -> None:
    names, statistics = ("fc.weight", "bn.running_var"), frozenset({"bn.running_var"})
    assert as_models(POLYNOMIAL, names, statistics) == set(names)
    assert as_models(replace(POLYNOMIAL, name="fedbuff"), names, statistics) == {"bn.running_var"}


def test_an_update_as_a_model_points_from_the_present_weights_to_what_its_device_trained() -> None:
    delta, base = {"w": np.float32([1.0, -2.0])}, {"w": np.float32([10.0, 10.0])}
    present = {"w": np.float32([14.0, 6.0])}
    moved = against_present(delta, {"w"}, base, present)
    np.testing.assert_array_equal(moved["w"], np.float32([-3.0, 2.0]))  # 10 + 1 - 14, 10 - 2 - 6
    assert against_present(delta, (), base, present)["w"] is delta["w"]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    site = make_site(tmp_path, JOB + '[schedule]\nname = "fedasync"\nalpha = 0.5\n')
    return site.program


def constant(program: Program, number: int, value: float) -> Version:
    """A version whose every weight is `value`."""
    return make_version(number, {name: np.full_like(array, value) for name, array in program.weights.items()}, {})


def update(
    program: Program, number: int, base: int, value: float, *, device: str = "dev-a", examples: int = 8
) -> JournalUpdate:
    tensors = {name: np.full_like(array, value) for name, array in program.weights.items()}
    data = encode_tensors(tensors, {"examples": "1", "steps": "1", "loss": "1.0"})
    return JournalUpdate(number, device, f"tiny.{base}.{device}.1", base, "", "", examples, 0.5, data)


def folded(program: Program, old: Version, bases: dict[int, Version], *updates: JournalUpdate) -> float:
    made = fold(program, updates, old, lambda number: bases[number].weights)
    values = {float(value) for array in decode_tensors(made.weights)[0].values() for value in np.unique(array)}
    assert len(values) == 1, "every weight was treated alike"
    return values.pop()


def test_fedasync_mixes_the_model_that_a_device_trained_into_the_present_one(program: Program) -> None:
    """Trained from version 2 (4.0) to 5.0, folded into version 5 (8.0), three behind: alpha = 0.5 / sqrt(4)."""
    found = folded(program, constant(program, 5, 8.0), {2: constant(program, 2, 4.0)}, update(program, 5, 2, 1.0))
    assert found == pytest.approx(0.75 * 8.0 + 0.25 * 5.0, rel=1e-6)


def test_fedbuff_adds_differences_weighted_by_examples_and_staleness(program: Program) -> None:
    """1.0 of 8 examples that is fresh, 2.0 of 24 that is three behind: (8 * 1.0 + 24 * 2.0 / 2) / 32 = 1.0."""
    rules = ScheduleRules(name="fedbuff", staleness="polynomial", a=0.5, buffer=2, max_staleness=10)
    buffered = replace(program, job=replace(program.job, schedule=rules))
    pair = (update(program, 5, 5, 1.0), update(program, 5, 2, 2.0, device="dev-b", examples=24))
    bases = {2: constant(program, 2, 4.0)}
    assert folded(buffered, constant(program, 5, 8.0), bases, *pair) == pytest.approx(9.0, rel=1e-6)
    assert folded(buffered, constant(program, 5, 8.0), bases, *pair[::-1]) == folded(
        buffered, constant(program, 5, 8.0), bases, *pair
    )


def test_a_device_may_stand_in_one_buffer_twice(program: Program) -> None:
    rules = ScheduleRules(name="fedbuff", staleness="constant", buffer=2, max_staleness=10)
    buffered = replace(program, job=replace(program.job, schedule=rules))
    twice = (update(program, 5, 5, 1.0), replace(update(program, 5, 5, 3.0), task="tiny.5.dev-a.2"))
    assert folded(buffered, constant(program, 5, 8.0), {}, *twice) == 10.0
    with pytest.raises(ValueError, match="folded already"):
        folded(buffered, constant(program, 5, 8.0), {}, twice[0], twice[0])


def test_a_buffer_of_fresh_updates_is_a_synchronous_round_to_the_bit(program: Program) -> None:
    rules = ScheduleRules(name="fedbuff", staleness="polynomial", a=0.5, buffer=2, max_staleness=10)
    rng = np.random.default_rng(3)
    old, pair = constant(program, 5, 8.0), []
    for device in ("dev-a", "dev-b"):
        tensors = {name: rng.normal(size=array.shape).astype(np.float32) for name, array in program.weights.items()}
        data = encode_tensors(tensors, {"examples": "1", "steps": "3", "loss": "1.0"})
        pair.append(JournalUpdate(5, device, "t", 5, "", "", 7, 0.5, data))
    made = [
        fold(replace(program, job=replace(program.job, schedule=each)), pair, old, lambda _: b"")
        for each in (rules, SYNCHRONOUS)
    ]
    assert made[0].sha256 == made[1].sha256


def test_the_schedule_of_a_job_file_reaches_the_program(tmp_path: Path) -> None:
    make_site(tmp_path, JOB + '[schedule]\nname = "fedbuff"\nbuffer = 3\nstaleness = "hinge"\n')
    rules = build_program(load_job(tmp_path / "home" / "job.toml")).job.schedule
    assert (rules.name, rules.buffer, rules.staleness, rules.a, rules.b, rules.alpha) == (
        "fedbuff",
        3,
        "hinge",
        10.0,
        4.0,
        1.0,
    )


def test_weights_that_have_run_away_are_told_of_by_name(program: Program) -> None:
    """Version 2 has 1e30: against it, the difference to a version of 4.0 times the examples fits no sum."""
    with pytest.raises(Diverged, match=r"tiny.2.dev-a.1 cannot be folded into version 5: .*roll back"):
        folded(program, constant(program, 5, 8.0), {2: constant(program, 2, 1e30)}, update(program, 5, 2, 1.0))
