"""One MQTT connection, driven by its owner: poll() does all the work and returns what happened.

edge_runtime.mqtt has the packets; this module owns the socket, the clock and reconnecting. No thread and no queue
outlives a connection: what was not sent when it broke is forgotten, for the sessions above say it again.
"""

import errno
import os
import random
import selectors
import socket
import time
from collections import deque
from dataclasses import dataclass

from edge_runtime import mqtt
from edge_runtime.broker_url import parse_url
from edge_runtime.mqtt import Message

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
# Room for a chunk and its head: a board holds no more of a stream than what it is about to use.
BUFFER_BYTES = 72 * 1024
# Messages of QoS 1 that the broker has not confirmed; further ones wait here. Packet ids would allow 65,535.
MAX_INFLIGHT = 1024
# Sending goes on until the socket is full, but not for ever: the owner's clock must go on.
_WRITES_A_POLL = 16

_REFUSALS = {
    1: "the broker does not speak MQTT 3.1.1",
    2: "the broker does not accept this client id",
    3: "the broker is not available",
    4: "bad user name or password; check the URL, mqtt://USER:PASSWORD@HOST",
    5: "not authorised; the broker wants credentials or does not allow this client",
}
_HOPELESS = frozenset({1, 2, 4, 5})


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
class Subscribed:
    """The broker has confirmed the subscription to these topics; `refused` are those it did not grant."""

    topics: tuple[str, ...]
    refused: tuple[str, ...] = ()


LinkEvent = Connected | Disconnected | Refused | Message | Subscribed


@dataclass
class _Connection:
    """A TCP connection that stands: CONNECT was sent, and what follows of it.

    Attributes:
        waiting: Publishes behind MAX_INFLIGHT unconfirmed ones, in order: (topic, payload, qos, retain).
        inflight: Ids of publishes of QoS 1 that the broker has not confirmed.
        asked: Topics of subscriptions that it has not confirmed, by packet id.
        pinged_at: When PINGREQ was queued; None while none is unanswered.
    """

    socket: socket.socket
    reader: mqtt.Reader
    outgoing: mqtt.Outgoing
    waiting: deque[tuple[str, bytes, int, bool]]
    inflight: set[int]
    asked: dict[int, tuple[str, ...]]
    heard_at: float
    sent_at: float
    pinged_at: float | None = None
    last_id: int = 0
    writable: bool = True

    def next_id(self) -> int:
        """A packet id that is not in use."""
        self.last_id = self.last_id % 0xFFFF + 1
        while self.last_id in self.inflight or self.last_id in self.asked:
            self.last_id = self.last_id % 0xFFFF + 1
        return self.last_id


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

    def __init__(
        self,
        url: str,
        client_id: str,
        will: tuple[str, bytes] | None = None,
        keepalive_s: int = 30,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        """Prepare a link; the first poll() begins to connect.

        Args:
            url: mqtt://[user:password@]host[:port].
            client_id: Unique on the broker.
            will: Topic and payload that the broker publishes, retained, QoS 1, when the connection is lost.
            keepalive_s: The broker declares the client dead after one and a half times this long without a sign.
            buffer_bytes: The most that one poll reads.

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
        self._buffer_bytes = buffer_bytes
        self._connection: _Connection | None = None
        self._dialling: socket.socket | None = None
        self._events: deque[LinkEvent] = deque()
        self._connected = False
        self._failures = 0
        self._down_since: float | None = None
        self._closed = False
        self._next_dial = time.monotonic()
        self._give_up_at = 0.0
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
        if self._connection is None and self._dialling is None and now >= self._next_dial:
            self._dial(now)
        if self._connection is not None:
            self._write(self._connection)
        if not self._events:
            self._wait(max(0.0, min(timeout_s, self._until_next_duty(now))))
        self._do_duties(time.monotonic())
        events = list(self._events)
        self._events.clear()
        return events

    def publish(self, topic: str, payload: bytes, qos: int, *, retain: bool = False) -> bool:
        """Queue a message; False, and nothing done, while not connected."""
        if self._connection is None or not self._connected:
            return False
        self._queue(self._connection, topic, payload, qos, retain=retain)
        self.bytes_up += len(topic) + len(payload)
        return True

    def subscribe(self, topics: tuple[str, ...], qos: int) -> bool:
        """Subscribe to topics in one packet; Subscribed tells when the broker has; False while not connected."""
        connection = self._connection
        if connection is None or not self._connected:
            return False
        number = connection.next_id()
        connection.asked[number] = topics
        connection.outgoing.append(mqtt.subscribe(number, topics, qos))
        return True

    def unsubscribe(self, topics: tuple[str, ...]) -> bool:
        """Unsubscribe from topics in one packet; False while not connected."""
        if self._connection is None or not self._connected:
            return False
        self._connection.outgoing.append(mqtt.unsubscribe(self._connection.next_id(), topics))
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
        if self._connection is not None:
            self._lose(reason, hopeless=True)

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
        """The TCP connection stands or has failed; over one that stands goes CONNECT."""
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._drop_dialling(os.strerror(code))
            return
        self._dialling = None
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.modify(sock, selectors.EVENT_READ)
        now = time.monotonic()
        self._connection = _Connection(
            sock, mqtt.Reader(self._buffer_bytes), mqtt.Outgoing(), deque(), set(), {}, heard_at=now, sent_at=now
        )
        login = None if self._url.user is None else mqtt.Login(self._url.user, self._url.password)
        self._connection.outgoing.append(mqtt.connect(self._client_id, self._keepalive_s, self._will, login))
        self._write(self._connection)

    def _drop_dialling(self, reason: str) -> None:
        if self._dialling is not None:
            self._selector.unregister(self._dialling)
            self._dialling.close()
            self._dialling = None
        self._fail(f"{self._url.host}:{self._url.port}: {reason}")

    def _lose(self, reason: str, *, hopeless: bool = False) -> None:
        """End the connection without a word, so that the broker publishes the will."""
        self._drop_connection()
        self._fail(f"{self._url.host}:{self._url.port}: {reason}", hopeless=hopeless)

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._selector.unregister(self._connection.socket)
            self._connection.socket.close()
        self._connection, self._connected = None, False

    def _fail(self, reason: str, *, hopeless: bool = False) -> None:
        """Note a lost or refused connection and draw the delay before the next attempt."""
        now = time.monotonic()
        self._down_since = now if self._down_since is None else self._down_since
        delay = retry_delay_s(self._failures, now - self._down_since, random.random())  # noqa: S311 jitter, not a secret
        if hopeless:
            delay = max(delay, MAX_DELAY_S / 2)  # the answer will be the same: no hammering
        self._failures += 1
        self._next_dial = now + delay
        self._events.append(Disconnected(reason, delay))

    # Waiting and serving.

    def _wait(self, timeout_s: float) -> None:
        for key, ready in self._selector.select(timeout_s):
            if key.fileobj == self._wake_read:
                os.read(self._wake_read, 4096)
            elif key.fileobj is self._dialling and self._dialling is not None:
                self._greet(self._dialling)
            elif self._connection is not None:
                self._serve(self._connection, ready)

    def _serve(self, connection: _Connection, ready: int) -> None:
        if ready & selectors.EVENT_WRITE:
            self._write(connection)
        if ready & selectors.EVENT_READ and connection is self._connection:
            self._read(connection)

    def _write(self, connection: _Connection) -> None:
        """Write until the socket is full; then the selector tells when there is room."""
        full = False
        try:
            for _ in range(_WRITES_A_POLL):
                if not connection.outgoing:
                    break
                connection.outgoing.sent(connection.socket.sendmsg(connection.outgoing.first()))
                connection.sent_at = time.monotonic()
        except BlockingIOError:
            full = True
        except OSError as error:
            self._lose(error.strerror or "the connection broke")
            return
        if connection.writable is full:
            connection.writable = not full
            self._selector.modify(connection.socket, selectors.EVENT_READ | (selectors.EVENT_WRITE if full else 0))

    def _read(self, connection: _Connection) -> None:
        try:
            count = connection.socket.recv_into(connection.reader.space())
            packets = connection.reader.filled(count)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(error.strerror or "the connection broke")
            return
        except mqtt.BadPacket as error:
            self._lose(f"the broker sent a malformed packet: {error}")
            return
        if count == 0:
            self._lose("the broker closed the connection")
            return
        connection.heard_at = time.monotonic()
        for packet in packets:
            self._take(connection, packet)
            if connection is not self._connection:
                return
        self._acknowledge(connection)

    def _acknowledge(self, connection: _Connection) -> None:
        acks = connection.reader.acks
        if acks:
            connection.outgoing.append(bytes(acks))
            acks.clear()
        while connection.waiting and len(connection.inflight) < MAX_INFLIGHT:
            topic, payload, qos, retain = connection.waiting.popleft()
            self._send(connection, topic, payload, qos, retain=retain)

    def _take(self, connection: _Connection, packet: mqtt.Packet) -> None:
        match packet:
            case Message() if self._connected:
                self.bytes_down += len(packet.topic) + len(packet.payload)
                self._events.append(packet)
            case mqtt.Puback(number):
                connection.inflight.discard(number)
            case mqtt.Suback(number, codes):
                topics = connection.asked.pop(number, ())
                refused = tuple(t for t, code in zip(topics, codes, strict=False) if code & 0x80)
                self._events.append(Subscribed(tuple(t for t in topics if t not in refused), refused))
            case mqtt.Pingresp():
                connection.pinged_at = None
            case mqtt.Connack(code) if not self._connected:
                self._take_connack(code)
            case Message() | mqtt.Connack():
                self._lose("the broker sent a malformed packet: not what may come first, or twice")

    def _take_connack(self, code: int) -> None:
        if code == 0:
            self._connected, self._failures, self._down_since = True, 0, None
            self.connects += 1
            self._events.append(Connected())
            return
        reason = _REFUSALS.get(code, f"the broker refuses the connection with code {code}")
        self._events.append(Refused(code, reason))
        self._lose(reason, hopeless=code in _HOPELESS)

    def _queue(self, connection: _Connection, topic: str, payload: bytes, qos: int, *, retain: bool) -> None:
        # Whatever comes behind a message that waits must wait too: an upload's chunks come after its offer.
        if connection.waiting or (qos and len(connection.inflight) >= MAX_INFLIGHT):
            connection.waiting.append((topic, payload, qos, retain))
        else:
            self._send(connection, topic, payload, qos, retain=retain)

    @staticmethod
    def _send(connection: _Connection, topic: str, payload: bytes, qos: int, *, retain: bool) -> None:
        number = connection.next_id() if qos else 0
        if number:
            connection.inflight.add(number)
        connection.outgoing.append(mqtt.publish_head(topic, len(payload), number, retain=retain), payload)

    def _do_duties(self, now: float) -> None:
        if self._dialling is not None and now >= self._give_up_at:
            self._drop_dialling(f"no answer in {CONNECT_TIMEOUT_S:g} s")
        connection = self._connection
        if connection is None:
            return
        if not self._connected and now >= self._give_up_at:
            self._lose(f"no CONNACK in {CONNECT_TIMEOUT_S:g} s; is this an MQTT broker?")
        elif self._connected:
            self._keep_alive(connection, now)

    def _keep_alive(self, connection: _Connection, now: float) -> None:
        """Ping when nothing was sent or heard for keepalive_s; bytes that move either way are a sign of life too."""
        signs = max(connection.heard_at, connection.sent_at)
        if connection.pinged_at is None:
            if now - min(connection.heard_at, connection.sent_at) >= self._keepalive_s:
                connection.pinged_at = now
                connection.outgoing.append(mqtt.PINGREQ)
                self._write(connection)
        elif now - max(signs, connection.pinged_at) >= self._keepalive_s:
            self._lose("the broker did not answer within the keepalive time")

    def _until_next_duty(self, now: float) -> float:
        connection = self._connection
        if connection is not None and self._connected:
            if connection.pinged_at is None:
                return min(connection.heard_at, connection.sent_at) + self._keepalive_s - now
            return max(connection.heard_at, connection.sent_at, connection.pinged_at) + self._keepalive_s - now
        if connection is not None or self._dialling is not None:
            return self._give_up_at - now
        return self._next_dial - now

    def _disconnect_cleanly(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        connection = self._connection
        if connection is not None and self._connected:
            self._write(connection)
            while self._busy(connection) and time.monotonic() < deadline:
                self._wait(deadline - time.monotonic())
            connection.outgoing.append(mqtt.DISCONNECT)
            self._write(connection)
            # Until the broker closes: a socket that is closed with bytes unread takes back what it has sent.
            while connection is self._connection and time.monotonic() < deadline:
                self._wait(deadline - time.monotonic())
        if self._dialling is not None:
            self._drop_dialling("closed")
        self._drop_connection()
        self._events.clear()

    def _busy(self, connection: _Connection) -> bool:
        """Whether something that was handed over is not sent, or not confirmed, and still may be."""
        unsent = bool(connection.outgoing or connection.waiting or connection.inflight)
        return unsent and connection is self._connection


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
