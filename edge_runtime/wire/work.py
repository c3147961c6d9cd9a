"""A device's work: at most one task at a time, from the first blob it lacks to the gateway's last word on its update.

IDLE, FETCHING the blobs of a task, RUNNING it, OFFERING its update, or RESTING after "come back later". The table at
the end of Work is the whole machine. Work says what to publish whether or not the device is on line; the session drops
that while it is off line, and every state takes itself up again at the input ONLINE.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, ClassVar

from edge_runtime.errors import RemoteError
from edge_runtime.wire import messages, topics
from edge_runtime.wire.chunks import Readable, Sink, digest_of
from edge_runtime.wire.events import (
    AbandonTask,
    DeviceCommand,
    Publish,
    RunTask,
    StoreUpdate,
    UpdateSettled,
    Warned,
)
from edge_runtime.wire.fetch import BlobCorrupt, Fetch
from edge_runtime.wire.offer import Offer
from edge_runtime.wire.tasks import Delta, Task, parse_task, steps_from

# Refusals of updates that nobody looked at: the gateway did not ask for them, or not any more. After any other the task
# has failed: the same task would give the same update.
NOT_ASKED = frozenset({"UnknownTask", "StaleTask", "StaleUpdate"})

__all__ = ["NotMyTask", "Outbox", "Shelf", "Work", "WorkInput"]


class NotMyTask(RemoteError):
    """A task for another device came over this device's topic."""


class WorkInput(Enum):
    """What can happen to a device's work."""

    ONLINE = auto()
    CLEARED = auto()
    CHUNK = auto()
    DOWN = auto()
    FINISHED = auto()
    FAILED = auto()
    UNUSABLE = auto()
    UNREADABLE = auto()
    TICK = auto()
    TICK_UP = auto()


class _State(Enum):
    IDLE = auto()
    FETCHING = auto()
    RUNNING = auto()
    OFFERING = auto()
    RESTING = auto()


@dataclass(frozen=True)
class Outbox:
    """An update that outlived its process: the key and the name of its task, and the bytes."""

    key: str
    task: str
    data: Readable


@dataclass(frozen=True)
class Shelf:
    """Where blobs are kept: whether one (by SHA-256) is at hand, and where one (by SHA-256 and size) is put."""

    cached: Callable[[str], bool]
    open_sink: Callable[[str, int], Sink | None]


@dataclass(frozen=True)
class _Settled:
    """What the last task is answered with, should it be asked for again: its update or its failure."""

    key: str
    offer: Offer | None = None
    fail: messages.Fail | None = None


class Work:
    """The present task and what became of the last one.

    A task is known by its key, the SHA-256 of its bytes: a task that is sent again has the same key, and one that was
    changed under the same name has not.

    Attributes:
        whole_bytes: Updates of so much may go with their offer in one message, as the gateway last said.
    """

    def __init__(self, site: str, device: str, shelf: Shelf, cap_bytes: int, outbox: Outbox | None) -> None:
        """Start idle; see DeviceSession for the arguments."""
        self.whole_bytes = 0
        self._site, self._device = site, device
        self._cached = shelf.cached
        self._open_sink = shelf.open_sink
        self._cap_bytes = cap_bytes
        self._state = _State.IDLE
        self._key = ""
        self._task: Task | None = None
        self._fetch: Fetch | None = None
        self._deltas: tuple[Delta, ...] = ()
        self._whole = False
        self._offer: Offer | None = None
        self._rest_until = 0.0
        self._settled: _Settled | None = None
        if outbox is not None:
            self._settled = _Settled(outbox.key, offer=self._new_offer(outbox.task, outbox.data))

    @property
    def busy(self) -> bool:
        """Whether a task is being fetched, run or uploaded."""
        return self._state is not _State.IDLE

    @property
    def key(self) -> str:
        """The present task's key, "" if there is none."""
        return self._key

    def step(self, now: float, happened: WorkInput, argument: Any = None) -> list[DeviceCommand]:
        """Take an input; a pair that the table does not name changes nothing."""
        handler = self._table.get((self._state, happened))
        return [] if handler is None else handler(self, now, argument)

    def take_up(self, now: float, payload: bytes) -> list[DeviceCommand]:
        """Take a task in place of the present one; the same one again only resumes it.

        Raises:
            RemoteError: The task breaks a rule; the present one goes on.
        """
        key = hashlib.sha256(payload).hexdigest()
        if key == self._key:
            return self.step(now, WorkInput.ONLINE)
        if self._settled is not None and key == self._settled.key:
            return self._answer_again(now, self._settled)
        task = parse_task(payload)
        if task.device != self._device:
            raise NotMyTask(f"task {task.task} is for device {task.device}")
        return [*self._abandon(), *self._begin(now, key, task)]

    def fail(self, task: str, rule: str, message: str) -> Publish:
        """Say that a task cannot be done."""
        uid = hashlib.sha256(task.encode("utf-8")).hexdigest()[:16]
        payload = messages.format_fail(messages.Fail(task, rule, message))
        return Publish(topics.upload(self._site, self._device, uid, "fail"), payload, 1)

    def _begin(self, now: float, key: str, task: Task) -> list[DeviceCommand]:
        self._key, self._task, self._settled, self._whole = key, task, None, False
        for sha256, size_bytes in task.blobs.items():
            if size_bytes > self._cap_bytes:
                message = f"blob {sha256} has {size_bytes} bytes; this device takes at most {self._cap_bytes}"
                return self._give_up("BlobTooLarge", message)
        self._deltas = () if self._cached(task.weights) else steps_from(task, self._cached)
        return self._start_fetch(now, task)

    def _start_fetch(self, now: float, task: Task) -> list[DeviceCommand]:
        """Ask for what the task needs and the shell has not: with deltas those, and not the weights."""
        sizes = dict(task.blobs)
        if self._deltas:
            del sizes[task.weights]
            sizes |= {delta.blob: delta.bytes for delta in self._deltas}
        distrusted = task.weights if self._whole else ""
        wanted = {key: sizes[key] for key in sorted(sizes) if key == distrusted or not self._cached(key)}
        plans = frozenset(plan for phase in task.phases for plan in phase.plans)
        self._fetch = Fetch(self._site, wanted, plans, self._cap_bytes, self._open_sink)
        self._state = _State.FETCHING
        return self._run_when_complete(self._fetch.start(now))

    def _run_when_complete(self, commands: list[DeviceCommand]) -> list[DeviceCommand]:
        if self._fetch is None or not self._fetch.complete or self._task is None:
            return commands
        self._state, self._fetch = _State.RUNNING, None
        return [*commands, RunTask(self._key, self._task, self._deltas)]

    def _abandon(self) -> list[DeviceCommand]:
        commands: list[DeviceCommand] = [AbandonTask(self._key)] if self._state is _State.RUNNING else []
        if self._fetch is not None:
            commands += self._fetch.cancel()
        self._state, self._key = _State.IDLE, ""
        self._task, self._fetch, self._offer = None, None, None
        return commands

    def _give_up(self, rule: str, message: str) -> list[DeviceCommand]:
        assert self._task is not None, "only a task can fail"
        name = self._task.task
        self._settled = _Settled(self._key, fail=messages.Fail(name, rule, message))
        self._state = _State.IDLE  # the task is over: nothing is left to abandon but subscriptions
        return [*self._abandon(), self.fail(name, rule, message)]

    def _answer_again(self, now: float, settled: _Settled) -> list[DeviceCommand]:
        if settled.fail is not None:
            return [self.fail(settled.fail.task, settled.fail.rule, settled.fail.message)]
        assert settled.offer is not None, "what has settled has an update or a failure"
        commands = self._abandon()
        self._state, self._key, self._offer, self._settled = _State.OFFERING, settled.key, settled.offer, None
        return [*commands, *settled.offer.start(now, self.whole_bytes)]

    def _fetch_again(self, now: float, _: Any) -> list[DeviceCommand]:
        assert self._fetch is not None, "FETCHING has blobs to fetch"
        return self._fetch.start(now)

    def _fetch_tick(self, now: float, _: Any) -> list[DeviceCommand]:
        assert self._fetch is not None, "FETCHING has blobs to fetch"
        return self._fetch.tick(now, gateway_up=False)

    def _fetch_tick_up(self, now: float, _: Any) -> list[DeviceCommand]:
        assert self._fetch is not None, "FETCHING has blobs to fetch"
        try:
            return self._fetch.tick(now, gateway_up=True)
        except RemoteError as error:
            return self._fetch_failed(now, error)

    def _fetch_chunk(self, now: float, arrived: tuple[topics.Address, bytes]) -> list[DeviceCommand]:
        assert self._fetch is not None, "FETCHING has blobs to fetch"
        address, payload = arrived
        try:
            commands = self._fetch.chunk(now, address.name, address.index, payload)
        except BlobCorrupt as error:
            return self._fetch_failed(now, error)
        return self._run_when_complete(commands)

    def _fetch_failed(self, now: float, error: RemoteError) -> list[DeviceCommand]:
        """The task fails, unless the weights can still be fetched whole."""
        if not self._deltas:
            return self._give_up(error.rule, str(error))
        return self._fetch_whole(now, error.rule, str(error))

    def _fetch_whole(self, now: float, rule: str, message: str) -> list[DeviceCommand]:
        assert self._task is not None, "only a task has weights"
        cancelled = self._fetch.cancel() if self._fetch is not None else []
        self._deltas, self._whole = (), True
        return [Warned("weights", rule, message), *cancelled, *self._start_fetch(now, self._task)]

    def _refetch(self, now: float, message: str) -> list[DeviceCommand]:
        if self._whole:
            return self._give_up("BlobCorrupt", message)
        return self._fetch_whole(now, "DeltaUnusable", f"{message}; the weights are fetched whole")

    def _drop_task(self, _now: float, _: Any) -> list[DeviceCommand]:
        return self._abandon()

    def _keep_update(self, now: float, data: bytes) -> list[DeviceCommand]:
        assert self._task is not None, "RUNNING has a task"
        self._offer = self._new_offer(self._task.task, data)
        self._state, self._task = _State.OFFERING, None
        return [StoreUpdate(self._key, self._offer.task, data), *self._offer.start(now, self.whole_bytes)]

    def _report_failure(self, _now: float, why: tuple[str, str]) -> list[DeviceCommand]:
        return self._give_up(*why)

    def _offer_now(self, now: float, _: Any) -> list[DeviceCommand]:
        assert self._offer is not None, "OFFERING has an update"
        return self._offer.start(now, self.whole_bytes)

    def _offer_tick(self, now: float, _: Any) -> list[DeviceCommand]:
        assert self._offer is not None, "OFFERING has an update"
        return self._offer.tick(now)

    def _offer_down(self, now: float, answer: messages.Down) -> list[DeviceCommand]:
        assert self._offer is not None, "OFFERING and RESTING have an update"
        if answer.uid != self._offer.uid:
            return []
        if isinstance(answer, messages.Have):
            self._state = _State.OFFERING
            return self._offer.have(now, answer)
        if isinstance(answer, messages.Refuse) and answer.retry_s is not None:
            self._state, self._rest_until = _State.RESTING, now + answer.retry_s
            return [Warned("gateway", answer.rule, answer.message)]
        return self._settle(answer, self._offer)

    def _fail_unread(self, _now: float, error: RemoteError) -> list[DeviceCommand]:
        """The disk does not give the update back: its task must be asked again."""
        assert self._offer is not None, "OFFERING has an update"
        key, task, message = self._key, self._offer.task, f"the update cannot be read back: {error}"
        self._abandon()
        self._settled = _Settled(key, fail=messages.Fail(task, "CacheDamaged", message))
        return [Warned("outbox", error.rule, str(error)), self.fail(task, "CacheDamaged", message)]

    def stored(self, key: str, data: Readable) -> None:
        """Read the update of this task from here on from where the shell has put it."""
        if self._offer is not None and key == self._key:
            self._offer.data = data

    def _settle(self, answer: messages.Done | messages.Refuse, offer: Offer) -> list[DeviceCommand]:
        key = self._key
        self._abandon()
        if isinstance(answer, messages.Done):
            # Kept until the next task: should this one be asked for again, it is all there.
            self._settled = _Settled(key, offer=offer)
            return [UpdateSettled(key, offer.task, "done")]
        refused = UpdateSettled(key, offer.task, "refused", answer.rule, answer.message)
        if answer.rule in NOT_ASKED:
            # A gateway that asks for it after all, as one does that was restored from a backup and comes to a round it
            # has forgotten, means it: the task begins anew.
            self._settled = None
            return [refused]
        self._settled = _Settled(key, fail=messages.Fail(offer.task, answer.rule, answer.message))
        return [refused, self.fail(offer.task, answer.rule, answer.message)]

    def _rest(self, now: float, _: Any) -> list[DeviceCommand]:
        if now < self._rest_until:
            return []
        self._state = _State.OFFERING
        return self._offer_now(now, None)

    def _new_offer(self, task: str, data: Readable) -> Offer:
        return Offer(self._site, self._device, task, digest_of(data), data)

    # A pair that is not here changes nothing: a late chunk, an answer to an upload that is settled, a task withdrawn
    # while its update is under way (the gateway's answer decides about that).
    _table: ClassVar[dict[tuple[_State, WorkInput], Callable[["Work", float, Any], list[DeviceCommand]]]] = {
        (_State.FETCHING, WorkInput.ONLINE): _fetch_again,
        (_State.FETCHING, WorkInput.CHUNK): _fetch_chunk,
        (_State.FETCHING, WorkInput.TICK): _fetch_tick,
        (_State.FETCHING, WorkInput.TICK_UP): _fetch_tick_up,
        (_State.FETCHING, WorkInput.CLEARED): _drop_task,
        (_State.RUNNING, WorkInput.CLEARED): _drop_task,
        (_State.RUNNING, WorkInput.FINISHED): _keep_update,
        (_State.RUNNING, WorkInput.FAILED): _report_failure,
        (_State.RUNNING, WorkInput.UNUSABLE): _refetch,
        (_State.OFFERING, WorkInput.ONLINE): _offer_now,
        (_State.OFFERING, WorkInput.DOWN): _offer_down,
        (_State.OFFERING, WorkInput.TICK): _offer_tick,
        (_State.OFFERING, WorkInput.TICK_UP): _offer_tick,
        (_State.OFFERING, WorkInput.UNREADABLE): _fail_unread,
        (_State.RESTING, WorkInput.DOWN): _offer_down,
        (_State.RESTING, WorkInput.TICK): _rest,
        (_State.RESTING, WorkInput.TICK_UP): _rest,
    }
