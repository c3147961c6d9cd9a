"""Closed rounds on their way to a version that is judged: folded, written, evaluated, one after the other.

Folding and judging may take longer than the broker's patience with a silent client, so they are done beside the link,
at most one of them at a time; `work` takes up what is done and begins what is next.
"""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from coordinator import reports
from coordinator.evaluate import Evaluation
from coordinator.events import Emit
from coordinator.figures import round_figures
from coordinator.gathering import Gathered, Gathering
from coordinator.program import Program
from coordinator.publishing import Publisher
from coordinator.round_records import CloseRound, Evaluated, VersionMade
from coordinator.store import Store, Version
from edge_runtime.wire.events import Command

# What is to be published, and what the machine is to be told.
Step = tuple[list[Command], VersionMade | Evaluated | None]


@dataclass(frozen=True)
class Parts:
    """What a running job is made of.

    `fold` starts the fold of the round that began from a version, of which some may be gathered, `judge` the
    evaluation of one; neither waits.
    """

    program: Program
    fold: Callable[[Version, Gathered | None], Future[Version]]
    judge: Callable[[Version], Future[Evaluation]]
    store: Store
    directory: Path
    emit: Emit


class Closing:
    """The closed rounds in line; `beside` is the fold or evaluation of the first of them that is under way."""

    def __init__(self, parts: Parts, published: Publisher, gathering: Gathering, now_s: float) -> None:
        self._parts = parts
        self._published = published
        self._gathering = gathering
        self._line: list[CloseRound] = []
        self._closing = CloseRound(0)
        self._round_began_s = self._closed_s = now_s
        self._beside_began_s = now_s
        self._beside_s = 0.0
        self.beside: Future[Version] | Future[Evaluation] | None = None

    def round_begins(self, now_s: float) -> None:
        """A round is started for the first time."""
        self._round_began_s = now_s

    def add(self, closed: CloseRound) -> None:
        """A round is closed; it waits for those before it."""
        self._line.append(closed)

    @property
    def has_work(self) -> bool:
        """Whether a round waits to be folded, or has been folded or judged."""
        return bool(self._line) if self.beside is None else self.beside.done()

    def work(self, now_s: float) -> Step:
        """The next step; call it while there is work.

        Raises:
            Diverged: The round cannot be folded.
            EvaluationError: Its version cannot be judged.
        """
        beside, self.beside = self.beside, None
        self._beside_s = now_s - self._beside_began_s
        done = None if beside is None else beside.result()
        self._beside_began_s = now_s
        match done:
            case Version():
                return self._write(done), self._made()
            case Evaluation():
                return [], self._judged(done)
            case None:
                return [], self._begin(now_s)

    def _begin(self, now_s: float) -> VersionMade | None:
        """Starts the fold of the next round; one that was folded before a restart has its version."""
        self._closing, self._closed_s = self._line.pop(0), now_s
        version = self._published.version
        if version.version != self._closing.round:
            return self._made()
        self.beside = self._parts.fold(version, self._gathering.take(version.version))
        return None

    def _write(self, made: Version) -> list[Command]:
        """Writes the version that a round made, then takes the round off the broker."""
        program, store, closing = self._parts.program, self._parts.store, self._closing
        figures = round_figures(program, store, self._published.version, self._closed_s - self._round_began_s)
        store.fold_round(closing.round, made, figures, program.job.schedule.max_staleness)
        self._round_began_s = self._closed_s
        told = {"round": closing.round, "version": made.version, "fold_s": self._beside_s}
        self._parts.emit({"event": "version", **told, "commit_s": store.last_commit_s})
        return self._published.renew(made, closing.cohort)

    def _made(self) -> VersionMade:
        """The round has its version, which is judged now if it is to be."""
        version = self._published.version
        if self._closing.judged:
            self.beside = self._parts.judge(version)
        return VersionMade(version.version)

    def _judged(self, judged: Evaluation) -> Evaluated:
        """Writes and tells what the evaluation said."""
        number, store = self._closing.round, self._parts.store
        store.judge_round(number, judged.accuracy, judged.loss)
        self._parts.emit(reports.round_done(number, judged, store.figures(number), self._beside_s))
        return Evaluated(number, judged.accuracy)
