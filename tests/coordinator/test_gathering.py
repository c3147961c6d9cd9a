"""Updates folded as they come: the same bits as a fold out of the journal, which decides what counts."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from coordinator.gathering import Gathering
from coordinator.jobfile import load_job
from coordinator.program import Program, build_program, make_version
from coordinator.results import fold_journalled
from coordinator.store import JournalTask, JournalUpdate, Store, open_store
from coordinator.tasks import attempt_turn, make_task
from coordinator.updates import check_update
from edge_runtime.codecs import find_codec
from edge_runtime.wire.tasks import format_task
from support.memory import finished, start_all
from support.tiny_job import JOB, make_site

if TYPE_CHECKING:
    from pathlib import Path

    from coordinator.gathering import Gathered
    from coordinator.updates import Claims
    from edge_runtime.kernels import CodedUpdate

    Taken = tuple[JournalUpdate, Claims, CodedUpdate]

DEVICES = ("dev-a", "dev-b", "dev-c")


def program_of(tmp_path: Path, method: str) -> Program:
    make_site(tmp_path, JOB.replace('"fedavg"', f'"{method}"') + '[upload]\ncodec = ["topk 0.3", "fp16", "rice"]\n')
    return build_program(load_job(tmp_path / "home" / "job.toml"))


def taken(program: Program, store: Store, device: str, seed: int) -> Taken:
    """An update that the gateway has checked and journalled."""
    task = make_task(program, store.latest(), device, attempt_turn(1, 1))
    rng, layout = np.random.default_rng(seed), program.stage(1).layout
    metadata = {key: str(getattr(task, key)) for key in ("task", "job", "round", "version", "device")}
    metadata |= {"examples": str(3 + seed), "steps": str(1 + seed), "loss": "1.5"}
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in layout.shapes.items()}
    data = find_codec(task.upload.codec).encode(tensors, metadata, {})
    claims, coded = check_update(data, task, layout, 100)
    update = JournalUpdate(1, device, task.task, 1, "uid", f"{seed:064}", claims.examples, claims.loss, data)
    return update, claims, coded


@pytest.fixture(params=["fedavg", "fednova"])
def job(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Program, Path, list[Taken]]:
    """A job whose journal has three updates."""
    program = program_of(tmp_path, request.param)
    with closing(open_store(tmp_path / "state")) as store:
        store.begin({}, make_version(1, program.weights, {}))
        tasks = [make_task(program, store.latest(), device, attempt_turn(1, 1)) for device in DEVICES]
        store.start_round(1, 1, tuple(JournalTask(each.device, each.task, format_task(each)) for each in tasks))
        updates = [taken(program, store, device, seed) for seed, device in enumerate(DEVICES)]
        for update, _, _ in updates:
            assert store.add_update(update)
    return program, tmp_path / "state", updates


def made(program: Program, state: Path, gathered: Gathered | None) -> bytes:
    with closing(open_store(state)) as store:
        return fold_journalled(program, state, store.latest(), gathered).weights


@pytest.mark.parametrize("order", [(), (1,), (2, 0), (2, 0, 1)])
def test_what_was_gathered_in_any_order_and_the_rest_of_the_journal_give_the_same_bits(
    job: tuple[Program, Path, list[Taken]], order: tuple[int, ...]
) -> None:
    program, state, updates = job
    gathering = Gathering(program)
    for number in order:
        gathering.add(*updates[number])
    gathered = gathering.take(1)
    assert (gathered is None) == (not order)
    assert made(program, state, gathered) == made(program, state, None)
    assert gathering.take(1) is None


def test_what_the_journal_does_not_have_is_not_folded(job: tuple[Program, Path, list[Taken]]) -> None:
    program, state, updates = job
    stranger, again = Gathering(program), Gathering(program)
    update, claims, coded = updates[1]
    stranger.add(replace(update, device="dev-x", task="never.1"), claims, coded)
    again.add(replace(update, sha256="f" * 64), claims, coded)
    for gathering in (stranger, again):
        gathering.add(*updates[0])
        assert made(program, state, gathering.take(1)) == made(program, state, None)


def test_an_update_that_comes_twice_has_the_round_folded_from_the_journal(
    job: tuple[Program, Path, list[Taken]],
) -> None:
    program, state, updates = job
    gathering = Gathering(program)
    for number in (0, 1, 0, 2):
        gathering.add(*updates[number])
    assert made(program, state, gathering.take(1)) == made(program, state, None)


def test_a_closed_round_takes_what_was_gathered_for_earlier_ones_with_it(
    job: tuple[Program, Path, list[Taken]],
) -> None:
    program, _, updates = job
    gathering = Gathering(program)
    update, claims, coded = updates[0]
    for number in (1, 2, 3):
        gathering.add(replace(update, round=number), claims, coded)
    assert gathering.take(2) is not None
    assert gathering.take(1) is None
    assert gathering.take(3) is not None


def test_nothing_is_read_twice_in_an_undisturbed_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = make_site(tmp_path)
    read: list[object] = []
    monkeypatch.setattr("coordinator.results.read_update", lambda *arguments: read.append(arguments))
    start_all(site)
    finished(site)
    assert not read
