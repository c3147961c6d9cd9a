"""One MQTT connection, driven by its owner: poll() does all the work and returns what happened.

This module owns the socket, the clock and reconnecting; a Speaker (edge_runtime/link_events.py) has the protocol:
paho-mqtt on boards. No thread and no queue outlives a connection: what was not sent when it broke is forgotten, for the
sessions above say it again.
"""

import errno
import os
import random
import selectors
import socket
import time
from collections import deque

from edge_runtime.broker_url import parse_url
from edge_runtime.link_events import (
    Connected,
    Disconnected,
    Greeting,
    LinkEvent,
    Lost,
    Message,
    Refused,
    Speak,
    Speaker,
    Subscribed,
)
from edge_runtime.paho_speaker import PahoSpeaker

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
MAX_CLOSE_S = 8.0
MIN_DELAY_S = 0.5
MAX_DELAY_S = 30.0
# A short outage ends for everybody soon after it ends, well within the time a coordinator waits for lost devices.
SHORT_OUTAGE_S, SHORT_DELAY_S = 60.0, 5.0


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
        *,
        speak: Speak = PahoSpeaker,
    ) -> None:
        """Prepare a link; the first poll() begins to connect.

        Args:
            url: mqtt://[user:password@]host[:port].
            client_id: Unique on the broker.
            will: Topic and payload that the broker publishes, retained, QoS 1, when the connection is lost.
            keepalive_s: The broker declares the client dead after one and a half times this long without a sign.
            speak: The MQTT client, made anew for every connection.

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
        self._speak = speak
        self._speaker: Speaker | None = None
        self._socket: socket.socket | None = None
        self._watched = 0
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
        if self._socket is None and now >= self._next_dial:
            self._dial(now)
        if self._speaker is not None:
            self._speaker.write()
            self._take(self._speaker)
        if not self._events:
            self._wait(max(0.0, min(timeout_s, self._until_next_duty(now))))
        self._do_duties(time.monotonic())
        events = list(self._events)
        self._events.clear()
        return events

    def publish(self, topic: str, payload: bytes, qos: int, *, retain: bool = False) -> bool:
        """Queue a message; False, and nothing done, while not connected."""
        if self._speaker is None or not self._connected:
            return False
        self._speaker.publish(topic, payload, qos, retain=retain)
        self.bytes_up += len(topic) + len(payload)
        return True

    def congested(self) -> bool:
        """Write what is queued, as far as the socket takes it; whether some of it is left."""
        if self._speaker is not None:
            self._speaker.write()
            self._take(self._speaker)
        return self._speaker is not None and self._speaker.wants_write

    def subscribe(self, topics: tuple[str, ...], qos: int) -> bool:
        """Subscribe to topics in one packet; Subscribed tells when the broker has; False while not connected."""
        if self._speaker is None or not self._connected:
            return False
        self._speaker.subscribe(topics, qos)
        return True

    def unsubscribe(self, topics: tuple[str, ...]) -> bool:
        """Unsubscribe from topics in one packet; False while not connected."""
        if self._speaker is None or not self._connected:
            return False
        self._speaker.unsubscribe(topics)
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
        if self._speaker is not None:
            self._lose(Lost(reason, hopeless=True))

    def close(self, timeout_s: float = 1.0) -> None:
        """Send what is queued and DISCONNECT, so that the broker forgets the will.

        Gives up when nothing moves for timeout_s, and what is queued after MAX_CLOSE_S: ten thousand last answers
        take a few seconds.

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
        self._socket, self._watched = sock, selectors.EVENT_WRITE
        self._give_up_at = now + CONNECT_TIMEOUT_S
        self._selector.register(sock, selectors.EVENT_WRITE)
        code = sock.connect_ex(address)
        if code not in {0, errno.EINPROGRESS}:
            self._lose(Lost(os.strerror(code)))

    def _greet(self, sock: socket.socket) -> None:
        """The TCP connection stands or has failed; over one that stands goes CONNECT."""
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._lose(Lost(os.strerror(code)))
            return
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        greeting = Greeting(self._client_id, self._keepalive_s, self._will, self._url.user, self._url.password)
        self._speaker = self._speak(sock, greeting)
        self._speaker.write()
        self._take(self._speaker)

    def _lose(self, lost: Lost) -> None:
        """End the connection, or the attempt at one, without a word, so that the broker publishes the will."""
        self._drop()
        self._fail(f"{self._url.host}:{self._url.port}: {lost.reason}", hopeless=lost.hopeless)

    def _drop(self) -> None:
        if self._socket is not None:
            self._selector.unregister(self._socket)
            self._socket.close()
        self._socket, self._speaker, self._connected = None, None, False

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

    def _wait(self, timeout_s: float) -> bool:
        """Serve what is ready within timeout_s; whether anything moved."""
        moved = False
        if self._socket is not None and self._speaker is not None:
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._speaker.wants_write else 0)
            if wanted != self._watched:
                self._watched = wanted
                self._selector.modify(self._socket, wanted)
        for key, ready in self._selector.select(timeout_s):
            if key.fileobj == self._wake_read:
                os.read(self._wake_read, 4096)
            elif self._speaker is not None:
                self._serve(self._speaker, ready)
                moved = True
            elif self._socket is not None:
                self._greet(self._socket)
        return moved

    def _serve(self, speaker: Speaker, ready: int) -> None:
        if ready & selectors.EVENT_WRITE:
            speaker.write()
            self._take(speaker)
        if ready & selectors.EVENT_READ and speaker is self._speaker:
            speaker.read()
            self._take(speaker)

    def _take(self, speaker: Speaker) -> None:
        """Note what happened; after Lost there is nothing more to come."""
        while speaker.happened:
            match speaker.happened.popleft():
                case Lost() as lost:
                    self._lose(lost)
                    return
                case Connected() as connected:
                    self._connected, self._failures, self._down_since = True, 0, None
                    self.connects += 1
                    self._events.append(connected)
                case Message() as message:
                    self.bytes_down += len(message.topic) + len(message.payload)
                    self._events.append(message)
                case other:
                    self._events.append(other)

    def _do_duties(self, now: float) -> None:
        if self._socket is None:
            return
        if not self._connected and now >= self._give_up_at:
            asked = "answer" if self._speaker is None else "CONNACK"
            hint = "" if self._speaker is None else "; is this an MQTT broker?"
            self._lose(Lost(f"no {asked} in {CONNECT_TIMEOUT_S:g} s{hint}"))
        elif self._speaker is not None and self._connected:
            self._speaker.keep_alive(now)
            self._take(self._speaker)

    def _until_next_duty(self, now: float) -> float:
        if self._speaker is not None and self._connected:
            return self._speaker.next_duty_s() - now
        return (self._next_dial if self._socket is None else self._give_up_at) - now

    def _disconnect_cleanly(self, timeout_s: float) -> None:
        speaker = self._speaker
        if speaker is not None and self._connected:
            speaker.write()
            last = time.monotonic() + MAX_CLOSE_S
            deadline = time.monotonic() + timeout_s
            while speaker.busy and speaker is self._speaker and time.monotonic() < deadline:
                if self._wait(deadline - time.monotonic()):
                    deadline = min(last, time.monotonic() + timeout_s)
            deadline = time.monotonic() + timeout_s
            speaker.goodbye()
            speaker.write()
            self._take(speaker)
            # Until the broker closes: a socket that is closed with bytes unread takes back what it has sent.
            while speaker is self._speaker and time.monotonic() < deadline:
                self._wait(deadline - time.monotonic())
        self._drop()
        self._events.clear()


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
