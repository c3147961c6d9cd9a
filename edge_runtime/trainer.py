"""The thread that runs tasks, so that the connection stays alive while the engine works."""

import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue

from edge_runtime.board import return_free_memory
from edge_runtime.data import Dataset
from edge_runtime.engine import EngineMemoryError
from edge_runtime.errors import EdgeError
from edge_runtime.features import Place
from edge_runtime.plan import PlanError, read_plan
from edge_runtime.received import WeightsUnusable, received_weights
from edge_runtime.slots import Slots
from edge_runtime.task import Update, run_task
from edge_runtime.weights_cache import WeightsCache
from edge_runtime.wire import Delta
from edge_runtime.wire.fetch import BlobMissing
from edge_runtime.wire.tasks import Task

__all__ = ["Failure", "Job", "Result", "Trainer", "Unusable"]

WRITE_AGAIN_S = 2.0  # between two tries to write what a disk did not take
# An update waits so long for what it leaves out to be on disk: were the process to end after it was sent, that would be
# lost. Longer, and a device whose disk stays full would never be heard of.
HOLD_S = 60.0


@dataclass(frozen=True)
class Job:
    """A task with what came for it, by SHA-256: plans, and weights or the deltas that make them of those on disk.

    Without weights and deltas the disk has the very weights of the task.
    """

    key: str
    task: Task
    blobs: dict[str, bytes]
    deltas: tuple[Delta, ...] = ()


@dataclass(frozen=True)
class Failure:
    """Why a task could not be done; trace is empty unless the error was ours."""

    rule: str
    message: str
    trace: str = ""


@dataclass(frozen=True)
class Unusable:
    """The weights on disk are damaged, or deltas did not make those of the task: they must be fetched whole."""

    message: str


@dataclass(frozen=True)
class Result:
    """What came of a job, how long it took, and what went wrong without harm to it."""

    key: str
    task: str
    outcome: Update | Failure | Unusable
    train_s: float
    warnings: tuple[str, ...] = ()


class Trainer:
    """Runs one job at a time in a thread of its own; a job that comes while another is being stopped waits for it."""

    def __init__(  # noqa: PLR0913, PLR0917 what all tasks of a device share
        self,
        dataset: Dataset,
        threads: int,
        memory_limit_bytes: int | None,
        wake: Callable[[], None],
        weights: WeightsCache,
        place: Place | None = None,
        slots: Slots | None = None,
    ) -> None:
        """Prepare to run.

        Args:
            dataset: The local examples.
            threads: Of the engine.
            memory_limit_bytes: Plans that need more are refused.
            wake: Called from the thread when a result is there.
            weights: Where those of a task are, or parts of them.
            place: Where features may be kept.
            slots: Where codecs keep what they carry over.
        """
        self._weights = weights
        self._place = place
        self._slots = slots
        self._dataset = dataset
        self._threads = threads
        self._memory_limit_bytes = memory_limit_bytes
        self._wake = wake
        self._results: SimpleQueue[Result] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._next: Job | None = None
        self._write_again_s = 0.0
        self._held: list[Result] = []
        self._hold_until_s = 0.0

    def start(self, job: Job) -> None:
        """Run a job, after the one that is being stopped if there is one."""
        self._next = job
        self._start_next()

    def abandon(self) -> None:
        """Ask the running job to stop after its present step, and forget one that waits."""
        self._next = None
        self._stop.set()

    def results(self) -> list[Result]:
        """What was finished since the last call; what left something out for later is held until that is on disk."""
        found = [self._results.get() for _ in range(self._results.qsize())]
        if found:
            self._hold_until_s = time.monotonic() + HOLD_S
            if self._thread is not None:
                self._thread.join()
                self._thread = None
        unwritten = self._slots is not None and self._slots.in_memory and time.monotonic() < self._hold_until_s
        ready: list[Result] = []
        known, self._held = [*self._held, *found], []
        for each in known:
            (self._held if unwritten and isinstance(each.outcome, Update) else ready).append(each)
        self._start_next()
        return ready

    def write_slots(self, now_s: float) -> None:
        """Between jobs, and at most every WRITE_AGAIN_S, try to write slots that the disk did not take.

        Raises:
            OSError: It still does not.
        """
        slots = self._slots
        if slots is None or self._thread is not None or not slots.in_memory or now_s < self._write_again_s:
            return
        self._write_again_s = now_s + WRITE_AGAIN_S
        slots.write_again()

    def finish(self, timeout_s: float) -> bool:
        """Stop, and wait for the present step to end; False if it has not by then."""
        self.abandon()
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _start_next(self) -> None:
        if self._next is None or self._thread is not None:
            return
        job, self._next = self._next, None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(job, self._stop), daemon=True)
        self._thread.start()

    def _run(self, job: Job, stop: threading.Event) -> None:
        begun = time.monotonic()
        warnings: list[str] = []
        outcome = self._outcome(job, stop, warnings)
        self._results.put(Result(job.key, job.task.task, outcome, time.monotonic() - begun, tuple(warnings)))
        self._wake()

    def _outcome(self, job: Job, stop: threading.Event, warnings: list[str]) -> Update | Failure | Unusable:
        try:
            return self._train(job, stop, warnings)
        except PlanError as error:
            return Failure(error.rule, error.message)
        except EdgeError as error:
            unusable = isinstance(error, WeightsUnusable)
            return Unusable(str(error)) if unusable else Failure(error.rule, str(error))
        except EngineMemoryError as error:
            return Failure("MemoryLimit", str(error))
        except MemoryError:
            return Failure("OutOfMemory", "this board has not enough memory for the task; use a smaller batch or model")
        except Exception as error:  # noqa: BLE001 the thread's outermost frame: what is not told here is lost
            return Failure("InternalError", f"{type(error).__name__}: {error}", traceback.format_exc())

    def _train(self, job: Job, stop: threading.Event, warnings: list[str]) -> Update:
        names = {plan for phase in job.task.phases for plan in phase.plans}
        absent = sorted(names - job.blobs.keys())
        if absent:
            raise BlobMissing(f"blob {absent[0]} was on this board's disk and cannot be read any more; ask again")
        plans = {sha256: read_plan(job.blobs[sha256], expect_sha256=sha256) for sha256 in sorted(names)}
        weights = received_weights(job.task.weights, job.deltas, job.blobs, self._weights, warnings.append)
        return_free_memory()  # what fetching and parsing left; from here on the arena grows
        return run_task(
            job.task,
            plans,
            weights,
            self._dataset,
            threads=self._threads,
            memory_limit_bytes=self._memory_limit_bytes,
            place=self._place,
            slots=self._slots,
            should_stop=stop.is_set,
            warn=warnings.append,
        )
