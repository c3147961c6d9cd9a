"""What a frozen prefix makes of the local examples: computed, and kept where the task allows it.

The features of un-augmented data change only with the prefix's weights. They are computed a few examples at a time, in
the order of the data, and kept up to a cap; those beyond the cap are computed again whenever a batch needs them. An
example's features are the same bits whatever is computed beside it, so keeping them changes no bit of the training.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_runtime import __version__, _core
from edge_runtime.data import Dataset, fill_examples
from edge_runtime.engine import Engine, EngineMemoryError
from edge_runtime.feature_file import FeatureFile, drop_others, open_features, write_features
from edge_runtime.plan import ROLE_FROZEN, ROLE_OUTPUT, Plan
from edge_runtime.wire.tasks import Cache

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Place:
    """What a board gives for features: a directory of its own, and the most bytes they may take in any place."""

    directory: Path
    cap_bytes: int


@dataclass(frozen=True)
class Budget:
    """How features are kept: how many rows, where, and whether that is all of them."""

    rows: int
    place: str
    complete: bool


class Rows(Protocol):
    """Kept rows: each the bytes of one example's features, one column after the other."""

    def read(self, row: int, into: NDArray[np.uint8]) -> None:
        """Copy one row."""


class MemoryRows:
    """Rows in memory."""

    def __init__(self, rows: int, row_bytes: int) -> None:
        self._data = np.empty((rows, row_bytes), np.uint8)

    def fill(self, rows: Iterator[NDArray[np.uint8]]) -> None:
        """Take the rows in order."""
        for row, data in enumerate(rows):
            self._data[row] = data

    def read(self, row: int, into: NDArray[np.uint8]) -> None:
        """Copy one row."""
        into[:] = self._data[row]


class Features:
    """The features of one data set under one prefix; holds the prefix's engine as long as there is work for it."""

    def __init__(
        self, prefix: Plan, weights: Arrays, dataset: Dataset, threads: int, may_go_on: Callable[[], None]
    ) -> None:
        """Prepare; nothing is computed or allocated yet.

        Args:
            prefix: The checked plan, whose weights and batch fit.
            weights: At least the plan's frozen tensors.
            dataset: The local examples.
            threads: Of the engine.
            may_go_on: Called before every step of the prefix; raises to stop.
        """
        self._may_go_on = may_go_on
        self._plan, self._weights, self._dataset, self._threads = prefix, weights, dataset, threads
        self._columns = {name: t.nbytes // t.shape[0] for name, t in prefix.named(ROLE_OUTPUT).items()}
        self._engine: Engine | None = None
        self._kept: Rows | None = None
        self._rows = 0

    @property
    def row_bytes(self) -> int:
        """Bytes of one example's features."""
        return sum(self._columns.values())

    @cached_property
    def _row(self) -> NDArray[np.uint8]:
        """One example's features on their way; not there before the memory limit has been looked at."""
        return np.empty(self.row_bytes, np.uint8)

    def keep(self, budget: Budget, place: Place | None, warn: Callable[[str], None]) -> None:
        """Compute and keep what the budget says, or take it up from an earlier run.

        A disk that cannot be written costs time only: `warn` is told, and features are computed whenever needed.
        """
        if not budget.rows:
            return
        if budget.place == "memory":
            memory = MemoryRows(budget.rows, self.row_bytes)
            memory.fill(self._all(budget.rows))
            self._kept, self._rows = memory, budget.rows
        elif place is not None:
            self._keep_on_disk(budget.rows, place, warn)
        if budget.complete and self._rows == budget.rows:
            self._engine = None  # its arena goes before the training plan's is allocated

    def _keep_on_disk(self, rows: int, place: Place, warn: Callable[[str], None]) -> None:
        key = self._key()
        drop_others(place.directory, key)
        kept = open_features(place.directory, key, rows, self.row_bytes)
        if kept is None:
            try:
                kept = write_features(place.directory, key, rows, self.row_bytes, self._all(rows))
            except OSError as error:
                warn(f"features cannot be kept on disk: {error.strerror}; they are computed for every step instead")
                return
        self._kept, self._rows = kept, rows

    def fill(self, indices: NDArray[np.intp], views: Arrays) -> None:
        """Write the features of some examples into batch columns; the rows after them become zeros.

        Raises:
            CacheDamaged: What was kept cannot be read any more; the next run computes it anew.
        """
        flat = {name: view.reshape(len(view), -1) for name, view in views.items()}
        fresh = [(at, int(row)) for at, row in enumerate(indices) if row >= self._rows]
        if self._kept is not None:
            for at, row in enumerate(indices):
                if row < self._rows:
                    self._kept.read(int(row), self._row)
                    self._unpack(flat, at)
        for (at, _), _row in zip(fresh, self._computed(np.array([row for _, row in fresh], np.intp)), strict=True):
            self._unpack(flat, at)
        for name in self._columns:
            flat[name][len(indices) :] = 0

    def close(self) -> None:
        """Let go of memory and files."""
        self._engine = None
        if isinstance(self._kept, FeatureFile):
            self._kept.close()
        self._kept, self._rows = None, 0

    @property
    def engine_bytes(self) -> int:
        """What the prefix's engine takes at present."""
        return 0 if self._engine is None else self._engine.memory_bytes

    def _unpack(self, flat: Arrays, at: int) -> None:
        begin = 0
        for name, size in self._columns.items():
            flat[name][at] = self._row[begin : begin + size].view(np.float32)
            begin += size

    def _all(self, rows: int) -> Iterator[NDArray[np.uint8]]:
        return self._computed(np.arange(rows))

    def _computed(self, indices: NDArray[np.intp]) -> Iterator[NDArray[np.uint8]]:
        """The features of examples in the given order, each in the one row buffer."""
        if not len(indices):
            return
        engine = self._running()
        x = engine.view("x")
        outputs = [(engine.view(name), size) for name, size in self._columns.items()]
        for first in range(0, len(indices), len(x)):
            taken = indices[first : first + len(x)]
            self._may_go_on()
            fill_examples(self._dataset, taken, x)
            engine.step()
            for at in range(len(taken)):
                begin = 0
                for output, size in outputs:
                    self._row[begin : begin + size] = output[at].reshape(-1).view(np.uint8)
                    begin += size
                yield self._row

    def _running(self) -> Engine:
        if self._engine is None:
            self._engine = Engine(self._plan, threads=self._threads)
            for name in self._plan.named(ROLE_FROZEN):
                self._engine.write(name, self._weights[name])
        return self._engine

    def _key(self) -> str:
        """Names everything the features follow from: program, kernels, weights and examples."""
        built = Path(_core.__file__).stat()  # other kernels may round otherwise
        kernels = f"{__version__} {built.st_size} {built.st_mtime_ns} {self._running().isa}"
        digest = hashlib.sha256(f"{kernels} {self._plan.sha256}".encode())
        for name in sorted(self._plan.named(ROLE_FROZEN)):
            digest.update(np.ascontiguousarray(self._weights[name]).data)
        digest.update(f"{self._dataset.x.dtype} {self._dataset.x.shape}".encode())
        digest.update(np.ascontiguousarray(self._dataset.x).data)
        return digest.hexdigest()


def plan_budget(  # noqa: PLR0913 what memory is promised from
    cache: Cache | None,
    place: Place | None,
    examples: int,
    row_bytes: int,
    *,
    training_bytes: int,
    prefix_bytes: int,
    limit_bytes: int | None,
) -> Budget:
    """Decide before the run how many examples' features are kept, so that its peak memory is known.

    While features are computed the prefix's engine is there and the training plan's is not; during training the
    prefix's is there only if some examples are not kept. Kept in memory, features count like the engines do.

    Args:
        cache: What the task allows.
        place: What the board gives; None for memory alone, without a cap of its own.
        examples: Of the data set.
        row_bytes: Of one example's features.
        training_bytes: What the training plan's engine takes.
        prefix_bytes: What the prefix's takes.
        limit_bytes: Most that all of it may take, or None.

    Raises:
        EngineMemoryError: The two engines alone take more.
    """
    cap = 0 if cache is None else min(cache.cap_bytes, cache.cap_bytes if place is None else place.cap_bytes)
    where = "memory" if cache is None else cache.place
    if where == "disk" and place is None:
        cap = 0
    rows = min(examples, cap // row_bytes)
    if limit_bytes is None:
        return Budget(rows, where, rows == examples)
    weight = row_bytes if where == "memory" else 0
    if rows == examples and max(training_bytes, prefix_bytes) + rows * weight <= limit_bytes:
        return Budget(rows, where, complete=True)
    spare = limit_bytes - training_bytes - prefix_bytes
    if spare < 0:
        raise EngineMemoryError(
            f"the training plan needs {training_bytes} bytes and its prefix {prefix_bytes}, the limit is "
            f"{limit_bytes}; use a smaller batch or model, let features be kept on disk, or give a higher limit"
        )
    rows = min(rows, spare // weight) if weight else rows
    return Budget(rows, where, rows == examples)
