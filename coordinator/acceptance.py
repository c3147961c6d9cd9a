"""Taking updates: whether one counts, and its way into the journal and the round's sums.

An update counts when it is in the journal, and only then is its device told so.
"""

from collections.abc import Callable
from dataclasses import dataclass

from coordinator.gathering import Gathering
from coordinator.program import Program
from coordinator.round_records import Refusal
from coordinator.store import JournalUpdate, Store
from coordinator.tasks import share_asked
from coordinator.updates import FleetFull, check_update
from edge_runtime.errors import RemoteError
from edge_runtime.kernels import Workspace
from edge_runtime.wire.events import UpdateReceived
from edge_runtime.wire.gateway import GatewaySession
from edge_runtime.wire.tasks import Task, parse_task

STALE_UPDATE, STALE_TASK = "StaleUpdate", "StaleTask"


@dataclass(frozen=True)
class Accepted:
    """An update that is in the journal, and how long its device would have taken for the whole work, if known."""

    update: JournalUpdate
    seconds: float | None


@dataclass(frozen=True)
class Declined:
    """An update that does not count; the words for its device.

    Attributes:
        rule: That was broken.
        message: How.
        failed: The task that the device has failed with it, if that is its own fault.
        expired: The task that ends with it, if no update for it can count any more.
    """

    rule: str
    message: str
    failed: Task | None = None
    expired: Task | None = None


class Acceptance:
    """Checks updates against the tasks they answer, writes them and adds them up."""

    def __init__(self, program: Program, store: Store, session: GatewaySession) -> None:
        self._program = program
        self._store = store
        self._session = session
        self._workspace = Workspace()
        self._sent_s: dict[str, float] = {}
        self.gathering = Gathering(program)

    def asked(self, device: str, now_s: float) -> None:
        """A new task of the device is published now: its time begins."""
        self._sent_s[device] = now_s

    def open_task(self, device: str, name: str) -> Task | None:
        """The device's task of this name, unless it is done or failed."""
        found = self._store.open_task(device, name)
        if found is None:
            return None
        return self._sent(device, name) or parse_task(found.data)

    def _sent(self, device: str, name: str) -> Task | None:
        """The task of this name that was published for the device; it was open then."""
        sent = self._session.task(device)
        return sent if sent is not None and sent.task == name else None

    def take(
        self, event: UpdateReceived, counts_in: Callable[[int], int | Refusal], examples: int, now_s: float
    ) -> Accepted | Declined:
        """Takes an update if it counts.

        Args:
            event: With the update's bytes.
            counts_in: Version that it was trained from -> the round in which it counts, were it to come now.
            examples: That its device has announced.
            now_s: When it came.
        """
        # Whether one that was published is still open shows when the update is written.
        task = self._sent(event.device, event.task) or self.open_task(event.device, event.task)
        if task is None:
            return self._unasked(event)
        number = counts_in(task.version)
        if isinstance(number, Refusal):
            # That is not the device's fault; where the update never could count, its task ends with it.
            return Declined(number.rule, number.message, expired=task if number.rule == STALE_UPDATE else None)
        try:
            return self._accept(event, task, number, examples, now_s)
        except RemoteError as error:
            return Declined(error.rule, str(error), failed=task)

    def _unasked(self, event: UpdateReceived) -> Declined:
        asynchronous = self._program.job.schedule.asynchronous
        stale = asynchronous and self._store.expired(event.device, event.task)
        message = f"task {event.task} is not open for {event.device} any more"
        return Declined(STALE_UPDATE if stale else STALE_TASK, message)

    def _accept(
        self, event: UpdateReceived, task: Task, number: int, examples: int, now_s: float
    ) -> Accepted | Declined:
        self._check_member(event.device)
        layout = self._program.stage(task.version).for_device(event.device).layout
        claims, coded = check_update(event.data, task, layout, examples, workspace=self._workspace)
        key = (number, event.device, task.task, task.version)
        update = JournalUpdate(*key, event.uid, event.sha256, claims.examples, claims.loss, event.data)
        seconds = self._seconds_for_all(task, examples, now_s)
        if not self._store.add_update(update, seconds):
            return self._unasked(event)
        self.gathering.add(update, claims, coded)
        return Accepted(update, seconds)

    def _check_member(self, device: str) -> None:
        members = self._program.method.members
        if members is not None and self._store.is_outsider(device, members):
            raise FleetFull(f"{members} other devices have taken part already, all that [method] devices allows")

    def _seconds_for_all(self, task: Task, examples: int, now_s: float) -> float | None:
        """What the device would have taken for the whole work; None for a task that an earlier process has sent."""
        sent_s = self._sent_s.pop(task.device, None)
        share = share_asked(self._program.job, examples, task)
        return None if sent_s is None else (now_s - sent_s) / share
