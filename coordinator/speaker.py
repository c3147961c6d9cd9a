"""MQTT as a gateway speaks it: thousands of small updates a second leave no time for a general client.

The packets are coordinator.mqtt's. An update of 10 KB costs paho-mqtt 100 to 200 us here, this a third of it.
"""

import socket
import time
from collections import deque

from coordinator import mqtt
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

__all__ = ["GatewaySpeaker"]

# The most that one read takes: what one poll brings is journalled together.
BUFFER_BYTES = 1 << 20
# Messages of QoS 1 that the broker has not confirmed; further ones wait here. Packet ids would allow 65,535.
MAX_INFLIGHT = 1024
# Sending goes on until the socket is full, but not for ever: the owner's clock must go on.
WRITES_A_POLL = 16
# Keepalive times that a broker which goes on sending may take to answer a ping: its answer waits behind what it sends.
PATIENCE = 4


class GatewaySpeaker:
    """A Speaker, see there; the first packet it queues is CONNECT.

    Attributes:
        _waiting: Publishes behind MAX_INFLIGHT unconfirmed ones, in order: (topic, payload, qos, retain).
        _inflight: Ids of publishes of QoS 1 that the broker has not confirmed.
        _asked: Topics of subscriptions that it has not confirmed, by packet id.
        _answered_s: When PINGRESP came last, or the connection began.
        _pinged_s: When PINGREQ was queued; None while none is unanswered.
        _asked_s: When all was sent that was queued before it, itself at last; None until then.
    """

    def __init__(self, sock: socket.socket, greeting: Greeting) -> None:
        self.happened: deque[Happened] = deque()
        self._socket = sock
        self._keepalive_s = greeting.keepalive_s
        self._reader = mqtt.Reader(BUFFER_BYTES)
        self._outgoing = mqtt.Outgoing()
        self._waiting: deque[tuple[str, bytes, int, bool]] = deque()
        self._inflight: set[int] = set()
        self._asked: dict[int, tuple[str, ...]] = {}
        self._heard_s = self._sent_s = self._answered_s = time.monotonic()
        self._pinged_s: float | None = None
        self._asked_s: float | None = None
        self._last_id = 0
        self._accepted = False
        login = None if greeting.user is None else mqtt.Login(greeting.user, greeting.password)
        self._outgoing.append(mqtt.connect(greeting.client_id, greeting.keepalive_s, greeting.will, login))

    @property
    def wants_write(self) -> bool:
        """Whether something waits for room in the socket."""
        return bool(self._outgoing)

    @property
    def busy(self) -> bool:
        """Whether a message that was handed over is not sent, or not confirmed."""
        return bool(self._outgoing or self._waiting or self._inflight)

    def publish(self, topic: str, payload: bytes, qos: int, *, retain: bool) -> None:
        """Queue a message."""
        # Whatever comes behind a message that waits must wait too: an upload's chunks come after its offer.
        if self._waiting or (qos and len(self._inflight) >= MAX_INFLIGHT):
            self._waiting.append((topic, payload, qos, retain))
        else:
            self._send(topic, payload, qos, retain=retain)

    def subscribe(self, topics: tuple[str, ...], qos: int) -> None:
        """Queue a subscription to topics, in one packet."""
        number = self._next_id()
        self._asked[number] = topics
        self._outgoing.append(mqtt.subscribe(number, topics, qos))

    def unsubscribe(self, topics: tuple[str, ...]) -> None:
        """Queue the end of subscriptions, in one packet."""
        self._outgoing.append(mqtt.unsubscribe(self._next_id(), topics))

    def goodbye(self) -> None:
        """Queue DISCONNECT; the broker then closes, which a reader of its last bytes sees."""
        self._outgoing.append(mqtt.DISCONNECT)

    def read(self) -> None:
        """Take what the socket has; called when there is something."""
        try:
            count = self._socket.recv_into(self._reader.space())
            packets = self._reader.filled(count)
        except BlockingIOError:
            return
        except OSError as error:
            self.happened.append(Lost(error.strerror or "the connection broke"))
            return
        except mqtt.BadPacket as error:
            self.happened.append(Lost(f"the broker sent a malformed packet: {error}"))
            return
        if count == 0:
            self.happened.append(Lost("the broker closed the connection"))
            return
        self._heard_s = time.monotonic()
        for packet in packets:
            self._take(packet)
        self._acknowledge()

    def write(self) -> None:
        """Write what is queued, as far as the socket takes it."""
        try:
            for _ in range(WRITES_A_POLL):
                if not self._outgoing:
                    return
                self._outgoing.sent(self._socket.sendmsg(self._outgoing.first()))
                self._sent_s = time.monotonic()
                if self._pinged_s is not None and self._asked_s is None and not self._outgoing:
                    self._asked_s = self._sent_s
        except BlockingIOError:
            return
        except OSError as error:
            self.happened.append(Lost(error.strerror or "the connection broke"))

    def keep_alive(self, now_s: float) -> None:
        """Ping every keepalive_s whatever else is said, and give up where no answer comes.

        While PINGREQ waits behind what a slow link takes, what it takes is a sign of life; then what comes is, but not
        for ever: a broker that has lost its place in our stream still sends, and will never hear us again.
        """
        if now_s < self.next_duty_s():
            return
        if self._pinged_s is None:
            self._pinged_s = now_s
            self._outgoing.append(mqtt.PINGREQ)
        else:
            self.happened.append(Lost("the broker did not answer within the keepalive time"))

    def next_duty_s(self) -> float:
        """When keep_alive is to be called next, by the monotonic clock."""
        if self._pinged_s is None:
            return self._answered_s + self._keepalive_s
        if self._asked_s is None:
            return max(self._heard_s, self._sent_s, self._pinged_s) + self._keepalive_s
        return min(max(self._heard_s, self._asked_s) + self._keepalive_s, self._asked_s + PATIENCE * self._keepalive_s)

    def _next_id(self) -> int:
        """A packet id that is not in use."""
        self._last_id = self._last_id % 0xFFFF + 1
        while self._last_id in self._inflight or self._last_id in self._asked:
            self._last_id = self._last_id % 0xFFFF + 1
        return self._last_id

    def _send(self, topic: str, payload: bytes, qos: int, *, retain: bool) -> None:
        number = self._next_id() if qos else 0
        if number:
            self._inflight.add(number)
        self._outgoing.append(mqtt.publish_head(topic, len(payload), number, retain=retain), payload)

    def _acknowledge(self) -> None:
        acks = self._reader.acks
        if acks:
            self._outgoing.append(bytes(acks))
            acks.clear()
        while self._waiting and len(self._inflight) < MAX_INFLIGHT:
            topic, payload, qos, retain = self._waiting.popleft()
            self._send(topic, payload, qos, retain=retain)

    def _take(self, packet: mqtt.Packet) -> None:
        match packet:
            case Message() if self._accepted:
                self.happened.append(packet)
            case mqtt.Puback(number):
                self._inflight.discard(number)
            case mqtt.Suback(number, codes):
                topics = self._asked.pop(number, ())
                refused = tuple(t for t, code in zip(topics, codes, strict=False) if code & 0x80)
                self.happened.append(Subscribed(tuple(t for t in topics if t not in refused), refused))
            case mqtt.Pingresp():
                self._answered_s, self._pinged_s, self._asked_s = time.monotonic(), None, None
            case mqtt.Connack(code) if not self._accepted:
                self._take_connack(code)
            case Message() | mqtt.Connack():
                self.happened.append(Lost("the broker sent a malformed packet: not what may come first, or twice"))

    def _take_connack(self, code: int) -> None:
        if code == 0:
            self._accepted = True
            self.happened.append(Connected())
            return
        reason = REFUSALS.get(code, f"the broker refuses the connection with code {code}")
        self.happened += (Refused(code, reason), Lost(reason, code in HOPELESS))
