"""One MQTT connection, driven by its owner: poll() does all the work and returns what happened.

paho-mqtt speaks the protocol; this module owns its socket's readiness, the clock and reconnecting. Three habits of
paho's make that worth it: an exception in a callback ends its network thread silently, everything queued is sent again
at once after a reconnect, and its back-off has no jitter. So there are no threads here, callbacks only append to a
queue, and every connection is a new paho client: what was not sent is forgotten, for the sessions above say it again.
"""

import contextlib
import errno
import os
import random
import selectors
import socket
import struct
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from edge_runtime.broker_url import parse_url

__all__ = [
    "Connected",
    "Disconnected",
    "Link",
    "LinkEvent",
    "Message",
    "Refused",
    "Subscribed",
    "retry_delay_s",
]

CONNECT_TIMEOUT_S = 5.0
MIN_DELAY_S = 0.5
MAX_DELAY_S = 30.0
# A short outage ends for everybody soon after it ends, well within the time a coordinator waits for lost devices.
SHORT_OUTAGE_S, SHORT_DELAY_S = 60.0, 5.0
# Packets read before control goes back to the owner, whose clock must go on under a flood.
READS_A_POLL = 64
# More than the default 20, so that a blob's chunks are not sent in lockstep with their acknowledgements.
MAX_INFLIGHT = 128
_MISC_S = 1.0

_REFUSALS = {
    1: "the broker does not speak MQTT 3.1.1",
    2: "the broker does not accept this client id",
    3: "the broker is not available",
    4: "bad user name or password; check the URL, mqtt://USER:PASSWORD@HOST",
    5: "not authorised; the broker wants credentials or does not allow this client",
}
_HOPELESS = frozenset({1, 2, 4, 5})
# paho turns the return codes of 3.1.1 into reason codes of 5.0.
_CONNACK_CODES = {132: 1, 133: 2, 136: 3, 134: 4, 135: 5}
# What paho's parser raises, beside its own error, for bytes that are no packets.
_MALFORMED = (struct.error, IndexError, ValueError, KeyError)


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


@dataclass(frozen=True)
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


LinkEvent = Connected | Disconnected | Refused | Message | Subscribed


class _DialledClient(paho.Client):
    """paho's client over a socket that is connected already, so that connecting never blocks its owner."""

    dialled: socket.socket

    def _create_socket_connection(self) -> socket.socket:
        return self.dialled


class Link:
    """One connection to a broker, kept up by poll().

    Not connected -> dialling (TCP, not blocking) -> greeting (CONNECT sent) -> connected. Any failure leads back to not
    connected, with the delay of retry_delay_s: a fleet that lost its broker does not come back as one. Publishing,
    subscribing and unsubscribing act only while connected, and say so.

    Attributes:
        bytes_up: Topic and payload bytes handed over for sending.
        bytes_down: Topic and payload bytes received.
        connects: Connections that the broker has accepted.
    """

    def __init__(self, url: str, client_id: str, will: tuple[str, bytes] | None = None, keepalive_s: int = 30) -> None:
        """Prepare a link; the first poll() begins to connect.

        Args:
            url: mqtt://[user:password@]host[:port].
            client_id: Unique on the broker.
            will: Topic and payload that the broker publishes, retained, QoS 1, when the connection is lost.
            keepalive_s: The broker declares the client dead after one and a half times this long without a sign.

        Raises:
            BadUrl, TlsNotSupported: The URL.
        """
        self.bytes_up = 0
        self.bytes_down = 0
        self.connects = 0
        self._url = parse_url(url)
        self._client_id = client_id
        self._will = will
        self._keepalive_s = keepalive_s
        self._client: _DialledClient | None = None
        self._dialling: socket.socket | None = None
        self._events: deque[LinkEvent] = deque()
        self._pending: dict[int, tuple[str, ...]] = {}
        self._connected = False
        self._failures = 0
        self._down_since: float | None = None
        self._hopeless = False
        self._closed = False
        self._unfinished = 0
        self._lost_because = ""
        self._next_dial = time.monotonic()
        self._give_up_at = 0.0
        self._next_misc = 0.0
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        for end in (self._wake_read, self._wake_write):
            os.set_blocking(end, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ)

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted the connection and it is not known to be lost."""
        return self._connected

    def set_will(self, will: tuple[str, bytes] | None) -> None:
        """Set the will of the connections to come."""
        self._will = will

    def poll(self, timeout_s: float) -> list[LinkEvent]:
        """Do what there is to do and wait at most timeout_s for the first thing to happen.

        Returns:
            What happened, oldest first; [] after a timeout or a wake().
        """
        now = time.monotonic()
        if self._client is None and self._dialling is None and now >= self._next_dial:
            self._dial(now)
        if not self._events:
            self._wait(max(0.0, min(timeout_s, self._until_next_duty(now))))
        self._do_duties(time.monotonic())
        events = list(self._events)
        self._events.clear()
        return events

    def publish(self, topic: str, payload: bytes, qos: int, *, retain: bool = False) -> bool:
        """Queue a message; False, and nothing done, while not connected."""
        if self._client is None or not self._connected:
            return False
        self._unfinished += 1
        self._client.publish(topic, payload, qos, retain)
        self.bytes_up += len(topic) + len(payload)
        return True

    def subscribe(self, topics: tuple[str, ...], qos: int) -> bool:
        """Subscribe to topics in one packet; Subscribed tells when the broker has; False while not connected."""
        if self._client is None or not self._connected:
            return False
        _, mid = self._client.subscribe([(topic, qos) for topic in topics])
        if mid is not None:
            self._pending[mid] = topics
        return True

    def unsubscribe(self, topics: tuple[str, ...]) -> bool:
        """Unsubscribe from topics in one packet; False while not connected."""
        if self._client is None or not self._connected:
            return False
        self._client.unsubscribe(list(topics))
        return True

    def wake(self) -> None:
        """Make a poll() that waits return now; safe from other threads and from signal handlers."""
        if self._closed:
            return  # the numbers of the pipe may be another file's by now
        try:
            os.write(self._wake_write, b"w")
        except BlockingIOError:
            return  # the pipe is full of wake-ups that nobody has read yet

    def reconnect(self, timeout_s: float = 1.0) -> None:
        """Disconnect cleanly, without the will, and connect again at once."""
        self._disconnect_cleanly(timeout_s)
        self._failures = 0
        self._next_dial = time.monotonic()

    def give_up(self, reason: str) -> None:
        """Cut a connection that is of no use, will and all, and try again as late as after a refused login."""
        if self._client is not None:
            self._lost_because, self._hopeless = reason, True
            self._cut(self._client)
            self._reap(self._client)

    def close(self, timeout_s: float = 1.0) -> None:
        """Send what is queued and DISCONNECT, so that the broker forgets the will; at most timeout_s.

        The link is of no use afterwards; closing it again does nothing.
        """
        if self._closed:
            return
        self._disconnect_cleanly(timeout_s)
        self._closed = True
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    # Connecting.

    def _dial(self, now: float) -> None:
        # Looking up a name may block for as long as the system's resolver does; a numeric address never blocks.
        # As bytes a name is looked up as it is; for text Python loads the tables of Unicode, 0.4 MB.
        host = self._url.host.encode() if self._url.host.isascii() else self._url.host
        try:
            found = socket.getaddrinfo(host, self._url.port, type=socket.SOCK_STREAM)
            family, kind, protocol, _, address = found[self._failures % len(found)]
            sock = socket.socket(family, kind, protocol)
        except OSError as error:
            self._fail(f"{self._url.host}: {error.strerror}")
            return
        sock.setblocking(False)  # noqa: FBT003 the method has no keyword
        self._dialling = sock
        self._give_up_at = now + CONNECT_TIMEOUT_S
        self._selector.register(sock, selectors.EVENT_WRITE)
        code = sock.connect_ex(address)
        if code not in {0, errno.EINPROGRESS}:
            self._drop_dialling(os.strerror(code))

    def _greet(self, sock: socket.socket) -> None:
        """The TCP connection stands or has failed; one that stands goes to a new paho client, which sends CONNECT."""
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._drop_dialling(os.strerror(code))
            return
        self._selector.unregister(sock)
        self._dialling = None
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pending.clear()
        self._unfinished = 0
        self._lost_because = "the broker closed the connection"
        self._client = self._new_client(sock)
        self._client.connect(self._url.host, self._url.port, self._keepalive_s)

    def _new_client(self, sock: socket.socket) -> _DialledClient:
        client = _DialledClient(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            clean_session=True,
            protocol=paho.MQTTv311,
            reconnect_on_failure=False,
        )
        client.dialled = sock
        if self._url.user is not None:
            client.username_pw_set(self._url.user, self._url.password)
        if self._will is not None:
            client.will_set(self._will[0], self._will[1], qos=1, retain=True)
        client.max_inflight_messages_set(MAX_INFLIGHT)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.on_socket_open = self._on_socket_open
        client.on_socket_close = self._on_socket_close
        # With this callback set, paho leaves every write to loop_write() instead of writing inside publish().
        client.on_socket_register_write = _on_socket_register_write
        return client

    def _drop_dialling(self, reason: str) -> None:
        if self._dialling is not None:
            self._selector.unregister(self._dialling)
            self._dialling.close()
            self._dialling = None
        self._fail(f"{self._url.host}:{self._url.port}: {reason}")

    def _fail(self, reason: str) -> None:
        """Note a lost or refused connection and draw the delay before the next attempt."""
        now = time.monotonic()
        self._down_since = now if self._down_since is None else self._down_since
        delay = retry_delay_s(self._failures, now - self._down_since, random.random())  # noqa: S311 jitter, not a secret
        if self._hopeless:
            delay = max(delay, MAX_DELAY_S / 2)  # the answer will be the same: no hammering
        self._hopeless = False
        self._failures += 1
        self._next_dial = now + delay
        self._connected = False
        self._events.append(Disconnected(reason, delay))

    # Waiting and serving.

    def _wait(self, timeout_s: float) -> None:
        sock = None if self._client is None else self._client.socket()
        if self._client is not None and sock is not None:
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._client.want_write() else 0)
            self._selector.modify(sock, wanted)
        for key, ready in self._selector.select(timeout_s):
            if key.fileobj == self._wake_read:
                os.read(self._wake_read, 4096)
            elif key.fileobj is self._dialling and self._dialling is not None:
                self._greet(self._dialling)
            elif self._client is not None:
                self._serve(self._client, ready)

    def _serve(self, client: _DialledClient, ready: int) -> None:
        if ready & selectors.EVENT_WRITE:
            client.loop_write()
        if ready & selectors.EVENT_READ:
            for _ in range(READS_A_POLL):
                before = self.bytes_down
                self._read(client)
                # Only messages come in floods; after anything else the selector is asked again.
                if self.bytes_down == before or client.socket() is None:
                    break
        self._reap(client)

    def _read(self, client: _DialledClient) -> None:
        try:
            client.loop_read()
        except _MALFORMED as error:
            self._lost_because = f"the broker sent a malformed packet: {error}"
            self._cut(client)

    def _do_duties(self, now: float) -> None:
        if self._dialling is not None and now >= self._give_up_at:
            self._drop_dialling(f"no answer in {CONNECT_TIMEOUT_S:g} s")
        client = self._client
        if client is None:
            return
        if not self._connected and now >= self._give_up_at:
            self._lost_because = f"no CONNACK in {CONNECT_TIMEOUT_S:g} s; is this an MQTT broker?"
            self._cut(client)
        elif now >= self._next_misc:
            self._next_misc = now + _MISC_S
            client.loop_misc()
        self._reap(client)

    def _until_next_duty(self, now: float) -> float:
        if self._client is not None and self._connected:
            return self._next_misc - now
        if self._client is not None or self._dialling is not None:
            return self._give_up_at - now
        return self._next_dial - now

    def _cut(self, client: _DialledClient) -> None:
        """End a connection that is of no use; paho notices at the next read and cleans up."""
        with contextlib.suppress(OSError):  # it may be gone already, which is what is wanted
            client.dialled.shutdown(socket.SHUT_RDWR)
        reason = self._lost_because
        client.loop_read()
        self._lost_because = reason

    def _reap(self, client: _DialledClient) -> None:
        if client is self._client and client.socket() is None:
            self._client = None
            self._fail(f"{self._url.host}:{self._url.port}: {self._lost_because}")

    def _disconnect_cleanly(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        client = self._client
        while client is not None and self._connected and self._unfinished > 0 and time.monotonic() < deadline:
            self._wait(deadline - time.monotonic())
        if client is not None and client.socket() is not None:
            client.disconnect()
            while client.socket() is not None and time.monotonic() < deadline:
                self._wait(deadline - time.monotonic())
            if client.socket() is not None:
                self._cut(client)
        if self._dialling is not None:
            self._drop_dialling("closed")
        self._client, self._connected = None, False
        self._events.clear()

    # Callbacks: they only note what happened.

    def _on_connect(self, _client: object, _data: object, _flags: object, reason: Any, _more: object) -> None:
        if not reason.is_failure:
            self._connected, self._failures, self._down_since = True, 0, None
            self.connects += 1
            self._next_misc = time.monotonic() + _MISC_S
            self._events.append(Connected())
            return
        code = _CONNACK_CODES.get(reason.value, 0)
        self._hopeless = code in _HOPELESS
        self._lost_because = _REFUSALS.get(code, str(reason))
        self._events.append(Refused(code, self._lost_because))

    def _on_disconnect(self, _client: object, _data: object, _flags: object, reason: Any, _more: object) -> None:
        self._connected = False
        if "Keep alive" in str(reason):
            self._lost_because = "the broker did not answer within the keepalive time"

    def _on_message(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = ""  # no topic of any protocol is empty, so whoever reads it will say so
        self.bytes_down += len(topic) + len(message.payload)
        self._events.append(Message(topic, bytes(message.payload), message.retain))

    def _on_publish(self, _client: object, _data: object, _mid: int, _reason: object, _more: object) -> None:
        self._unfinished -= 1

    def _on_subscribe(self, _client: object, _data: object, mid: int, reasons: list[Any], _more: object) -> None:
        topics = self._pending.pop(mid, ())
        refused = tuple(t for t, reason in zip(topics, reasons, strict=False) if reason.is_failure)
        self._events.append(Subscribed(tuple(t for t in topics if t not in refused), refused))

    def _on_socket_open(self, _client: object, _data: object, sock: Any) -> None:
        self._selector.register(sock, selectors.EVENT_READ)

    def _on_socket_close(self, _client: object, _data: object, sock: Any) -> None:
        self._selector.unregister(sock)


def retry_delay_s(failures: int, down_s: float, fraction: float) -> float:
    """Give the delay before the next attempt: full jitter over an exponentially growing range.

    Args:
        failures: Attempts that failed in a row before this one.
        down_s: How long there has been no connection.
        fraction: Uniform in 0 .. 1.

    Returns:
        Seconds, at least MIN_DELAY_S: `fraction` of MIN_DELAY_S * 2**(failures + 1), or of a cap where that is less:
        SHORT_DELAY_S in the first SHORT_OUTAGE_S of an outage, MAX_DELAY_S after it.

    Source: M. Brooker, "Exponential backoff and jitter", 2015, "full jitter"; with a floor.
    """
    cap = SHORT_DELAY_S if down_s < SHORT_OUTAGE_S else MAX_DELAY_S
    ceiling = min(cap, MIN_DELAY_S * 2.0 ** min(failures + 1, 16))
    return max(MIN_DELAY_S, fraction * ceiling)


def _on_socket_register_write(_client: object, _data: object, _sock: object) -> None:
    """The selector asks want_write() before every wait; nothing has to be noted."""
