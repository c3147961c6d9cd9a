"""Updates on their way into a version: folded as they are journalled, so that a round's end has little left to do.

The journal decides. What was gathered here is used only if the journal has every update of it; whatever the journal has
beyond it, after a restart all, is read from there. Sums do not depend on the order (coordinator/aggregators.py), so a
version has the same bits either way.
"""

from dataclasses import dataclass, field

from coordinator.aggregators import Contribution, Fold
from coordinator.program import Program
from coordinator.staleness import as_models, update_weight
from coordinator.store import JournalUpdate
from coordinator.updates import Claims
from edge_runtime.kernels import CodedUpdate


@dataclass
class Gathered:
    """A round's fold so far, and the SHA-256 of the updates in it by device and task."""

    fold: Fold
    digests: dict[tuple[str, str], str] = field(default_factory=dict)


class Gathering:
    """The folds of the rounds that are not closed yet."""

    def __init__(self, program: Program) -> None:
        """Begin with none."""
        self._program = program
        self._rounds: dict[int, Gathered] = {}

    def add(self, update: JournalUpdate, claims: Claims, coded: CodedUpdate) -> None:
        """Fold an update that was written to the journal; one that needs the weights at its fold is left to the end."""
        program = self._program
        stale = update.round > update.version
        if stale and as_models(program.job.schedule, coded.layout.shapes, program.statistics):
            return
        fold = program.method.aggregate.begin(program.statistics)
        gathered = self._rounds.setdefault(update.round, Gathered(fold))
        key = (update.device, update.task)
        if key in gathered.digests:
            # The first writing was taken back, by a disk that was full: what the sums hold is not in the journal.
            del self._rounds[update.round]
            return
        gathered.fold.add(contribution_of(program, update, claims, coded))
        gathered.digests[key] = update.sha256

    def take(self, number: int) -> Gathered | None:
        """What was gathered for a round, which is closed now; rounds before it are forgotten."""
        found = self._rounds.pop(number, None)
        self._rounds = {other: each for other, each in self._rounds.items() if other > number}
        return found


def contribution_of(program: Program, update: JournalUpdate, claims: Claims, coded: CodedUpdate) -> Contribution:
    """An update as an aggregator takes it, with what its staleness leaves of it."""
    return Contribution(
        device=update.device,
        examples=update.examples,
        tensors=coded,
        steps=claims.steps,
        task=update.task,
        scale=update_weight(program.job.schedule, update.round - update.version),
        joined=claims.joined,
    )
