"""A device's presence: its generation, its birth message, and the rule that one id is one device.

OFFLINE, then ASKING whether the broker keeps an earlier status, then ONLINE with our own birth; STOPPED when an older
device of the same id is alive. The table at the end of Presence is the whole machine.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, ClassVar

from edge_runtime.wire import messages, topics
from edge_runtime.wire.events import DeviceCommand, KeepGen, Publish, RenewWill, Stop, Subscribe

__all__ = ["ALIVE", "Presence", "PresenceInput"]

ASK_S = 0.3
# No process that is gone says so often on one connection that it is there.
ALIVE = 50


class PresenceInput(Enum):
    """What can happen to a presence."""

    CONNECTED = auto()
    SUBSCRIBED = auto()
    DISCONNECTED = auto()
    RETAINED = auto()
    LIVE = auto()
    TICK = auto()


class _State(Enum):
    OFFLINE = auto()
    ASKING = auto()
    ONLINE = auto()
    STOPPED = auto()


@dataclass
class Presence:
    """Who this device is on the wire.

    gen is a guess, one more than what the disk had, until the broker was asked once; the will of the first connection
    carries the guess, so a wrong one costs a second connection (RenewWill).
    """

    site: str
    device: str
    boot: str
    gen: int
    examples: int
    info: Mapping[str, Any]
    _state: _State = _State.OFFLINE
    _settled: bool = False
    _seen_gen: int = -1
    _greet_at: float | None = None
    _met: int = 0  # births of an older device on this connection

    @property
    def online(self) -> bool:
        """Whether the birth stands on the broker."""
        return self._state is _State.ONLINE

    def will(self) -> tuple[str, bytes]:
        """Topic and payload of the last will, retained, QoS 1."""
        return topics.status(self.site, self.device), self._status("lost")

    def birth(self, answers: str | None = None) -> Publish:
        """The message that says that the device is there, in answer to the status of that boot if there is one."""
        return Publish(topics.status(self.site, self.device), self._status("online", answers), 1, retain=True)

    def goodbye(self) -> Publish:
        """The message that says that the device stops on purpose."""
        return Publish(topics.status(self.site, self.device), self._status("stopped"), 1, retain=True)

    def step(self, now: float, happened: PresenceInput, status: messages.Status | None = None) -> list[DeviceCommand]:
        """Take an input; a pair that the table does not name changes nothing."""
        handler = self._table.get((self._state, happened))
        return [] if handler is None else handler(self, now, status)

    def _ask(self, _now: float, _status: messages.Status | None) -> list[DeviceCommand]:
        self._state = _State.ASKING
        self._greet_at, self._met = None, 0
        return [Subscribe((topics.status(self.site, self.device),), 1)]

    def _wait(self, now: float, _status: messages.Status | None) -> list[DeviceCommand]:
        if self._greet_at is None:
            self._greet_at = now + ASK_S
        return []

    def _note(self, now: float, status: messages.Status | None) -> list[DeviceCommand]:
        assert status is not None, "a status input carries one"
        if status.boot != self.boot:
            self._seen_gen = max(self._seen_gen, status.gen)
        self._greet_at = now
        return []

    def _greet(self, now: float, _status: messages.Status | None) -> list[DeviceCommand]:
        if self._greet_at is None or now < self._greet_at:
            return []
        commands: list[DeviceCommand] = []
        if not self._settled:
            guess, self.gen = self.gen, max(self.gen, self._seen_gen + 1)
            self._settled = True
            commands.append(KeepGen(self.gen))
            if self.gen != guess:
                self._state = _State.OFFLINE
                return [*commands, RenewWill()]
        self._state = _State.ONLINE
        return [*commands, self.birth()]

    def _compare(self, _now: float, status: messages.Status | None) -> list[DeviceCommand]:
        assert status is not None, "a status input carries one"
        if status.boot == self.boot and status.state != "lost":
            return []  # our own words
        older = (status.gen, status.boot) < (self.gen, self.boot)
        self._met += older and status.state == "online"
        if older and (status.answers == self.boot or self._met >= ALIVE):
            self._state = _State.STOPPED
            message = (
                f"another device is on line as {self.device!r} (boot {status.boot}); "
                "give this one an id of its own, or stop the other"
            )
            return [Stop("DuplicateDevice", message)]
        # A will that came late, or a device that started after us: our birth must stand again, and stops the latter.
        # Or what an older one said of itself: that may be the last words of this device's previous process, still on
        # their way through the broker. If it lives, it answers our birth by name, and that stops us; one of an older
        # version answers without a name, again and again.
        return [self.birth(None if status.boot == self.boot else status.boot)]

    def _repeat(self, _now: float, status: messages.Status | None) -> list[DeviceCommand]:
        assert status is not None, "a status input carries one"
        return [] if status.boot == self.boot and status.state == "online" else [self.birth()]

    def _leave(self, _now: float, _status: messages.Status | None) -> list[DeviceCommand]:
        self._state = _State.OFFLINE
        return []

    def _status(self, state: str, answers: str | None = None) -> bytes:
        return messages.format_status(messages.Status(self.boot, self.gen, state, self.examples, self.info, answers))

    _table: ClassVar[
        dict[
            tuple[_State, PresenceInput],
            Callable[["Presence", float, messages.Status | None], list[DeviceCommand]],
        ]
    ] = {
        (_State.OFFLINE, PresenceInput.CONNECTED): _ask,
        (_State.ASKING, PresenceInput.SUBSCRIBED): _wait,
        (_State.ASKING, PresenceInput.RETAINED): _note,
        (_State.ASKING, PresenceInput.LIVE): _note,
        (_State.ASKING, PresenceInput.TICK): _greet,
        (_State.ASKING, PresenceInput.DISCONNECTED): _leave,
        (_State.ONLINE, PresenceInput.RETAINED): _repeat,
        (_State.ONLINE, PresenceInput.LIVE): _compare,
        (_State.ONLINE, PresenceInput.DISCONNECTED): _leave,
    }
