"""The bounds of the embedded broker, in one record."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client, and all together, may cost, and what is closed to all.

    Attributes:
        max_packet_bytes: Largest packet of a client that has logged in (a 256 KB chunk and its header fit).
        max_connect_bytes: Largest CONNECT, the only packet accepted before login.
        max_connections: Open connections; further ones are closed at once.
        connect_timeout_s: From the TCP connection to a complete CONNECT.
        stall_s: How long a subscriber whose queue is over half full may take nothing before it is cut off.
        in_flight: QoS 1 and 2 messages sent to one client and not yet acknowledged by it.
        queue_bytes: Payload bytes waiting for one client, on line or not.
        queue_messages: Messages waiting for one client.
        subscriptions: Filters of one client; further ones are answered 0x80.
        sessions: Sessions, on line and stored; further clients are answered CONNACK 3.
        session_expiry_s: How long the session of an absent client is kept.
        retained_bytes: All retained messages together, with 400 bytes a topic level.
        denied: Filters whose topics nobody may subscribe to; a SUBSCRIBE that could match one is answered 0x80.
    """

    max_packet_bytes: int = 300 * 1024
    max_connect_bytes: int = 16 * 1024
    max_connections: int = 2000
    connect_timeout_s: float = 10.0
    stall_s: float = 10.0
    in_flight: int = 64
    queue_bytes: int = 64 << 20
    queue_messages: int = 100_000
    subscriptions: int = 1000
    sessions: int = 10_000
    session_expiry_s: float = 86_400.0
    retained_bytes: int = 1 << 30
    denied: tuple[str, ...] = ()
