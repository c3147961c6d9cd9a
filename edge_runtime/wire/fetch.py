"""Download of a task's blobs: retained chunks, a window of subscriptions at a time."""

from collections.abc import Callable
from dataclasses import dataclass, field

from edge_runtime.errors import RemoteError
from edge_runtime.wire import topics
from edge_runtime.wire.chunks import Assembler, BadChunk, Sink
from edge_runtime.wire.events import DeviceCommand, StoreBlob, Subscribe, Unsubscribe

__all__ = ["BlobCorrupt", "BlobMissing", "Fetch"]

WINDOW = 4
RETRY_S = 2.0
MAX_RETRY_S = 16.0
MAX_FRUITLESS = 4
MAX_ATTEMPTS = 3


class BlobMissing(RemoteError):
    """The broker does not have a chunk that a task needs."""


class BlobCorrupt(RemoteError):
    """The chunks of a blob do not give the SHA-256 it is named by."""


def in_memory(sha256: str, size_bytes: int) -> None:
    """No sink for any blob."""


@dataclass
class Fetch:
    """The blobs one task still lacks, one after the other.

    wanted: bytes by SHA-256, in the order they are fetched; the first one is under way. open_sink: (SHA-256, bytes) of
    a blob that is no plan -> where its chunks go, None for memory. _window holds the chunks that
    are subscribed to and have not come. _patience_s doubles with every silence: a subscription that is renewed has the
    broker send the same chunks again, which a slow link would never get through.
    """

    site: str
    wanted: dict[str, int]
    plans: frozenset[str]
    cap_bytes: int
    open_sink: Callable[[str, int], Sink | None] = in_memory
    _assembler: Assembler | None = None
    _asked: tuple[int, ...] = ()
    _window: set[int] = field(default_factory=set)
    _asked_at: float = 0.0
    _patience_s: float = RETRY_S
    _fruitless: int = 0
    _attempts: int = 1
    _damaged: int = 0

    @property
    def complete(self) -> bool:
        """Whether every blob was handed over."""
        return not self.wanted

    def start(self, now: float) -> list[DeviceCommand]:
        """Ask for the next window; also after a new connection, which has no subscriptions."""
        if self.complete:
            return []
        sha256, size_bytes = next(iter(self.wanted.items()))
        if self._assembler is None or self._assembler.sha256 != sha256:
            sink = None if sha256 in self.plans else self.open_sink(sha256, size_bytes)
            self._assembler = Assembler(sha256, size_bytes, self.cap_bytes, sink)
            self._attempts = 1
        if self._assembler.complete:  # by what an earlier process has left
            return [*self._finish(sha256), *self.start(now)]
        self._asked = tuple(self._assembler.missing(WINDOW))
        self._window = set(self._asked)
        self._asked_at = now
        return [Subscribe(self._topics(sha256), 1)]

    def chunk(self, now: float, sha256: str, index: int, payload: bytes) -> list[DeviceCommand]:
        """Take a chunk that came.

        Raises:
            BadChunk: It is not the chunk that was asked for; it will be asked for again.
            BlobCorrupt: MAX_ATTEMPTS downloads did not give the blob's SHA-256, or so many chunks in a row came
                damaged, as when the broker's own copy of one is.
        """
        if self._assembler is None or sha256 != self._assembler.sha256 or not payload:
            return []
        self._asked_at = now  # whatever comes, the link is not silent
        if index not in self._window:
            return []
        try:
            self._assembler.add(index, payload)
        except BadChunk as error:
            self._damaged += 1
            if self._damaged == MAX_ATTEMPTS:
                raise BlobCorrupt(f"{MAX_ATTEMPTS} chunks of blob {sha256} in a row came damaged: {error}") from None
            raise
        self._fruitless = self._damaged = 0
        self._window.discard(index)
        if self._window:
            return []
        leave = Unsubscribe(self._topics(sha256))
        if not self._assembler.complete:
            return [leave, *self.start(now)]
        return [leave, *self._finish(sha256), *self.start(now)]

    def tick(self, now: float, *, gateway_up: bool) -> list[DeviceCommand]:
        """Ask again when nothing has come for as long as the patience lasts.

        Raises:
            BlobMissing: MAX_FRUITLESS times nothing came, and a coordinator is up that should have published it.
        """
        if not self._window or now - self._asked_at < self._patience_s:
            return []
        assert self._assembler is not None, "a window belongs to a blob"
        # Without a coordinator the broker may have forgotten its retained messages; they come back with it.
        self._fruitless = self._fruitless + 1 if gateway_up else 0
        if self._fruitless >= MAX_FRUITLESS:
            raise BlobMissing(
                f"chunk {min(self._window)} of blob {self._assembler.sha256} did not come in "
                f"{MAX_FRUITLESS} tries; the coordinator must publish the blob before the task"
            )
        self._patience_s = min(2 * self._patience_s, MAX_RETRY_S)
        leave = Unsubscribe(self._topics(self._assembler.sha256))
        return [leave, *self.start(now)]

    def cancel(self) -> list[DeviceCommand]:
        """Give up the subscriptions."""
        if not self._window or self._assembler is None:
            return []
        self._window = set()
        return [Unsubscribe(self._topics(self._assembler.sha256))]

    def _finish(self, sha256: str) -> list[DeviceCommand]:
        assert self._assembler is not None, "only a blob under way can end"
        if not self._assembler.whole():
            if self._attempts == MAX_ATTEMPTS:
                raise BlobCorrupt(f"{MAX_ATTEMPTS} downloads of blob {sha256} gave other bytes; publish it again")
            self._attempts += 1
            return []
        data, self._assembler = self._assembler.release(), None
        del self.wanted[sha256]
        return [StoreBlob(sha256, data, sha256 in self.plans)]

    def _topics(self, sha256: str) -> tuple[str, ...]:
        return tuple(topics.chunk(self.site, sha256, index) for index in self._asked)
