"""Personal tensors: trained on each device, kept there over restarts, never sent; the others are folded as ever."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from coordinator.jobfile import JobFileError, load_job
from coordinator.program import definition
from edge_runtime.data import Dataset
from edge_runtime.errors import RemoteError
from edge_runtime.slots import Slots, own_tensors
from edge_runtime.task import SlotsMissing, run_task
from edge_runtime.task_checks import WeightMismatch
from edge_runtime.tensors import decode_tensors
from edge_runtime.wire.tasks import Carry, format_task, parse_task
from models.compiler import CompileError
from support.federation import RUN, SHARDS, Federation, program_of
from support.memory import MemorySite, finished, start_all
from support.tiny_job import JOB, make_site

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

HEAD = {"fc3.bias", "fc3.weight"}


def own(fed: Federation, device: str) -> dict[str, NDArray[np.float32]]:
    return own_tensors(fed.slots[device], Carry(RUN, fed.counted.get(device)))


@pytest.mark.parametrize("codec", [None, ["int8"], ["topk 0.2 ef", "fp16", "rice"]])
def test_heads_stay_on_devices_and_the_rest_is_folded(tmp_path: Path, codec: list[str] | None) -> None:
    fed = Federation(program_of(tmp_path, method="fedavg", personal=["fc3.*"], codec=codec), tmp_path)
    first = decode_tensors(fed.latest.weights)[0]
    assert fed.program.stage(1).trained.keys() == first.keys() - HEAD
    for _ in range(3):
        fed.round()
        heads = [own(fed, device) for device in fed.shards]
        assert all(head.keys() == HEAD for head in heads)
    last = decode_tensors(fed.latest.weights)[0]
    for name, array in last.items():
        assert (array.tobytes() == first[name].tobytes()) == (name in HEAD)
    assert len({head["fc3.weight"].tobytes() for head in heads} | {first["fc3.weight"].tobytes()}) == 4


def test_a_head_goes_on_from_where_it_was_even_after_a_restart_and_a_refusal(tmp_path: Path) -> None:
    """Two rounds of a device whose body never moves are one task of twice the steps for its head."""
    settings = {"method": "fedavg", "personal": ["fc3.*"], "batch": 24, "epochs": 2}
    fed = Federation(program_of(tmp_path / "two", **settings), tmp_path / "two", {"dev-a": SHARDS["dev-a"]})
    start = fed.latest
    fed.train("dev-a")
    before = own(fed, "dev-a")
    fed.latest, fed.slots["dev-a"] = replace(start, version=2), Slots(tmp_path / "two" / "dev-a")
    fed.train("dev-a")
    after = own(fed, "dev-a")
    assert after["fc3.weight"].tobytes() != before["fc3.weight"].tobytes()
    by_hand = Federation(program_of(tmp_path / "hand", **settings), tmp_path / "hand", {"dev-a": SHARDS["dev-a"]})
    weights = {**decode_tensors(start.weights)[0], **before}
    again = Federation(program_of(tmp_path / "again", **settings), tmp_path / "again", {"dev-a": SHARDS["dev-a"]})
    for each, given in ((by_hand, weights), (again, decode_tensors(start.weights)[0])):
        each.latest = replace(start, version=2)
        task, plans = each.task("dev-a"), each.plans()
        run_task(task, plans, given, SHARDS["dev-a"], slots=each.slots["dev-a"])
    assert own(by_hand, "dev-a")["fc3.weight"].tobytes() == after["fc3.weight"].tobytes()
    assert own(again, "dev-a")["fc3.weight"].tobytes() != after["fc3.weight"].tobytes()


def test_devices_with_contrary_labels_learn_with_heads_of_their_own_what_one_head_cannot(tmp_path: Path) -> None:
    whole = SHARDS["dev-c"]
    contrary = {name: Dataset(whole.x, ((whole.y + shift) % 3).astype(np.int32)) for shift, name in enumerate(SHARDS)}
    losses = {}
    for personal in (False, True):
        home, keys = tmp_path / str(personal), {"personal": ["fc3.*"]} if personal else {}
        program = program_of(home, method="fedavg", epochs=4, **keys)
        fed = Federation(program, home, contrary)
        for _ in range(12):
            fed.round()
        losses[personal] = np.mean([fed.train(device)[1].loss for device in contrary])
    assert losses[True] < 0.5 * losses[False]


def test_a_job_has_the_same_bits_after_a_restart_in_the_middle(tmp_path: Path) -> None:
    def site(home: Path) -> MemorySite:
        made = make_site(
            home, JOB.replace("[round]", 'personal = ["fc3.*"]\n[round]').replace("rounds = 2", "rounds = 4")
        )
        for name, device in made.devices.items():
            device.slots = Slots(home / f"slots-{name}")
        return made

    undisturbed, disturbed = site(tmp_path / "one"), site(tmp_path / "two")
    start_all(undisturbed)
    expected = finished(undisturbed)
    start_all(disturbed)
    disturbed.run(lambda: len(disturbed.seen("round_started")) == 3)
    disturbed.kill()
    disturbed.start()
    assert finished(disturbed) == expected


def test_what_cannot_be_personal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"'fc9.*', which matches nothing trained"):
        program_of(tmp_path, method="fedavg", personal=["fc9.*"])
    with pytest.raises(CompileError, match="nothing would be sent"):
        program_of(tmp_path, method="fedavg", personal=["*"])
    with pytest.raises(JobFileError, match="personal cannot be used with method scaffold"):
        program_of(tmp_path, personal=["fc3.*"])
    path = tmp_path / "home" / "job.toml"
    job = JOB.replace("rounds = 2", "rounds = 2\ntarget_accuracy = 0.9")
    path.write_text(job.replace("[round]", 'personal = ["fc3.*"]\n[round]'))
    with pytest.raises(JobFileError, match="personal tensors nobody trains"):
        load_job(path)


def test_a_task_says_what_is_personal_and_needs_a_place_to_keep_it(tmp_path: Path) -> None:
    fed = Federation(program_of(tmp_path, method="fedavg", personal=["fc3.*"]), tmp_path)
    task, weights = fed.task("dev-a"), decode_tensors(fed.latest.weights)[0]
    assert parse_task(format_task(task)).personal == ("fc3.bias", "fc3.weight")
    with pytest.raises(SlotsMissing, match="personal tensors"):
        run_task(task, fed.plans(), weights, SHARDS["dev-a"])
    wrong = replace(task, personal=("fc9",))
    with pytest.raises(WeightMismatch, match="no phase trains it"):
        run_task(wrong, fed.plans(), weights, SHARDS["dev-a"], slots=fed.slots["dev-a"])
    with pytest.raises(RemoteError, match="need `carry`"):
        format_task(replace(task, carry=None))
    assert "training.personal" in definition(fed.program)
    assert "training.personal" not in definition(program_of(tmp_path, method="fedavg"))
