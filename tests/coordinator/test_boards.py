"""A fleet of unequal boards: unequal plans of one model, folded tensor by tensor."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coordinator.jobfile import JobFileError, load_job
from edge_runtime.data import Dataset
from edge_runtime.plan import ROLE_FROZEN, ROLE_TRAINED, read_plan
from edge_runtime.task import run_task
from edge_runtime.tensors import decode_tensors
from edge_runtime.wire.tasks import Cache
from support.memory import MemorySite

JOB = """\
[job]
name = "unequal"
seed = 5
rounds = 2
[model]
zoo = "lenet"
input_shape = [1, 28, 28]
classes = 3
[method]
name = "fedavg"
[training]
epochs = 1
batch = 64
lr = 0.05
momentum = 0.9
boards = [{devices = ["small-*"], memory_mb = 1}]
[round]
devices = 3
min_updates = 3
deadline_s = 60
grace_s = 5
[evaluate]
data = "held-out"
"""


def images(seed: int, rows: int) -> Dataset:
    rng = np.random.default_rng(seed)
    return Dataset(rng.random((rows, 1, 28, 28)).astype(np.float32), rng.integers(0, 3, rows).astype(np.int32))


@pytest.fixture
def site(tmp_path: Path) -> MemorySite:
    (tmp_path / "held-out").mkdir()
    test = images(9, 20)
    np.savez(tmp_path / "held-out" / "test.npz", x=test.x, y=test.y)
    (tmp_path / "job.toml").write_text(JOB)
    shards = {"large-1": images(1, 40), "large-2": images(2, 33), "small-1": images(3, 64)}
    return MemorySite(tmp_path / "job.toml", tmp_path / "state", shards)


def run_to_the_end(site: MemorySite) -> None:
    site.start()
    for device in site.devices.values():
        device.start(site.now_s)
    site.run()
    assert site.stop() == 0


def test_a_small_board_trains_what_its_memory_allows(site: MemorySite) -> None:
    stage = site.program.stage(1)
    large, small = (read_plan(stage.for_device(name).phases["train"].training.data) for name in ("large-1", "small-1"))
    assert set(small.named(ROLE_TRAINED)) < set(large.named(ROLE_TRAINED))
    below = stage.for_device("small-1").phases["train"].prefix
    assert below is not None
    assert small.memory_bytes(1) + read_plan(below.data).memory_bytes(1) <= 1 << 20 < large.memory_bytes(1)
    assert small.named(ROLE_TRAINED).keys() == stage.for_device("small-1").trained.keys()
    assert not small.named(ROLE_TRAINED).keys() & read_plan(below.data).named(ROLE_FROZEN).keys()


def test_a_small_board_may_keep_what_its_frozen_layers_make(site: MemorySite) -> None:
    run_to_the_end(site)
    device = site.devices["small-1"]
    task = device.tasks[0]
    phase = task.phases[0]
    assert phase.prefix is not None
    assert phase.cache is not None
    plans = {name: read_plan(device.blobs[name]) for name in phase.plans}
    first = site.program.weights
    kept, again = (
        run_task(replace(task, phases=(ran,)), plans, first, device.dataset)
        for ran in (replace(phase, cache=Cache("memory", 1 << 20)), replace(phase, cache=None))
    )
    assert kept.data == again.data


def test_a_tensor_is_averaged_over_those_who_trained_it(site: MemorySite) -> None:
    run_to_the_end(site)
    first = site.program.weights
    sums = {name: np.zeros(value.shape) for name, value in first.items()}
    examples = dict.fromkeys(first, 0)
    for device in site.devices.values():
        task = next(task for task in device.tasks if task.round == 1)
        plans = {name: read_plan(device.blobs[name]) for phase in task.phases for name in phase.plans}
        update = run_task(task, plans, first, device.dataset)
        for name, delta in decode_tensors(update.data)[0].items():
            sums[name] += len(device.dataset) * delta.astype(np.float64)
            examples[name] += len(device.dataset)
    assert set(examples.values()) == {40 + 33, 40 + 33 + 64}
    task = next(task for task in site.devices["large-1"].tasks if task.round == 2)
    second = decode_tensors(site.devices["large-1"].blobs[task.weights])[0]
    for name, value in second.items():
        np.testing.assert_allclose(value, first[name] + sums[name] / examples[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("boards", "message"),
    [
        ("[{devices = [], memory_mb = 1}]", "devices must be a list of non-empty texts"),
        ('[{devices = ["a"], memory_mb = 0}]', "memory_mb must be between 1 and 4096"),
        ('[{devices = ["a"]}]', "lacks memory_mb"),
        ('[{devices = ["a"], memory = 3, memory_mb = 3}]', "has a key memory"),
    ],
)
def test_a_board_that_says_too_little_is_refused(tmp_path: Path, boards: str, message: str) -> None:
    job = JOB.replace('[{devices = ["small-*"], memory_mb = 1}]', boards)
    (tmp_path / "job.toml").write_text(job)
    with pytest.raises(JobFileError, match=message):
        load_job(tmp_path / "job.toml")
