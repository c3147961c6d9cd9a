"""The gateway's end of the protocol: messages in, events and commands out; no sockets, no clock, no disk.

Uploads have a state machine of their own, in intake.py. Here are presence, tasks and blobs, which have no states: the
session publishes what it holds, and all of it again on every connection.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edge_runtime.errors import LocalError, RemoteError
from edge_runtime.wire import messages, topics
from edge_runtime.wire.chunks import chunk_count, cut_chunk
from edge_runtime.wire.events import (
    Command,
    DeviceStatus,
    GatewaySuperseded,
    Outcome,
    Publish,
    Subscribe,
    TaskFailed,
    Telemetry,
    UpdateReceived,
    UpdateRefused,
    Warned,
)
from edge_runtime.wire.fields import BadMessage
from edge_runtime.wire.intake import Answer, BadUid, Intake, Refusal
from edge_runtime.wire.tasks import MAX_BLOB_BYTES, Task, format_task

__all__ = ["BUDGET_BYTES", "MAX_DEVICES", "BlobUnknown", "GatewaySession", "TooManyDevices"]

MAX_DEVICES = 100_000
# Of all open uploads: a hundred of 250 KB keep a broker as busy as any number does, and more would only be memory.
BUDGET_BYTES = 24 << 20
SWEEP_S = 1.0
# Failures that say that the broker's copy of a blob is of no use.
LACKS_A_BLOB = frozenset({"BlobMissing", "BlobCorrupt"})
# A blob is published again at most so often: many devices miss it at one time, and one may say so all the time.
BLOB_AGAIN_S = 10.0
# How soon all devices are asked for their births again because one of them came damaged, and how often anyway.
ROLL_CALL_S, ROUTINE_ROLL_CALL_S = 10.0, 600.0
# A task whose device says nothing of it is sent again after so many looks at all devices, then twice as many, and on.
LOOK_S = 10.0
FIRST_REMINDER, LAST_REMINDER = 6, 360


class BlobUnknown(LocalError):
    """A task names a blob that was not published."""


class TooManyDevices(RemoteError):
    """More device ids than MAX_DEVICES were heard of."""


@dataclass
class _Device:
    """What is known of a device: the task it was sent, in its bytes too, and the presence that was last believed.

    heard: Whether that presence came live on this connection, and not out of the broker's memory. reminder: looks until
    the task is sent again; patience: how many it was the last time, 0 once its update was offered.
    """

    task: Task | None = None
    payload: bytes = b""
    status: messages.Status | None = None
    heard: bool = False
    reminder: int = 0
    patience: int = FIRST_REMINDER


def _never_done(device: str, task: str) -> str | None:  # noqa: ARG001 the default of a callback
    return None


def _unknown_task(device: str, task: str) -> Refusal | None:
    return Refusal("UnknownTask", f"{task} is not what device {device} is asked to do now")


class GatewaySession:
    """One site's coordinator on the wire.

    Held: the tasks sent, the blobs in use, the uploads under way. All of it is published again by connected(), so a
    broker that forgets everything loses nothing.
    """

    def __init__(  # noqa: PLR0913 every limit is the caller's
        self,
        site: str,
        epoch: int,
        boot: str,
        *,
        already_done: Callable[[str, str], str | None] = _never_done,
        judge: Callable[[str, str], Refusal | None] = _unknown_task,
        max_update_bytes: int = MAX_BLOB_BYTES,
        budget_bytes: int = BUDGET_BYTES,
    ) -> None:
        """Start a session that has sent nothing.

        Args:
            site: The site's id.
            epoch: As SiteEntry found it.
            boot: Random, new for every process: tells two coordinators of one epoch apart.
            already_done: (device, task) -> SHA-256 of the update that is durable for it, or None.
            judge: (device, task) -> why an update for a task that is not the device's present one is refused, or None
                to take it. By default every such update is refused.
            max_update_bytes: Cap on one update.
            budget_bytes: Cap on all open uploads together; over it, devices wait in a line (edge_runtime.wire.intake).

        Raises:
            BadId: The site cannot stand in a topic.
        """
        self.site = topics.check_id(site, "site")
        self.epoch = epoch
        self.boot = boot
        self._already_done = already_done
        self._judge = judge
        self._intake = Intake(max_update_bytes, budget_bytes)
        self._devices: dict[str, _Device] = {}
        self._blobs: dict[str, bytes] = {}
        self._online = False
        self._swept_at = -SWEEP_S
        self._said_again: dict[str, float] = {}
        self._roll_call = False
        self._called_at = 0.0
        self._looked_at = 0.0

    @property
    def open_bytes(self) -> int:
        """Memory promised to uploads under way."""
        return self._intake.open_bytes

    @property
    def open_uploads(self) -> int:
        """How many uploads are under way."""
        return self._intake.open_uploads

    @property
    def waiting_uploads(self) -> int:
        """How many devices wait for room."""
        return self._intake.waiting

    def will(self) -> tuple[str, bytes]:
        """Topic and payload of the last will, retained, QoS 1."""
        return topics.gateway(self.site), self._presence("lost")

    def connected(self, now: float) -> list[Outcome]:
        """Take up a new connection: subscribe, then publish presence, blobs and tasks again."""
        self._online, self._called_at = True, now
        outcomes: list[Outcome] = [
            Subscribe((topics.gateway(self.site), topics.status(self.site, "+"), topics.upload_all(self.site)), 1),
            Subscribe((topics.telemetry(self.site, "+"),), 0),
            Publish(topics.gateway(self.site), self._presence("up"), 1, retain=True),
        ]
        for sha256 in self._blobs:
            outcomes += self._blob_chunks(sha256)
        for device, known in self._devices.items():
            known.heard = False
            if known.task is not None:
                outcomes.append(self._task(device, known.payload))
        return outcomes

    def disconnected(self, now: float) -> list[Outcome]:  # noqa: ARG002 every input carries the time
        """Note that nothing can be published; open uploads are kept."""
        self._online = False
        return []

    def stopping(self) -> list[Command]:
        """Say goodbye on purpose: publish before disconnecting cleanly, so that no will is sent."""
        return [Publish(topics.gateway(self.site), self._presence("stopped"), 1, retain=True)]

    def received(self, now: float, topic: str, payload: bytes, *, retain: bool = False) -> list[Outcome]:
        """Take a message; whatever it holds, the answer is a list, never an exception.

        Args:
            now: Seconds of a monotonic clock.
            topic: As received.
            payload: As received.
            retain: Whether the broker had kept it, so that it may be old.
        """
        try:
            address = topics.parse_topic(self.site, topic)
            if address.kind == "gateway":
                return self._on_gateway(payload, retain=retain)
            if address.name:
                return self._on_upload(now, address, payload)
            return self._on_device(address, payload, retain=retain)
        except topics.BadTopic as error:
            self._roll_call = True  # a birth may have come damaged so
            return [Warned(topic[:200], error.rule, str(error))]
        except BadMessage as error:
            return [Warned(topic[:200], error.rule, str(error)), *self._say_again(address)]
        except RemoteError as error:
            return [Warned(topic[:200], error.rule, str(error))]

    def _say_again(self, address: topics.Address) -> list[Outcome]:
        """What brings back a message that came damaged; an offer its device repeats by itself."""
        if address.kind == "gateway":
            return [*self._if_online([Publish(topics.gateway(self.site), self._presence("up"), 1, retain=True)])]
        if address.kind == "fail":
            return self._task_again(address.device)
        self._roll_call |= address.kind == "status"
        return []

    def _blobs_again(self, now: float, device: str, fail: messages.Fail) -> list[Outcome]:
        """The blobs of the device's task: what the broker keeps of them is damaged or gone."""
        task = self._device(device).task
        if task is None or task.task != fail.task:
            return []
        outcomes: list[Outcome] = []
        for sha256 in sorted(task.blobs):
            last = self._said_again.get(sha256)
            if sha256 in self._blobs and (last is None or now - last >= BLOB_AGAIN_S):
                self._said_again[sha256] = now
                outcomes += self._blob_chunks(sha256)
        return outcomes

    def _task_again(self, device: str) -> list[Outcome]:
        known = self._device(device)
        return [] if known.task is None else [*self._if_online([self._task(device, known.payload)])]

    def tick(self, now: float) -> list[Outcome]:
        """Let time pass: uploads that stood still give their memory back, once a second, and who waits may have room.

        Births that came damaged are asked for, and every ten minutes all of them.
        """
        if now - self._swept_at >= SWEEP_S:
            self._swept_at = now
            self._intake.drop_idle(now)
        admitted = [*self._admitted(), *self._reminders(now)]
        if not self._online or now - self._called_at < (ROLL_CALL_S if self._roll_call else ROUTINE_ROLL_CALL_S):
            return admitted
        self._roll_call, self._called_at = False, now
        return [*admitted, Publish(topics.gateway(self.site), self._presence("up"), 1, retain=True)]

    def _reminders(self, now: float) -> list[Outcome]:
        """The tasks to send again: a message can be lost in ways that neither end nor the broker can see."""
        if now - self._looked_at < LOOK_S or not self._online:
            return []
        self._looked_at = now
        due: list[Outcome] = []
        for device, known in self._devices.items():
            known.reminder = max(0, known.reminder - 1)
            if known.reminder == 0 and known.patience and known.task is not None:
                due.append(self._task(device, known.payload))
                known.reminder = known.patience = min(2 * known.patience, LAST_REMINDER)
        return due

    def publish_blob(self, sha256: str, data: bytes) -> list[Command]:
        """Offer a blob to every device until drop_blob; publishing one that is offered already does nothing."""
        if sha256 in self._blobs:
            return []
        self._blobs[sha256] = data
        return self._if_online(self._blob_chunks(sha256))

    def drop_blob(self, sha256: str) -> list[Command]:
        """Take a blob off the broker; unknown ones are left alone."""
        self._said_again.pop(sha256, None)
        data = self._blobs.pop(sha256, b"")
        indexes = range(chunk_count(len(data)))
        return self._if_online(
            [Publish(topics.chunk(self.site, sha256, index), b"", 1, retain=True) for index in indexes]
        )

    def send_task(
        self, device: str, task: Task, blobs: Mapping[str, bytes] | None = None, payload: bytes | None = None
    ) -> list[Command]:
        """Ask a device to do a task, in place of the one it may have.

        Args:
            device: Its id.
            task: What to do.
            blobs: Blobs to publish first, if they are not yet.
            payload: What format_task makes of the task, where the caller has it.

        Raises:
            BadId: The device cannot stand in a topic.
            BlobUnknown: The task needs a blob that is neither here nor published.
        """
        topics.check_id(device, "device")
        commands = [command for sha256, data in (blobs or {}).items() for command in self.publish_blob(sha256, data)]
        absent = [sha256 for sha256 in task.blobs if sha256 not in self._blobs]
        if absent:
            raise BlobUnknown(f"task {task.task} needs blob {absent[0]}, which was not published")
        known = self._device(device)
        known.task, known.payload = task, format_task(task) if payload is None else payload
        known.reminder = known.patience = FIRST_REMINDER
        return [*commands, *self._if_online([self._task(device, known.payload)])]

    def task(self, device: str) -> Task | None:
        """What the device is asked to do now."""
        known = self._devices.get(device)
        return None if known is None else known.task

    def clear_task(self, device: str) -> list[Command]:
        """Withdraw the device's task; the empty retained message is published even if none is known here."""
        known = self._device(device)
        known.task, known.payload = None, b""
        return self._if_online([self._task(device, b"")])

    def accept(self, device: str, uid: str) -> list[Command]:
        """Tell the device that its update is durable; call it only after it is.

        Raises:
            NotOffered: No such update is waiting for a decision.
        """
        begin = self._intake.settle(device, uid)
        return self._settled(device, messages.Done(uid, begin.sha256))

    def refuse(self, device: str, uid: str, rule: str, message: str, retry_s: float | None = None) -> list[Command]:
        """Tell the device that its update is not taken; with retry_s it may offer it again.

        Raises:
            NotOffered: No such update is waiting for a decision.
        """
        self._intake.settle(device, uid)
        return self._settled(device, messages.Refuse(uid, rule, message, retry_s))

    def _on_gateway(self, payload: bytes, *, retain: bool) -> list[Outcome]:
        ours = messages.GatewayState(self.epoch, self.boot, "up")
        state = messages.parse_gateway(payload) if payload else None
        # A retained "up" may be of a dead coordinator. If it lives, it answers our presence with its own, live.
        # Two that start for the first time at one moment have equal epochs; then the boots decide which one goes.
        older = state is not None and (state.epoch, state.boot) < (self.epoch, self.boot)
        if state is not None and older and state.state == "up" and not retain:
            return [GatewaySuperseded(state.epoch)]
        if state != ours and self._online:
            # Another that came after us, or the will of an earlier connection, stands retained over our presence.
            return [Publish(topics.gateway(self.site), self._presence("up"), 1, retain=True)]
        return []

    def _on_device(self, address: topics.Address, payload: bytes, *, retain: bool) -> list[Outcome]:
        if address.kind == "tel":
            return [Telemetry(address.device, messages.parse_telemetry(payload))]
        if address.kind != "status" or not payload:
            return []
        return self._on_status(address.device, messages.parse_status(payload), retain=retain)

    def _on_status(self, device: str, status: messages.Status, *, retain: bool) -> list[Outcome]:
        known = self._device(device)
        last = known.status
        if retain and known.heard:
            return []  # what came live is newer
        late_will = (
            last is not None and status.state != "online" and status.boot != last.boot and status.gen <= last.gen
        )
        # An "online" that says nothing new is news all the same: the device has outlived the cut of our connection.
        stale = status == last and (known.heard or status.state != "online")
        if late_will or stale:
            # A device that says its birth twice may have been sent a task that came damaged.
            return self._task_again(device) if stale and status.state == "online" and not retain else []
        known.status, known.heard = status, not retain
        if status.state != "online":
            self._intake.leave(device)
        live = not retain
        return [DeviceStatus(device, status.state, live, status.boot, status.gen, status.examples, status.info)]

    def _on_upload(self, now: float, address: topics.Address, payload: bytes) -> list[Outcome]:
        if address.kind == "fail":
            fail = messages.parse_fail(payload)
            again = self._blobs_again(now, address.device, fail) if fail.rule in LACKS_A_BLOB else []
            return [*again, TaskFailed(address.device, fail.task, fail.rule, fail.message)]
        if address.kind == "begin":
            begin = messages.parse_begin(payload)
            return self._answers(address.device, self._on_begin(now, address.device, address.name, begin))
        if address.kind == "whole":
            begin, piece = messages.parse_whole(payload)
            return self._answers(address.device, self._on_begin(now, address.device, address.name, begin, piece))
        answers = self._intake.chunk(now, address.device, address.name, address.index, payload)
        return self._answers(address.device, answers)

    def _on_begin(
        self, now: float, device: str, uid: str, begin: messages.Begin, piece: bytes | None = None
    ) -> list[Answer]:
        if not begin.sha256.startswith(uid):
            raise BadUid(f"upload {uid} offers {begin.sha256}; its id must be the first 16 digits")
        known = self._device(device)
        if known.task is not None and known.task.task == begin.task:
            known.reminder = known.patience = 0
        done = self._already_done(device, begin.task)
        if done is not None:
            self._intake.drop(device, uid)
            return [messages.Done(uid, done)]
        return self._intake.begin(now, device, uid, begin, lambda: self._unwanted(device, begin.task), piece)

    def _unwanted(self, device: str, task: str) -> Refusal | None:
        known = self._device(device)
        if known.task is not None and known.task.task == task:
            return None
        return self._judge(device, task)

    def _answers(self, device: str, answers: list[Answer]) -> list[Outcome]:
        return [outcome for answer in answers for outcome in self._answer(device, answer)]

    def _answer(self, device: str, answer: Answer) -> list[Outcome]:
        match answer:
            case UpdateReceived():
                return [answer]
            case messages.Refuse(_, rule, message, retry_s):
                return [UpdateRefused(device, rule, message, retry_s), self._down(device, answer)]
            case _:
                return [self._down(device, answer)]

    def _settled(self, device: str, answer: messages.Down) -> list[Command]:
        """The word on an update, and on those who have room for it."""
        told = self._if_online([self._down(device, answer)])
        return [*told, *(each for each in self._admitted() if isinstance(each, Command))]

    def _admitted(self) -> list[Outcome]:
        """What those are told who waited and have room now; off line they keep their places."""
        if not self._online or not self._intake.waiting:
            return []
        return [outcome for each in self._intake.admit(self._unwanted) for outcome in self._answer(*each)]

    def _device(self, device: str) -> _Device:
        if device not in self._devices and len(self._devices) >= MAX_DEVICES:
            raise TooManyDevices(f"device {device} would be one more than {MAX_DEVICES}")
        return self._devices.setdefault(device, _Device())

    def _blob_chunks(self, sha256: str) -> list[Command]:
        data = self._blobs[sha256]
        return [
            Publish(topics.chunk(self.site, sha256, index), cut_chunk(data, index), 1, retain=True)
            for index in range(chunk_count(len(data)))
        ]

    def _if_online(self, commands: list[Command]) -> list[Command]:
        # Off line nothing is lost: connected() publishes all of it, and a device asks again for its answer.
        return commands if self._online else []

    def _task(self, device: str, payload: bytes) -> Publish:
        return Publish(topics.task(self.site, device), payload, 1, retain=True)

    def _down(self, device: str, answer: messages.Down) -> Publish:
        # At QoS 0: a device that hears nothing asks again, so two confirmations an answer would buy nothing.
        return Publish(topics.down(self.site, device), messages.format_down(answer), 0)

    def _presence(self, state: str) -> bytes:
        return messages.format_gateway(
            messages.GatewayState(self.epoch, self.boot, state, whole_bytes=messages.MAX_WHOLE_BYTES)
        )
