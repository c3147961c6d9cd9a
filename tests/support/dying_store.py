"""A journal whose process dies at a chosen write."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from coordinator.store import Store


class Killed(Exception):
    """The process is gone."""


class DyingStore:
    """A journal whose process dies just before or just after its n-th write.

    The commit of a batch is one of them: dying after it is dying before anything that follows from it is sent.
    """

    WRITES = frozenset(
        {
            "begin",
            "keep_epoch",
            "see_device",
            "start_round",
            "add_update",
            "fold_round",
            "judge_round",
            "finish",
            "batch",
        }
    )

    def __init__(self, store: Store, at: int, *, after: bool) -> None:
        self._store, self._left, self._after = store, at, after
        self.written: list[str] = []

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._store, name)
        if name not in self.WRITES:
            return real

        def write(*args: Any) -> Any:
            with self._dying(name):
                return real(*args)

        return write

    @contextmanager
    def batch(self) -> Iterator[None]:
        with ExitStack() as last:
            before = len(self.written)
            with self._store.batch():
                yield
                if len(self.written) > before:
                    last.enter_context(self._dying("batch"))

    @contextmanager
    def _dying(self, name: str) -> Iterator[None]:
        self.written.append(name)
        dies = len(self.written) == self._left
        if dies and not self._after:
            raise Killed
        yield
        if dies:
            raise Killed
