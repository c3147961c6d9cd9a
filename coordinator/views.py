"""What devices hold of a version, and its table in the journal.

The weights that are judged and exported may be ahead of what is sent: a lossy download leaves something for the next
one. A version's *view* is what a device has after it, to the bit; *steps* lead to it from the views before.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

KEEP_VIEWS = 3
MAX_STEPS = 8

Write = Callable[..., int]
Rows = Callable[..., list[Any]]


@dataclass(frozen=True)
class Step:
    """The bytes that make a view of the one before it, and both their names."""

    base: str
    sha256: str
    data: bytes
    codec: tuple[str, ...]


@dataclass(frozen=True)
class View:
    """A tensor file as devices have it, its SHA-256, and the steps that lead to it, the last one first."""

    sha256: str
    data: bytes
    steps: tuple[Step, ...] = ()

    @property
    def blobs(self) -> dict[str, bytes]:
        """All that is sent of it, by SHA-256."""
        return {self.sha256: self.data} | {step.sha256: step.data for step in self.steps}

    def bytes_from(self, held: str | None) -> int:
        """What a device downloads that has the view of this SHA-256, or none."""
        if held == self.sha256:
            return 0
        sums = accumulate(len(step.data) for step in self.steps)
        return next((total for total, step in zip(sums, self.steps, strict=True) if step.base == held), len(self.data))


def worth_sending(steps: tuple[Step, ...], whole_bytes: int) -> tuple[Step, ...]:
    """The newest steps that together take fewer bytes than the whole, MAX_STEPS at most."""
    sums = accumulate(len(step.data) for step in steps[:MAX_STEPS])
    return steps[: sum(total < whole_bytes for total in sums)]


def insert_view(write: Write, version: int, weights_sha256: str, view: View) -> None:
    """Write a version's view and its last step."""
    step = view.steps[0] if view.steps else None
    own = None if view.sha256 == weights_sha256 else view.data
    row = (version, view.sha256, len(view.data), own)
    last = (None,) * 5 if step is None else (step.base, step.sha256, len(step.data), " | ".join(step.codec), step.data)
    write("INSERT INTO downloads VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*row, *last))


def drop_views(write: Write, newest: int) -> None:
    """Drop the bytes of views and steps that no task needs any more, nor the next ones."""
    write(
        "UPDATE downloads SET data = NULL WHERE version <= ? AND data IS NOT NULL "
        "AND version NOT IN (SELECT version FROM versions_in_use)",
        (newest - KEEP_VIEWS,),
    )
    write(
        "UPDATE downloads SET delta = NULL WHERE delta IS NOT NULL "
        "AND version <= (SELECT min(version) FROM (SELECT version FROM versions_in_use UNION SELECT ?)) - ?",
        (newest, MAX_STEPS),
    )


def read_view(rows: Rows, version: int, weights: bytes) -> View | None:
    """A version's view with its steps; None for a version of a journal that was begun without them."""
    query = "SELECT * FROM downloads WHERE version <= ? ORDER BY version DESC LIMIT ?"
    found = rows(query, (version, MAX_STEPS))
    if not found or found[0][0] != version:
        return None
    _, sha256, _, data, *_ = found[0]
    steps: list[Step] = []
    base = sha256
    for _, made, _, _, before, delta_sha256, _, codec, delta in found:
        if made != base or delta is None:
            break
        steps.append(Step(before, delta_sha256, delta, tuple(codec.split(" | "))))
        base = before
    data = weights if data is None else data
    return View(sha256, data, worth_sending(tuple(steps), len(data)))


def digests(rows: Rows, newest: int) -> list[tuple[str, int]]:
    """SHA-256 and size of all that was sent of the newest versions, newest first."""
    query = "SELECT sha256, bytes, delta_sha256, delta_bytes FROM downloads ORDER BY version DESC LIMIT ?"
    found = rows(query, (newest,))
    return [pair for row in found for pair in (row[:2], row[2:]) if pair[0] is not None]


def held(rows: Rows, number: int) -> dict[str, str]:
    """The views that devices asked in a round hold, as far as is known: of the last round they have delivered in."""
    last = (
        "SELECT round FROM tasks WHERE device = asked.device AND round < ? AND state = 'done' "
        "ORDER BY round DESC LIMIT 1"
    )
    query = (
        f"SELECT device, coalesce(downloads.sha256, versions.sha256) FROM (SELECT device, ({last}) AS last "  # noqa: S608  last is a constant
        "FROM (SELECT DISTINCT device FROM tasks WHERE round = ?) AS asked) "
        "JOIN versions ON versions.version = last LEFT JOIN downloads USING (version)"
    )
    return dict(rows(query, (number, number)))
