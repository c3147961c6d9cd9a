"""MQTT through paho-mqtt, which boards have: one client object a connection, without paho's threads and reconnects.

Three habits of paho's make that worth it: an exception in a callback ends its network thread silently, everything
queued is sent again at once after a reconnect, and its back-off has no jitter. Here callbacks only append to a queue.
"""

import socket
import struct
import time
from collections import deque
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from edge_runtime.link_events import (
    HOPELESS,
    REFUSALS,
    Connected,
    Greeting,
    Happened,
    Lost,
    Message,
    Refused,
    Subscribed,
)
from edge_runtime.payload_socket import LARGE_BYTES, PayloadSocket

__all__ = ["PahoSpeaker"]

# Packets read before control goes back to the owner, whose clock must go on under a flood.
READS_A_POLL = 64
# More than the default 20, so that a blob's chunks are not sent in lockstep with their acknowledgements.
MAX_INFLIGHT = 128
MISC_S = 1.0

# paho turns the return codes of 3.1.1 into reason codes of 5.0.
_CONNACK_CODES = {132: 1, 133: 2, 136: 3, 134: 4, 135: 5}
# What paho's parser raises, beside its own error, for bytes that are no packets.
_MALFORMED = (struct.error, IndexError, ValueError, KeyError)


class _DialledClient(paho.Client):
    """paho's client over a socket that is connected already, so that connecting never blocks its owner."""

    dialled: PayloadSocket

    def _create_socket_connection(self) -> PayloadSocket:  # type: ignore[override]  # of a socket paho needs no more
        return self.dialled


class _Heard:
    """Notes what paho reports; does not know paho's client, so that one that is dropped goes at once, its queue too."""

    def __init__(self, sock: PayloadSocket) -> None:
        self.happened: deque[Happened] = deque()
        self.asked: dict[int, tuple[str, ...]] = {}
        self.unconfirmed: set[int] = set()
        self.lost = Lost("the broker closed the connection")
        self.next_misc_s = time.monotonic() + MISC_S
        self._socket = sock

    def on_connect(self, _client: object, _data: object, _flags: object, reason: Any, _more: object) -> None:
        """CONNACK came."""
        if not reason.is_failure:
            self.next_misc_s = time.monotonic() + MISC_S
            self.happened.append(Connected())
            return
        code = _CONNACK_CODES.get(reason.value, 0)
        self.lost = Lost(REFUSALS.get(code, str(reason)), code in HOPELESS)
        self.happened.append(Refused(code, self.lost.reason))

    def on_disconnect(self, _client: object, _data: object, _flags: object, reason: Any, _more: object) -> None:
        """Paho has closed the connection."""
        if "Keep alive" in str(reason):
            self.lost = Lost("the broker did not answer within the keepalive time")

    def on_message(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        """A message came."""
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = ""  # no topic of any protocol is empty, so whoever reads it will say so
        large = self._socket.take()
        self.happened.append(Message(topic, bytes(message.payload) if large is None else large, message.retain))

    def on_publish(self, client: paho.Client, _data: object, mid: int, _reason: object, _more: object) -> None:
        """PUBACK came; or a message of QoS 0 was sent while one waits for its PUBACK: else those are not told of."""
        self.unconfirmed.discard(mid)
        if not self.unconfirmed:  # paho makes three objects to tell of a message
            client.on_publish = None

    def on_subscribe(self, _client: object, _data: object, number: int, reasons: list[Any], _more: object) -> None:
        """SUBACK came."""
        topics = self.asked.pop(number, ())
        refused = tuple(t for t, reason in zip(topics, reasons, strict=False) if reason.is_failure)
        self.happened.append(Subscribed(tuple(t for t in topics if t not in refused), refused))


class PahoSpeaker:
    """A Speaker, see there; the first packet it queues is CONNECT."""

    def __init__(self, sock: socket.socket, greeting: Greeting) -> None:
        paho_socket = PayloadSocket(sock)
        self._heard = heard = _Heard(paho_socket)
        self.happened = heard.happened
        self._client = client = _DialledClient(
            CallbackAPIVersion.VERSION2,
            client_id=greeting.client_id,
            clean_session=True,
            protocol=paho.MQTTv311,
            reconnect_on_failure=False,
        )
        client.dialled = paho_socket
        if greeting.user is not None:
            client.username_pw_set(greeting.user, greeting.password)
        if greeting.will is not None:
            client.will_set(greeting.will[0], greeting.will[1], qos=1, retain=True)
        client.max_inflight_messages_set(MAX_INFLIGHT)
        client.on_connect = heard.on_connect
        client.on_disconnect = heard.on_disconnect
        client.on_message = heard.on_message
        client.on_subscribe = heard.on_subscribe
        # With this callback set, paho leaves every write to loop_write() instead of writing inside publish().
        client.on_socket_register_write = _on_socket_register_write
        # paho wants the names; the socket is there already.
        client.connect("broker", 1883, greeting.keepalive_s)

    @property
    def wants_write(self) -> bool:
        """Whether something waits for room in the socket."""
        return self._client.want_write()

    @property
    def busy(self) -> bool:
        """Whether a message that was handed over is not sent, or not confirmed."""
        return bool(self._heard.unconfirmed) or self._client.want_write()

    def publish(self, topic: str, payload: bytes, qos: int, *, retain: bool) -> None:
        """Queue a message."""
        number = self._client.publish(topic, payload, qos, retain).mid
        if qos:
            self._heard.unconfirmed.add(number)
            self._client.on_publish = self._heard.on_publish

    def subscribe(self, topics: tuple[str, ...], qos: int) -> None:
        """Queue a subscription to topics, in one packet."""
        _, number = self._client.subscribe([(topic, qos) for topic in topics])
        if number is not None:
            self._heard.asked[number] = topics

    def unsubscribe(self, topics: tuple[str, ...]) -> None:
        """Queue the end of subscriptions, in one packet."""
        self._client.unsubscribe(list(topics))

    def goodbye(self) -> None:
        """Queue DISCONNECT."""
        self._client.disconnect()

    def read(self) -> None:
        """Take what the socket has; called when there is something."""
        for _ in range(READS_A_POLL):
            before = len(self.happened)
            try:
                self._client.loop_read()
            except _MALFORMED as error:
                self.happened.append(Lost(f"the broker sent a malformed packet: {error}"))
                return
            # Only messages come in floods; after anything else the selector is asked again.
            if len(self.happened) == before or self._client.socket() is None or _is_chunk(self.happened[-1]):
                break
        self._notice()

    def write(self) -> None:
        """Write what is queued, as far as the socket takes it."""
        if self._client.want_write():
            self._client.loop_write()
            self._notice()

    def keep_alive(self, now_s: float) -> None:
        """Ping, and notice a broker that does not answer."""
        if now_s >= self._heard.next_misc_s:
            self._heard.next_misc_s = now_s + MISC_S
            self._client.loop_misc()
            self._notice()

    def next_duty_s(self) -> float:
        """When keep_alive is to be called next, by the monotonic clock."""
        return self._heard.next_misc_s

    def _notice(self) -> None:
        """A socket that paho has closed itself shows as none."""
        if self._client.socket() is None and not (self.happened and isinstance(self.happened[-1], Lost)):
            self.happened.append(self._heard.lost)


def _is_chunk(happened: Happened) -> bool:
    """Whether it is a message so large that it is worked off before the next one takes memory."""
    return isinstance(happened, Message) and len(happened.payload) > LARGE_BYTES


def _on_socket_register_write(_client: object, _data: object, _sock: object) -> None:
    """The owner asks wants_write before every wait; nothing has to be noted."""
