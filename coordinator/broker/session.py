"""One client's session: what waits for it, what is in flight both ways. No I/O, no clock."""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from coordinator.broker.packets import Puback, Pubcomp, Pubrec, Pubrel, encode, publish_head

if TYPE_CHECKING:
    from coordinator.broker.access import Access
    from coordinator.broker.limits import Limits
    from coordinator.broker.topics import Message

__all__ = ["Offer", "Session"]

# What a waiting message costs besides its payload: the tuple and its place in the queue, rounded up.
ENTRY_BYTES = 256

Buffers = tuple[bytes | memoryview, ...]


class Offer(Enum):
    """What became of a message offered to a session."""

    QUEUED = "queued"
    DROPPED = "dropped"  # QoS 0 only: nobody is there, or the queue is full
    OVERFLOW = "overflow"  # QoS 1 or 2 and the queue is full: the session cannot keep its promise and must end


class _Delivery(NamedTuple):
    message: Message
    qos: int
    retain: bool
    charge_bytes: int
    order: int  # of arrival, so that the two queues are emptied in the order they were filled


class _InFlight(NamedTuple):
    delivery: _Delivery
    released: bool  # PUBREC has come: only PUBREL may be sent again


class Session:
    """The state the standard calls a session (MQTT-3.1.2-5), and the queue in front of it.

    Messages of QoS 1 and 2 wait for a place in the in-flight window; QoS 0 has its own queue, so that a client which
    acknowledges nothing still gets it. Each queue is delivered in order, which is the order the standard asks for.

    Attributes:
        subscriptions: Filter -> granted QoS.
        received: Identifiers of incoming QoS 2 messages that were passed on and not yet released.
        queued_bytes: Charged bytes in both queues, at most ``limits.queue_bytes``.
        access: What its user may do; None where no access list holds.
        trespasses: Messages that were not its own to publish.
    """

    def __init__(self, client_id: str, limits: Limits, *, clean: bool) -> None:
        self.client_id = client_id
        self.clean = clean
        self.online = False
        self.subscriptions: dict[str, int] = {}
        self.received: set[int] = set()
        self.queued_bytes = 0
        self.dropped = 0
        self.access: Access | None = None
        self.trespasses = 0
        self._limits = limits
        self._unacknowledged: deque[_Delivery] = deque()  # QoS 0, waiting
        self._waiting: deque[_Delivery] = deque()  # QoS 1 and 2, waiting
        self._in_flight: dict[int, _InFlight] = {}  # in the order they were sent, or released
        self._again: deque[int] = deque()  # identifiers to send again after a reconnect
        self._last_id = 0
        self._order = 0

    def __len__(self) -> int:
        """Messages waiting, not counting those in flight."""
        return len(self._waiting) + len(self._unacknowledged)

    @property
    def in_flight(self) -> int:
        """Messages sent with QoS 1 or 2 and not yet acknowledged."""
        return len(self._in_flight)

    @property
    def fill(self) -> float:
        """How full the queue is, 0 to 1, by bytes or by messages, whichever is more."""
        return max(self.queued_bytes / self._limits.queue_bytes, len(self) / self._limits.queue_messages)

    def connected(self) -> None:
        """The client is there: what was in flight is sent again, in order (MQTT-4.4.0-1)."""
        self.online = True
        self._again = deque(self._in_flight)

    def disconnected(self) -> None:
        """The client is gone: QoS 0 is forgotten, the rest waits."""
        self.online = False
        self.queued_bytes -= sum(d.charge_bytes for d in self._unacknowledged)
        self._unacknowledged.clear()
        self._again.clear()

    def offer(self, message: Message, qos: int, *, retained: bool = False) -> Offer:
        """Queue a message for this client.

        Args:
            message: The message; its payload is kept by reference.
            qos: Granted QoS; the delivery has the lower of this and the message's.
            retained: It comes from the retained store. Its payload is then in memory anyway and is not charged,
                else one wide SUBSCRIBE would overflow its own queue.
        """
        qos = min(qos, message.qos)
        if qos == 0 and not self.online:
            return Offer.DROPPED
        charge = ENTRY_BYTES + (0 if retained else len(message.payload))
        crowded = len(self) >= self._limits.queue_messages and not retained
        if crowded or self.queued_bytes + charge > self._limits.queue_bytes:
            self.dropped += 1
            return Offer.OVERFLOW if qos else Offer.DROPPED
        self._order += 1
        self.queued_bytes += charge
        queue = self._waiting if qos else self._unacknowledged
        queue.append(_Delivery(message, qos, retained, charge, self._order))
        return Offer.QUEUED

    def next_packet(self) -> Buffers | None:
        """Take the next packet to write, as buffers to be written one after the other; None when nothing may go."""
        while self._again:
            packet_id = self._again.popleft()
            if packet_id in self._in_flight:  # else it was acknowledged before its turn came
                return self._send_again(packet_id)
        free = len(self._in_flight) < self._limits.in_flight
        waiting = self._waiting[0].order if self._waiting and free else None
        if self._unacknowledged and (waiting is None or self._unacknowledged[0].order < waiting):
            return self._send(self._unacknowledged.popleft(), 0)
        if waiting is None:
            return None
        delivery = self._waiting.popleft()
        packet_id = self._free_id()
        self._in_flight[packet_id] = _InFlight(delivery, released=False)
        return self._send(delivery, packet_id)

    def acknowledge(self, packet: Puback | Pubrec | Pubcomp) -> bytes:
        """Take an acknowledgement of a delivery to this client.

        Returns:
            The answer to write: PUBREL to PUBREC, else nothing. An identifier that is not in flight is answered the
            same way, since the client may be repeating itself after a reconnect.
        """
        known = self._in_flight.get(packet.packet_id)
        match packet:
            case Puback() if known and known.delivery.qos == 1:
                del self._in_flight[packet.packet_id]
            case Pubcomp() if known and known.released:
                del self._in_flight[packet.packet_id]
            case Pubrec():
                if known and known.delivery.qos == 2:
                    # Moved to the end: PUBRELs are repeated in the order of the PUBRECs (MQTT-4.6.0-4).
                    del self._in_flight[packet.packet_id]
                    self._in_flight[packet.packet_id] = known._replace(released=True)
                return encode(Pubrel(packet.packet_id))
            case _:
                pass
        return b""

    def _send(self, delivery: _Delivery, packet_id: int, *, dup: bool = False) -> Buffers:
        if not dup:
            self.queued_bytes -= delivery.charge_bytes
        message = delivery.message
        head = publish_head(message.topic_utf8, len(message.payload), delivery.qos, packet_id, delivery.retain, dup)
        return (head, message.payload) if message.payload else (head,)

    def _send_again(self, packet_id: int) -> Buffers:
        known = self._in_flight[packet_id]
        if known.released:
            return (encode(Pubrel(packet_id)),)
        return self._send(known.delivery, packet_id, dup=True)

    def _free_id(self) -> int:
        """The next identifier that is not in flight; the window is far smaller than the 65,535 there are."""
        while True:
            self._last_id = self._last_id % 65_535 + 1
            if self._last_id not in self._in_flight:
                return self._last_id
