"""What a link tells its owner, and what it wants of the MQTT client that speaks over its sockets."""

import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

__all__ = [
    "HOPELESS",
    "REFUSALS",
    "Connected",
    "Disconnected",
    "Greeting",
    "Happened",
    "LinkEvent",
    "Lost",
    "Message",
    "Refused",
    "Speak",
    "Speaker",
    "Subscribed",
]

# MQTT 3.1.1, table 3.1.
REFUSALS = {
    1: "the broker does not speak MQTT 3.1.1",
    2: "the broker does not accept this client id",
    3: "the broker is not available",
    4: "bad user name or password; check the URL, mqtt://USER:PASSWORD@HOST",
    5: "not authorised; the broker wants credentials or does not allow this client",
}
HOPELESS = frozenset({1, 2, 4, 5})  # the answer will be the same


@dataclass(frozen=True)
class Connected:
    """The broker has accepted the connection; nothing is subscribed."""


@dataclass(frozen=True)
class Disconnected:
    """The connection is gone, or an attempt failed; the next one begins after retry_s."""

    reason: str
    retry_s: float


@dataclass(frozen=True)
class Refused:
    """The broker answered and said no: code is MQTT 3.1.1's CONNACK return code. A Disconnected follows."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Message:
    """A message came; retain says that the broker had kept it."""

    topic: str
    payload: bytes
    retain: bool


@dataclass(frozen=True)
class Subscribed:
    """The broker has confirmed the subscription to these topics; `refused` are those it did not grant."""

    topics: tuple[str, ...]
    refused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lost:
    """The connection is of no further use; hopeless when the next one will end in the same way."""

    reason: str
    hopeless: bool = False


LinkEvent = Connected | Disconnected | Refused | Message | Subscribed
Happened = Connected | Refused | Message | Subscribed | Lost


@dataclass(frozen=True)
class Greeting:
    """What CONNECT says: who is there, for how long silence is life, the will (topic, payload), and the login."""

    client_id: str
    keepalive_s: int
    will: tuple[str, bytes] | None
    user: str | None
    password: str | None


class Speaker(Protocol):
    """An MQTT 3.1.1 client over one TCP connection that stands; its owner waits for the socket and has the clock.

    Clean session; wills are retained, of QoS 1. Nothing here blocks, and after Lost nothing is asked of it any more.

    Attributes:
        happened: What happened, oldest first; the owner takes it from there.
    """

    happened: deque[Happened]

    @property
    def wants_write(self) -> bool:
        """Whether something waits for room in the socket."""

    @property
    def busy(self) -> bool:
        """Whether a message that was handed over is not sent, or not confirmed."""

    def publish(self, topic: str, payload: bytes, qos: int, *, retain: bool) -> None:
        """Queue a message."""

    def subscribe(self, topics: tuple[str, ...], qos: int) -> None:
        """Queue a subscription to topics, in one packet."""

    def unsubscribe(self, topics: tuple[str, ...]) -> None:
        """Queue the end of subscriptions, in one packet."""

    def goodbye(self) -> None:
        """Queue DISCONNECT."""

    def read(self) -> None:
        """Take what the socket has; called when there is something."""

    def write(self) -> None:
        """Write what is queued, as far as the socket takes it."""

    def keep_alive(self, now_s: float) -> None:
        """Ping, and notice a broker that does not answer."""

    def next_duty_s(self) -> float:
        """When keep_alive is to be called next, by the monotonic clock."""


Speak = Callable[[socket.socket, Greeting], Speaker]
