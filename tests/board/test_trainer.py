"""The thread that runs tasks."""

import threading
from pathlib import Path

import numpy as np

from edge_runtime.data import Dataset
from edge_runtime.slots import Slots
from edge_runtime.task import Update
from edge_runtime.trainer import Failure, Job, Result, Trainer
from edge_runtime.weights_cache import WeightsCache
from support.boards import Compiled, task_for


def test_a_plan_that_the_disk_gave_up_is_a_failure_that_passes(lenet: Compiled, tmp_path: Path) -> None:
    """BlobMissing: the coordinator asks again, and the plan is fetched."""
    done = threading.Event()
    data = Dataset(np.zeros((8, 8, 8), np.uint8), np.zeros(8, np.int32))
    trainer = Trainer(data, 1, None, done.set, WeightsCache(tmp_path, lambda _: None))
    task = task_for("a", "t", lenet, b"weights")
    trainer.start(Job("key", task, {task.weights: b"weights"}))
    assert done.wait(10)
    (result,) = trainer.results()
    assert isinstance(result.outcome, Failure)
    assert (result.outcome.rule, result.outcome.trace) == ("BlobMissing", "")
    assert lenet.sha256 in result.outcome.message


class FullDisk(Slots):
    """Slots that stay in memory."""

    in_memory = True

    def write_again(self) -> None:
        raise OSError(28, "No space left on device")


def test_an_update_is_held_while_its_slots_are_in_memory_but_not_for_ever_and_a_failure_is_not(
    tmp_path: Path,
) -> None:
    data = Dataset(np.zeros((8, 8, 8), np.uint8), np.zeros(8, np.int32))
    cache, slots = WeightsCache(tmp_path, lambda _: None), FullDisk(tmp_path / "slots")
    trainer = Trainer(data, 1, None, lambda: None, cache, slots=slots)
    update = Result("key", "t", Update(b"u", "0" * 64, 8, 1.0, 1), 0.1)
    failure = Result("other", "u", Failure("NoExamples", "none"), 0.1)
    trainer._results.put(update)
    trainer._results.put(failure)
    assert trainer.results() == [failure]
    assert trainer.results() == []
    trainer._hold_until_s = 0.0  # that time has passed
    assert trainer.results() == [update]
    assert trainer.results() == []
