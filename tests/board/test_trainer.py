"""The thread that runs tasks."""

import threading
from pathlib import Path

import numpy as np

from edge_runtime.data import Dataset
from edge_runtime.trainer import Failure, Job, Trainer
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
