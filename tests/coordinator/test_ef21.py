"""EF21: what the gateway remembers is the mean of what devices do, whatever is lost, or the job says no."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import pytest

from coordinator.aggregators import Contribution
from coordinator.jobfile import JobFileError, load_job
from coordinator.methods.ef21 import ef21
from coordinator.requests import VERBS, Request, RequestRefused
from coordinator.store import open_store
from edge_runtime.codecs import find_codec
from edge_runtime.slots import Slots, encode_carried
from edge_runtime.tensors import decode_tensors
from edge_runtime.wire.tasks import Carry, Phase, Task, Upload
from support.memory import MemorySite, finished, start_all
from support.tiny_job import JOB, make_site

if TYPE_CHECKING:
    from pathlib import Path

STAGES = ("ef21 0.3333",)
FLEET = JOB.replace('name = "fedavg"', 'name = "ef21"\ndevices = 3').replace("rounds = 2", "rounds = 6")
A = np.array([(-3, 2, 2), (2, -3, 2), (2, 2, -3)], np.float64)


def task_of(device: int, number: int, counted: str | None) -> Task:
    name, phases = f"job.{number}.dev-{device}", (Phase("a" * 64, 1, {}),)
    upload, blobs = Upload("delta", STAGES), {"a" * 64: 1, "b" * 64: 1}
    carry = Carry("0" * 16, counted)
    return Task(name, "job", number, number, "dev", phases, "b" * 64, blobs, 2, 1, upload, 60.0, carry)


def test_on_quadratics_that_topk_alone_diverges_on_it_converges_with_absent_devices_and_lost_updates(
    tmp_path: Path,
) -> None:
    """f_i(x) = <a_i, x>^2 + |x|^2 / 4, Beznosikov et al., 2020; many updates never count."""
    codec, method, rng = find_codec(STAGES), ef21(3), np.random.default_rng(4)
    # Without their folder slots stay in memory, which spares thousands of files.
    slots, last = [Slots(tmp_path / "absent" / str(device)) for device in range(3)], [None, None, None]
    weights, state = {"x": np.ones(3, np.float32)}, {}
    for number in range(1, 1501):
        x = weights["x"].astype(np.float64)
        arrived = []
        for device in rng.permutation(3)[: rng.integers(1, 4)]:
            delta = -0.003 * (2 * (A[device] @ x) * A[device] + x / 2)
            task = task_of(device, number, last[device])
            data, _ = encode_carried(slots[device], codec, task, {"x": delta.astype(np.float32)}, {})
            if rng.random() < 0.6 or not arrived:
                last[device] = task.task
                arrived.append(Contribution(f"dev-{device}", 5, codec.decode(data, {"x": (3,)})[0]))
        weights, state = method.server_step(weights, method.aggregate(arrived, ()), state, ())
    memories = []
    for device in range(3):
        kept = slots[device].kept("0" * 16)
        assert kept is not None
        said = codec.decode(kept.update, {"x": (3,)})[0]["x"] if kept.task != last[device] else 0
        memories.append(kept.state["memory"]["x"] - said)
    assert np.abs(state["g/x"] - np.mean(memories, axis=0)).max() <= 1e-6
    assert np.abs(weights["x"]).max() < 0.02  # of 1 at the start


def test_what_is_said_of_weights_is_remembered_and_running_statistics_are_averaged_as_they_are() -> None:
    method, weights, state = ef21(4, server_lr=0.5), {"var": np.ones(1, np.float32), "w": np.ones(1, np.float32)}, {}
    for said in (0.25, 0.0):  # the devices say nothing new, and of w they still mean 0.25; two of four are absent
        update = {name: np.full(1, said, np.float32) for name in weights}
        mean = method.aggregate([Contribution(name, 3, update) for name in "ab"], {"var"})
        weights, state = method.server_step(weights, mean, state, {"var"})
    assert (weights["var"].item(), weights["w"].item()) == (1.25, 1.125)


def with_slots(site: MemorySite, root: Path) -> MemorySite:
    for name, device in site.devices.items():
        device.slots = Slots(root / f"{name}.slots")
    return site


def test_a_whole_job_learns_and_its_gateway_remembers_the_mean_of_its_devices(tmp_path: Path) -> None:
    site = with_slots(make_site(tmp_path, FLEET), tmp_path)
    start_all(site)
    finished(site)
    accuracies = [event["accuracy"] for event in site.seen("round_done")]
    assert len(accuracies) == 6
    assert accuracies[-1] > max(0.8, accuracies[0])
    with closing(open_store(site.state)) as store:
        state = decode_tensors(store.latest().state)[0]
    memories = []
    for device in site.devices.values():
        assert device.slots is not None
        kept = device.slots.kept(device.tasks[-1].carry.run)
        assert kept is not None
        memories.append(kept.state["memory"])
    for name, first in memories[0].items():
        mean = np.mean([memory[name] for memory in memories], axis=0)
        assert np.abs(state[f"g/{name}"] - mean).max() <= 1e-6 * max(1.0, float(np.abs(first).max()))


def test_one_device_more_than_the_fleet_has_is_refused(tmp_path: Path) -> None:
    two = FLEET.replace("devices = 3", "devices = 2")
    site = with_slots(make_site(tmp_path, two), tmp_path)
    start_all(site)
    finished(site)
    assert len({event["device"] for event in site.seen("update")}) == 2
    assert {event["rule"] for event in site.seen("refused")} == {"FleetFull"}


def test_a_device_that_lost_its_memory_takes_no_further_part(tmp_path: Path) -> None:
    site = with_slots(make_site(tmp_path, FLEET), tmp_path)
    start_all(site)
    site.run(lambda: len(site.seen("round_done")) == 2)
    site.devices["dev-b"].slots = Slots(tmp_path / "new-disk")
    finished(site)
    failed = [event for event in site.seen("task_failed") if event["device"] == "dev-b"]
    assert len(failed) == 1
    assert "MemoryLost" in str(failed[0])
    assert not [event for event in site.seen("update") if event["device"] == "dev-b" and event["round"] > 3]


def test_a_job_of_devices_that_remember_is_not_rolled_back(tmp_path: Path) -> None:
    site = with_slots(make_site(tmp_path, FLEET), tmp_path)
    start_all(site)
    site.run(lambda: len(site.seen("round_done")) == 3)
    site.kill()
    request = Request(1, "rollback", "2", "ann@desk")
    with (
        closing(open_store(site.state)) as store,
        store._writing() as write,
        pytest.raises(RequestRefused, match="what they remember"),
    ):
        VERBS["rollback"](store, write, request)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {
                'name = "ef21"\ndevices = 3': 'name = "fedavg"',
                "[evaluate]": '[upload]\ncodec = ["ef21 0.1"]\n[evaluate]',
            },
            "need each other",
        ),
        ({"[evaluate]": '[upload]\ncodec = ["topk 0.1 ef"]\n[evaluate]'}, "need each other"),
        ({'"ef21"\ndevices = 3': '"ef21"\ndevices = 2'}, "is 3, more than method.devices = 2"),
        ({"[evaluate]": '[schedule]\nname = "fedasync"\n[evaluate]'}, "updates must count alike"),
        ({"[round]": 'boards = [{devices = ["a"], memory_mb = 9}]\n[round]'}, "every device must train the same"),
        ({"\ndevices = 3\n[training]": "\n[training]"}, "is missing"),
    ],
)
def test_where_it_would_be_wrong_the_job_file_is_refused(changes: dict[str, str], says: str, tmp_path: Path) -> None:
    (tmp_path / "held-out").mkdir()
    text = FLEET
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "job.toml").write_text(text)
    with pytest.raises(JobFileError, match=says):
        load_job(tmp_path / "job.toml")
