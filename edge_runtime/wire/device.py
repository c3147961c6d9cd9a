"""The device's end of the protocol: messages in, commands out; no sockets, no clock, no disk.

Two machines run side by side, each a table in its own module: presence.py (who I am on the wire) and work.py (what I am
asked to do). The session takes messages apart for them and drops what cannot be said off line.
"""

from collections.abc import Callable, Mapping
from typing import Any

from edge_runtime.errors import RemoteError
from edge_runtime.strict_json import load_object
from edge_runtime.wire import messages, topics
from edge_runtime.wire.chunks import Readable, Sink
from edge_runtime.wire.events import DeviceCommand, Publish, Subscribe, Unsubscribe, Warned
from edge_runtime.wire.fetch import in_memory
from edge_runtime.wire.fields import MAX_MESSAGE_BYTES, BadMessage, FutureVersion, text
from edge_runtime.wire.presence import Presence, PresenceInput
from edge_runtime.wire.tasks import MAX_BLOB_BYTES, MAX_TASK_NAME
from edge_runtime.wire.work import NotMyTask, Outbox, Shelf, Work, WorkInput

__all__ = ["DeviceSession"]

ASK_AGAIN_S = 2.0


class DeviceSession:
    """One device on the wire."""

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
        open_sink: Callable[[str, int], Sink | None] = in_memory,
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
            cached: Whether a blob (by SHA-256) is already in the shell's hands.
            open_sink: Where the chunks of a blob (SHA-256, bytes) that is no plan go; None for memory.
            outbox: An update of an earlier process.
            max_blob_bytes: Cap on one blob.

        Raises:
            BadId: The site or the device cannot stand in a topic.
        """
        self.site = topics.check_id(site, "site")
        self.device = topics.check_id(device, "device")
        self._presence = Presence(site, device, boot, stored_gen + 1, examples, info or {})
        self._work = Work(site, device, Shelf(cached, open_sink), max_blob_bytes, outbox)
        self._gateway: messages.GatewayState | None = None
        self._damaged: set[str] = set()
        self._ask_at = 0.0

    @property
    def busy(self) -> bool:
        """Whether a task is being fetched, run or uploaded."""
        return self._work.busy

    @property
    def online(self) -> bool:
        """Whether this device's birth stands on the broker."""
        return self._presence.online

    def will(self) -> tuple[str, bytes]:
        """Topic and payload of the last will, retained, QoS 1; it changes only before RenewWill."""
        return self._presence.will()

    def connected(self, now: float) -> list[DeviceCommand]:
        """Take up a new connection."""
        self._gateway = None
        self._damaged.clear()
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
        was_online = self.online
        commands = self._presence.step(now, PresenceInput.TICK)
        if was_online:
            up = self._gateway is not None and self._gateway.state == "up"
            commands += self._ask_again(now)
            return [*commands, *self._work.step(now, WorkInput.TICK_UP if up else WorkInput.TICK)]
        if not self.online:
            return commands
        names = (
            topics.gateway(self.site),
            topics.task(self.site, self.device),
            topics.down(self.site, self.device),
        )
        # Before the birth: a coordinator that comes in between then either hears the birth or is heard, and answered.
        return [Subscribe(names, 1), *commands, *self._work.step(now, WorkInput.ONLINE)]

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
            return self._sayable(self._dispatch(now, address, payload, retain=retain))
        except RemoteError as error:
            if isinstance(error, BadMessage) and address.kind in {"gateway", "task", "status"}:
                self._damaged.add(topic)
            return [Warned(topic[:200], error.rule, str(error))]

    def _ask_again(self, now: float) -> list[DeviceCommand]:
        """Has a message that came damaged sent once more: by the broker if it is whole there, else by who wrote it.

        A coordinator that hears the same birth a second time says the task again.
        """
        if not self._damaged or now < self._ask_at:
            return []
        damaged, self._damaged = self._damaged, set()
        self._ask_at = now + ASK_AGAIN_S
        return [Subscribe(tuple(sorted(damaged)), 1), self._presence.birth()]

    def finished(self, now: float, key: str, data: bytes) -> list[DeviceCommand]:
        """Hand over the update of a RunTask; the result of an abandoned one is ignored."""
        if key != self._work.key:
            return []
        return self._sayable(self._work.step(now, WorkInput.FINISHED, data))

    def stored(self, key: str, data: Readable) -> None:
        """Say where the update of a StoreUpdate is to be read from, so that it need not be in memory."""
        self._work.stored(key, data)

    def unreadable(self, now: float, error: RemoteError) -> list[DeviceCommand]:
        """Say that the payload of a PublishChunk could not be had."""
        return self._sayable(self._work.step(now, WorkInput.UNREADABLE, error))

    def failed(self, now: float, key: str, rule: str, message: str) -> list[DeviceCommand]:
        """Say that a RunTask cannot be done here; the failure of an abandoned one is ignored."""
        if key != self._work.key:
            return []
        return self._sayable(self._work.step(now, WorkInput.FAILED, (rule, message)))

    def unusable(self, now: float, key: str, message: str) -> list[DeviceCommand]:
        """Say that the weights at hand do not give those of a RunTask: they are fetched whole, and it is run again."""
        if key != self._work.key:
            return []
        return self._sayable(self._work.step(now, WorkInput.UNUSABLE, message))

    def telemetry(self, measured: Mapping[str, int | float | str]) -> list[DeviceCommand]:
        """Publish measurements, unless off line."""
        payload = messages.format_telemetry(measured)
        return self._sayable([Publish(topics.telemetry(self.site, self.device), payload, 0)])

    def stopping(self) -> list[DeviceCommand]:
        """Say goodbye on purpose, if on line; then disconnect cleanly, so that no will is sent."""
        return self._sayable([self._presence.goodbye()])

    def _sayable(self, commands: list[DeviceCommand]) -> list[DeviceCommand]:
        if self.online:
            return commands
        return [c for c in commands if not isinstance(c, Publish | Subscribe | Unsubscribe)]

    def _dispatch(self, now: float, address: topics.Address, payload: bytes, *, retain: bool) -> list[DeviceCommand]:
        if address.kind == "blob":
            return self._work.step(now, WorkInput.CHUNK, (address, payload))
        if address.kind == "gateway":
            return self._on_gateway(now, payload, retain=retain)
        if address.device == self.device and payload:
            return self._on_own(now, address.kind, payload, retain=retain)
        if address.device == self.device and address.kind == "task":
            return self._work.step(now, WorkInput.CLEARED)
        return []

    def _on_gateway(self, now: float, payload: bytes, *, retain: bool) -> list[DeviceCommand]:
        before, self._gateway = self._gateway, messages.parse_gateway(payload) if payload else None
        if self._gateway is not None:
            self._work.whole_bytes = self._gateway.whole_bytes
        if retain or self._gateway is None or self._gateway.state != "up":
            # A retained presence comes with our own connection, which has already begun what there is to begin.
            return []
        # The coordinator cannot tell a retained birth from that of a device that died together with the broker.
        again = self._work.step(now, WorkInput.ONLINE) if self._gateway != before else []
        return [self._presence.birth(), *again]

    def _on_own(self, now: float, kind: str, payload: bytes, *, retain: bool) -> list[DeviceCommand]:
        if kind == "status":
            happened = PresenceInput.RETAINED if retain else PresenceInput.LIVE
            return self._presence.step(now, happened, messages.parse_status(payload))
        if kind == "down":
            return self._work.step(now, WorkInput.DOWN, messages.parse_down(payload))
        return self._on_task(now, payload) if kind == "task" else []

    def _on_task(self, now: float, payload: bytes) -> list[DeviceCommand]:
        try:
            return self._work.take_up(now, payload)
        except (BadMessage, FutureVersion, NotMyTask):
            raise
        except RemoteError as error:
            warning = Warned("task", error.rule, str(error))
            name = _task_name(payload)
            return [warning] if name is None else [warning, self._work.fail(name, error.rule, str(error))]


def _task_name(payload: bytes) -> str | None:
    # A task that breaks a rule may still say its name, so that the coordinator learns why nothing comes.
    try:
        return text(load_object(payload[:MAX_MESSAGE_BYTES]), "task", cap=MAX_TASK_NAME)
    except (ValueError, RemoteError):
        return None
