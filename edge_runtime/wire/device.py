"""The device's end of the protocol: messages in, commands out; no sockets, no clock, no disk.

Two machines run side by side: presence (presence.py) and work. Work is IDLE, FETCHING the blobs of a task, RUNNING it,
OFFERING its update, or RESTING after "come back later"; the table at the end of DeviceSession is the whole machine.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, ClassVar

from edge_runtime.errors import RemoteError
from edge_runtime.strict_json import load_object
from edge_runtime.wire import messages, topics
from edge_runtime.wire.events import (
    AbandonTask,
    DeviceCommand,
    Publish,
    RunTask,
    StoreUpdate,
    Subscribe,
    UpdateSettled,
    Warned,
)
from edge_runtime.wire.fetch import BlobCorrupt, Fetch
from edge_runtime.wire.fields import MAX_MESSAGE_BYTES, FutureVersion, text
from edge_runtime.wire.offer import Offer
from edge_runtime.wire.presence import Presence, PresenceInput
from edge_runtime.wire.tasks import MAX_BLOB_BYTES, MAX_TASK_NAME, Task, parse_task

__all__ = ["DeviceSession", "Outbox"]


class NotMyTask(RemoteError):
    """A task for another device came over this device's topic."""


class _State(Enum):
    IDLE = auto()
    FETCHING = auto()
    RUNNING = auto()
    OFFERING = auto()
    RESTING = auto()


class _Input(Enum):
    ONLINE = auto()
    TASK = auto()
    CLEARED = auto()
    CHUNK = auto()
    DOWN = auto()
    FINISHED = auto()
    FAILED = auto()
    TICK = auto()


@dataclass(frozen=True)
class Outbox:
    """An update that outlived its process: the key and the name of its task, and the bytes."""

    key: str
    task: str
    data: bytes


@dataclass(frozen=True)
class _Settled:
    """What became of the last task, for the case that it is asked for again; offer is None unless it gave an update."""

    key: str
    offer: Offer | None = None
    fail: messages.Fail | None = None


@dataclass
class _Work:
    """The present task. key is the SHA-256 of its bytes: a task sent again has the same one."""

    key: str
    task: Task
    fetch: Fetch


class DeviceSession:
    """One device on the wire: at most one task at a time, the last one sent."""

    def __init__(  # noqa: PLR0913 what a device is on the wire
        self,
        site: str,
        device: str,
        *,
        boot: str,
        stored_gen: int = 0,
        examples: int = 0,
        info: Mapping[str, Any] | None = None,
        cached: Callable[[str], bool] = lambda _: False,
        outbox: Outbox | None = None,
        max_blob_bytes: int = MAX_BLOB_BYTES,
    ) -> None:
        """Start a session that is off line.

        Args:
            site: The site's id.
            device: This device's id.
            boot: Random, new for every process.
            stored_gen: The last generation this device kept on disk, 0 if none.
            examples: Size of the local data set.
            info: What the birth message tells about the machine.
            cached: Whether a blob (by SHA-256) is already in the shell's hands, whole and checked.
            outbox: An update of an earlier process.
            max_blob_bytes: Cap on one blob.

        Raises:
            BadId: The site or the device cannot stand in a topic.
        """
        topics.check_id(site, "site")
        topics.check_id(device, "device")
        self.site, self.device = site, device
        self._presence = Presence(site, device, boot, stored_gen + 1, examples, info or {})
        self._cached = cached
        self._cap_bytes = max_blob_bytes
        self._state = _State.IDLE
        self._work: _Work | None = None
        self._offer: Offer | None = None
        self._key = ""
        self._rest_until = 0.0
        self._gateway: messages.GatewayState | None = None
        self._settled: _Settled | None = None
        if outbox is not None:
            self._settled = _Settled(outbox.key, self._new_offer(outbox.task, outbox.data))

    @property
    def busy(self) -> bool:
        """Whether a task is being fetched, run or uploaded."""
        return self._state is not _State.IDLE

    def will(self) -> tuple[str, bytes]:
        """Topic and payload of the last will, retained, QoS 1; it changes only before RenewWill."""
        return self._presence.will()

    def connected(self, now: float) -> list[DeviceCommand]:
        """Take up a new connection."""
        self._gateway = None
        return self._presence.step(now, PresenceInput.CONNECTED)

    def subscribed(self, now: float, subscribed: tuple[str, ...]) -> list[DeviceCommand]:
        """Note that the broker has confirmed subscriptions."""
        if topics.status(self.site, self.device) in subscribed:
            return self._presence.step(now, PresenceInput.SUBSCRIBED)
        return []

    def disconnected(self, now: float) -> list[DeviceCommand]:
        """Note that nothing can be published; work under way goes on."""
        return self._presence.step(now, PresenceInput.DISCONNECTED)

    def tick(self, now: float) -> list[DeviceCommand]:
        """Let time pass; call it every few hundred milliseconds."""
        was_online = self._presence.online
        commands = self._presence.step(now, PresenceInput.TICK)
        if self._presence.online and not was_online:
            names = (
                topics.gateway(self.site),
                topics.task(self.site, self.device),
                topics.down(self.site, self.device),
            )
            return [*commands, Subscribe(names, 1), *self._step(now, _Input.ONLINE)]
        return [*commands, *(self._step(now, _Input.TICK) if self._presence.online else [])]

    def received(self, now: float, topic: str, payload: bytes, *, retain: bool = False) -> list[DeviceCommand]:
        """Take a message; whatever it holds, the answer is a list, never an exception.

        Args:
            now: Seconds of a monotonic clock.
            topic: As received.
            payload: As received.
            retain: Whether the broker had kept it, so that it may be old.
        """
        try:
            address = topics.parse_topic(self.site, topic)
            return self._dispatch(now, address, payload, retain=retain)
        except RemoteError as error:
            return [Warned(topic[:200], error.rule, str(error))]

    def finished(self, now: float, key: str, data: bytes) -> list[DeviceCommand]:
        """Hand over the update of a RunTask; the result of an abandoned one is ignored."""
        return self._step(now, _Input.FINISHED, data) if key == self._key else []

    def failed(self, now: float, key: str, rule: str, message: str) -> list[DeviceCommand]:
        """Say that a RunTask cannot be done here."""
        return self._step(now, _Input.FAILED, (rule, message)) if key == self._key else []

    def telemetry(self, measured: Mapping[str, int | float | str]) -> list[DeviceCommand]:
        """Publish measurements, unless off line."""
        if not self._presence.online:
            return []
        return [Publish(topics.telemetry(self.site, self.device), messages.format_telemetry(measured), 0)]

    def stopping(self) -> list[DeviceCommand]:
        """Say goodbye on purpose, if on line; then disconnect cleanly, so that no will is sent."""
        return [self._presence.goodbye()] if self._presence.online else []

    # Inputs from the wire.

    def _dispatch(self, now: float, address: topics.Address, payload: bytes, *, retain: bool) -> list[DeviceCommand]:
        if address.kind == "blob":
            return self._step(now, _Input.CHUNK, (address, payload))
        if address.kind == "gateway":
            return self._on_gateway(now, messages.parse_gateway(payload) if payload else None, retain=retain)
        if address.device != self.device:
            return []
        if address.kind == "status" and payload:
            happened = PresenceInput.RETAINED if retain else PresenceInput.LIVE
            return self._presence.step(now, happened, messages.parse_status(payload))
        if address.kind == "down":
            return self._step(now, _Input.DOWN, messages.parse_down(payload))
        if address.kind == "task":
            return self._on_task(now, payload) if payload else self._step(now, _Input.CLEARED)
        return []

    def _on_gateway(self, now: float, state: messages.GatewayState | None, *, retain: bool) -> list[DeviceCommand]:
        before, self._gateway = self._gateway, state
        came_up = state is not None and state.state == "up" and state != before
        # A retained presence comes with our own connection, which has already begun what there is to begin.
        return self._step(now, _Input.ONLINE) if came_up and not retain else []

    def _on_task(self, now: float, payload: bytes) -> list[DeviceCommand]:
        key = hashlib.sha256(payload).hexdigest()
        if self._work is not None and key == self._key:
            return self._step(now, _Input.ONLINE)
        if self._settled is not None and key == self._settled.key:
            return self._answer_again(now, self._settled)
        try:
            task = parse_task(payload)
        except FutureVersion:
            raise
        except RemoteError as error:
            name = _task_name(payload)
            return [self._warning(error), *([] if name is None else self._fail(name, error.rule, str(error)))]
        if task.device != self.device:
            raise NotMyTask(f"task {task.task} is for device {task.device}")
        return [*self._abandon(), *self._take_up(now, key, task)]

    # Work.

    def _take_up(self, now: float, key: str, task: Task) -> list[DeviceCommand]:
        self._key, self._settled, self._offer = key, None, None
        for sha256, size_bytes in task.blobs.items():
            if size_bytes > self._cap_bytes:
                message = f"blob {sha256} has {size_bytes} bytes; this device takes at most {self._cap_bytes}"
                return self._give_up(task.task, "BlobTooLarge", message)
        wanted = {sha256: task.blobs[sha256] for sha256 in sorted(task.blobs) if not self._cached(sha256)}
        fetch = Fetch(self.site, wanted, frozenset(phase.plan for phase in task.phases), self._cap_bytes)
        self._work = _Work(key, task, fetch)
        self._state = _State.FETCHING
        return self._run_when_complete(fetch.start(now))

    def _run_when_complete(self, commands: list[DeviceCommand]) -> list[DeviceCommand]:
        assert self._work is not None, "only a task fetches blobs"
        if not self._work.fetch.complete:
            return commands
        self._state = _State.RUNNING
        return [*commands, RunTask(self._key, self._work.task)]

    def _abandon(self) -> list[DeviceCommand]:
        commands: list[DeviceCommand] = []
        if self._state is _State.RUNNING:
            commands.append(AbandonTask(self._key))
        if self._state is _State.FETCHING and self._work is not None:
            commands += self._work.fetch.cancel()
        self._state, self._work, self._offer, self._key = _State.IDLE, None, None, ""
        return commands

    def _answer_again(self, now: float, settled: _Settled) -> list[DeviceCommand]:
        if settled.fail is not None:
            return self._fail(settled.fail.task, settled.fail.rule, settled.fail.message)
        if settled.offer is None:
            return []
        commands = self._abandon()
        self._key, self._offer, self._settled = settled.key, settled.offer, None
        self._state = _State.OFFERING
        return [*commands, *settled.offer.start(now)]

    def _give_up(self, task: str, rule: str, message: str) -> list[DeviceCommand]:
        commands = self._abandon_fetch()
        self._settled = _Settled(self._key, fail=messages.Fail(task, rule, message))
        self._state, self._work, self._offer, self._key = _State.IDLE, None, None, ""
        return [*commands, *self._fail(task, rule, message)]

    def _abandon_fetch(self) -> list[DeviceCommand]:
        return self._work.fetch.cancel() if self._state is _State.FETCHING and self._work is not None else []

    # Rows of the table.

    def _fetch_again(self, now: float, _: Any) -> list[DeviceCommand]:
        assert self._work is not None, "FETCHING has a task"
        return self._work.fetch.start(now)

    def _fetch_tick(self, now: float, _: Any) -> list[DeviceCommand]:
        assert self._work is not None, "FETCHING has a task"
        up = self._gateway is not None and self._gateway.state == "up"
        try:
            return self._work.fetch.tick(now, gateway_up=up)
        except RemoteError as error:
            return self._give_up(self._work.task.task, error.rule, str(error))

    def _fetch_chunk(self, now: float, arrived: tuple[topics.Address, bytes]) -> list[DeviceCommand]:
        assert self._work is not None, "FETCHING has a task"
        address, payload = arrived
        try:
            commands = self._work.fetch.chunk(now, address.name, address.index, payload)
        except BlobCorrupt as error:
            return self._give_up(self._work.task.task, error.rule, str(error))
        return self._run_when_complete(commands)

    def _drop_task(self, _now: float, _: Any) -> list[DeviceCommand]:
        return self._abandon()

    def _keep_update(self, now: float, data: bytes) -> list[DeviceCommand]:
        assert self._work is not None, "RUNNING has a task"
        self._offer = self._new_offer(self._work.task.task, data)
        self._state, self._work = _State.OFFERING, None
        store = StoreUpdate(self._key, self._offer.task, data)
        return [store, *(self._offer.start(now) if self._presence.online else [])]

    def _report_failure(self, now: float, why: tuple[str, str]) -> list[DeviceCommand]:
        assert self._work is not None, "RUNNING has a task"
        return self._give_up(self._work.task.task, *why)

    def _offer_now(self, now: float, _: Any) -> list[DeviceCommand]:
        assert self._offer is not None, "OFFERING has an update"
        return self._offer.start(now)

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
        return self._settle(answer)

    def _settle(self, answer: messages.Done | messages.Refuse) -> list[DeviceCommand]:
        assert self._offer is not None, "OFFERING and RESTING have an update"
        key, task = self._key, self._offer.task
        done = isinstance(answer, messages.Done)
        self._settled = _Settled(key, offer=self._offer if done else None)
        self._state, self._offer, self._key = _State.IDLE, None, ""
        if isinstance(answer, messages.Done):
            return [UpdateSettled(key, task, "done")]
        return [UpdateSettled(key, task, "refused", answer.rule, answer.message)]

    def _rest(self, now: float, _: Any) -> list[DeviceCommand]:
        if now < self._rest_until:
            return []
        self._state = _State.OFFERING
        return self._offer_now(now, None)

    def _step(self, now: float, happened: _Input, argument: Any = None) -> list[DeviceCommand]:
        handler = self._table.get((self._state, happened))
        return [] if handler is None else handler(self, now, argument)

    def _new_offer(self, task: str, data: bytes) -> Offer:
        return Offer(self.site, self.device, task, hashlib.sha256(data).hexdigest(), data)

    def _fail(self, task: str, rule: str, message: str) -> list[DeviceCommand]:
        if not self._presence.online:
            return []  # the task is retained: it comes again with the connection, and so does the answer
        uid = hashlib.sha256(task.encode("utf-8")).hexdigest()[:16]
        payload = messages.format_fail(messages.Fail(task, rule, message))
        return [Publish(topics.upload(self.site, self.device, uid, "fail"), payload, 1)]

    def _warning(self, error: RemoteError) -> Warned:
        return Warned("gateway", error.rule, str(error))

    # A pair that is not here changes nothing: a late chunk, an answer to an upload that is settled, a task withdrawn
    # while its update is under way (the gateway's answer decides about that).
    _table: ClassVar[dict[tuple[_State, _Input], Callable[["DeviceSession", float, Any], list[DeviceCommand]]]] = {
        (_State.FETCHING, _Input.ONLINE): _fetch_again,
        (_State.FETCHING, _Input.CHUNK): _fetch_chunk,
        (_State.FETCHING, _Input.TICK): _fetch_tick,
        (_State.FETCHING, _Input.CLEARED): _drop_task,
        (_State.RUNNING, _Input.CLEARED): _drop_task,
        (_State.RUNNING, _Input.FINISHED): _keep_update,
        (_State.RUNNING, _Input.FAILED): _report_failure,
        (_State.OFFERING, _Input.ONLINE): _offer_now,
        (_State.OFFERING, _Input.DOWN): _offer_down,
        (_State.OFFERING, _Input.TICK): _offer_tick,
        (_State.RESTING, _Input.DOWN): _offer_down,
        (_State.RESTING, _Input.TICK): _rest,
    }


def _task_name(payload: bytes) -> str | None:
    # A task that breaks a rule may still say its name, so that the coordinator learns why nothing comes.
    try:
        return text(load_object(payload[:MAX_MESSAGE_BYTES]), "task", cap=MAX_TASK_NAME)
    except (ValueError, RemoteError):
        return None
