"""A journal whose process dies at a chosen write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coordinator.store import Store


class Killed(Exception):
    """The process is gone."""


class DyingStore:
    """A journal whose process dies just before or just after its n-th write."""

    WRITES = frozenset(
        {"begin", "keep_epoch", "see_device", "start_round", "add_update", "fold_round", "judge_round", "finish"}
    )

    def __init__(self, store: Store, at: int, *, after: bool) -> None:
        self._store, self._left, self._after = store, at, after
        self.written: list[str] = []

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._store, name)
        if name not in self.WRITES:
            return real

        def write(*args: Any) -> Any:
            self.written.append(name)
            dies = len(self.written) == self._left
            if dies and not self._after:
                raise Killed
            result = real(*args)
            if dies:
                raise Killed
            return result

        return write
