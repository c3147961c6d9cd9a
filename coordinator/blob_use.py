"""Which blobs the open tasks of a fleet need, so that a version stays published as long as a device may ask for it."""

from collections import Counter
from collections.abc import Collection, Iterable


class BlobUse:
    """Counts the open tasks that name a blob; a device has at most one task."""

    def __init__(self) -> None:
        self._of_device: dict[str, frozenset[str]] = {}
        self._tasks: Counter[str] = Counter()

    @property
    def used(self) -> Collection[str]:
        """Every blob that an open task names."""
        return self._tasks.keys()

    def take(self, device: str, blobs: Iterable[str]) -> set[str]:
        """The device has a new task that names these blobs; returns those that nobody needs any more."""
        released = self.release(device)
        self._of_device[device] = frozenset(blobs)
        self._tasks.update(self._of_device[device])
        return released - self._tasks.keys()

    def release(self, device: str) -> set[str]:
        """The device has no task any more; returns the blobs that nobody needs any more."""
        released = set()
        for sha256 in self._of_device.pop(device, frozenset()):
            self._tasks[sha256] -= 1
            if self._tasks[sha256] == 0:
                del self._tasks[sha256]
                released.add(sha256)
        return released
