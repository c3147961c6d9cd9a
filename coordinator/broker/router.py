"""The broker without sockets: sessions, subscriptions, retained messages. No I/O, no clock."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from coordinator.broker.packets import SUBSCRIBE_FAILED
from coordinator.broker.session import Offer, Session
from coordinator.broker.topics import Message, Retained, Subscriptions, overlap, retained_charge

if TYPE_CHECKING:
    from collections.abc import Iterable

    from coordinator.broker.limits import Limits

__all__ = ["RetainedFull", "Router", "TooManySessions"]

log = logging.getLogger("edge_runtime.broker")


class TooManySessions(Exception):
    """No further session can be kept."""


class RetainedFull(Exception):
    """A retained message would exceed the store's cap."""


class Router:
    """Who is known, who wants what, and what is kept."""

    def __init__(self, limits: Limits) -> None:
        self.sessions: dict[str, Session] = {}
        self.retained = Retained()
        self._limits = limits
        self._subscriptions = Subscriptions()

    def open(self, client_id: str, *, clean: bool) -> tuple[Session, bool]:
        """Find or make the session of a client that logs in.

        Returns:
            The session, and whether stored state was found (the SESSION PRESENT flag).

        Raises:
            TooManySessions: The cap is reached and this client is new.
        """
        old = self.sessions.get(client_id)
        if old is not None and not (clean or old.clean):
            return old, True
        if old is not None:
            self.discard(old)
        if len(self.sessions) >= self._limits.sessions:
            raise TooManySessions(f"{len(self.sessions)} sessions are kept already")
        session = self.sessions[client_id] = Session(client_id, self._limits, clean=clean)
        return session, False

    def discard(self, session: Session) -> None:
        """Forget a session and its subscriptions."""
        if self.sessions.get(session.client_id) is session:
            del self.sessions[session.client_id]
            for name in session.subscriptions:
                self._subscriptions.remove(name, session.client_id)

    def publish(self, message: Message, *, retain: bool) -> tuple[list[Session], list[Session]]:
        """Give a message to all who subscribe to its topic, once each.

        Args:
            message: What to deliver.
            retain: Keep it for later subscribers too, or clear the topic when the payload is empty.

        Returns:
            The sessions that have something to send now, and those that overflowed and must be ended.

        Raises:
            RetainedFull: Nothing was kept and nobody got the message.
        """
        if retain:
            self._retain(message)
        ready: list[Session] = []
        overflowed: list[Session] = []
        for client_id, qos in self._subscriptions.match(message.topic).items():
            session = self.sessions[client_id]
            offer = session.offer(message, qos)
            if offer is Offer.QUEUED:
                ready.append(session)
            elif offer is Offer.OVERFLOW:
                overflowed.append(session)
            elif session.online and session.dropped == 1:
                log.warning("client %r takes messages too slowly: QoS 0 messages are dropped", client_id)
        return ready, overflowed

    def subscribe(self, session: Session, filters: Iterable[tuple[str, int]]) -> tuple[list[int], bool]:
        """Subscribe a session, and queue the retained messages that match.

        Returns:
            One SUBACK code a filter (the granted QoS, or 0x80 when the session has too many), and whether the queue
            overflowed, so that the session must be ended.
        """
        codes = []
        overflowed = False
        for name, qos in filters:
            if not self._may_subscribe(session, name):
                codes.append(SUBSCRIBE_FAILED)
                continue
            session.subscriptions[name] = qos
            self._subscriptions.add(name, session.client_id, qos)
            for message in self.retained.match(name):
                overflowed |= session.offer(message, qos, retained=True) is Offer.OVERFLOW
            codes.append(qos)
        return codes, overflowed

    def unsubscribe(self, session: Session, filters: Iterable[str]) -> None:
        """Take subscriptions back; messages already queued are still delivered."""
        for name in filters:
            if session.subscriptions.pop(name, None) is not None:
                self._subscriptions.remove(name, session.client_id)

    def _may_subscribe(self, session: Session, name: str) -> bool:
        limits = self._limits
        closed = any(overlap(name, denied) for denied in limits.denied)
        if closed or (session.access is not None and not session.access.may_subscribe(name)):
            log.warning("client %r may not subscribe to %r", session.client_id, name)
            return False
        if name not in session.subscriptions and len(session.subscriptions) >= limits.subscriptions:
            log.warning("client %r: more than %d subscriptions", session.client_id, limits.subscriptions)
            return False
        return True

    def _retain(self, message: Message) -> None:
        old = self.retained.get(message.topic)
        growth = retained_charge(message) - (retained_charge(old) if old else 0)
        if message.payload and self.retained.charged_bytes + growth > self._limits.retained_bytes:
            raise RetainedFull(
                f"retaining {message.topic!r} needs {growth} bytes more than the {self.retained.charged_bytes} of "
                f"{self._limits.retained_bytes} in use; clear retained topics or raise --retained-mb"
            )
        self.retained.set(message)
