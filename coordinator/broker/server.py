"""The embedded broker's shell: listening socket, timers, and what each packet of a client does."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import secrets
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from coordinator.broker import packets as p
from coordinator.broker.access import overreach
from coordinator.broker.connection import Connection
from coordinator.broker.packets import MalformedPacket, Packet, UnsupportedVersion
from coordinator.broker.passwords import Passwords, verify
from coordinator.broker.probe import VERSION_TOPIC
from coordinator.broker.router import RetainedFull, Router, TooManySessions
from coordinator.broker.topics import Message

if TYPE_CHECKING:
    from collections.abc import Iterator

    from coordinator.broker.access import AccessList
    from coordinator.broker.limits import Limits
    from coordinator.broker.session import Session

__all__ = ["Server", "listen"]

log = logging.getLogger("edge_runtime.broker")

SCRATCH_BYTES = 64 * 1024
KEEPALIVE_GRACE = 1.5  # MQTT-3.1.2-24
HOLD_ABOVE, RELEASE_BELOW = 0.5, 0.25  # of a subscriber's queue; the rest is room for what is already on its way


def listen(host: str, port: int) -> socket.socket:
    """Open the listening socket.

    Args:
        host: Address or name to bind.
        port: 0 takes any free one.

    Raises:
        OSError: The address is in use or not ours.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.settimeout(0)
        sock.bind(address)
        sock.listen(1024)
    except OSError:
        sock.close()
        raise
    return sock


class Server:
    """Connections, their logins, keep-alive, wills, and the back-pressure between publishers and subscribers.

    A subscriber whose queue is over half full makes its publishers wait: they are not read from until the queue is down
    to a quarter. If it takes nothing for ``limits.stall_s``, or its queue fills up, its session is ended, and its next
    login says so (SESSION PRESENT 0): a message of QoS 1 or 2 is never dropped from a session that lives on.
    """

    def __init__(
        self,
        sock: socket.socket,
        limits: Limits,
        passwords: Passwords | None = None,
        access: AccessList | None = None,
    ) -> None:
        self._sock = sock
        self._limits = limits
        self._passwords = passwords
        self._access = access
        self._router = Router(limits)
        self._loop = asyncio.get_running_loop()
        self._scratch = memoryview(bytearray(SCRATCH_BYTES))
        self._connections: set[Connection] = set()
        self._online: dict[str, Connection] = {}
        self._absent_since: dict[str, float] = {}  # stored sessions, by client id
        self._behind: dict[str, set[Connection]] = {}  # client id -> publishers that wait for its queue
        self._checking: dict[Connection, list[Packet]] = {}  # login in the worker: packets that came with it
        self._worker = ThreadPoolExecutor(os.cpu_count(), "passwords") if passwords is not None else None
        about = Message(VERSION_TOPIC, VERSION_TOPIC.encode(), b"edge-runtime embedded 3.1.1", 0)
        self._router.publish(about, retain=True)

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set, then close everything."""
        limits = self._limits
        tick_s = min(1.0, limits.connect_timeout_s / 4, limits.stall_s / 4, limits.session_expiry_s / 4)
        self._loop.add_reader(self._sock, self._accept)
        try:
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), tick_s)
                self._tick(self._loop.time())
        finally:
            self._loop.remove_reader(self._sock)
            self._sock.close()
            for connection in list(self._connections):
                connection.close()
            if self._worker is not None:
                self._worker.shutdown(wait=False, cancel_futures=True)

    # Connections

    def _accept(self) -> None:
        for _ in range(64):  # of one turn of the loop
            try:
                sock, _address = self._sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}:
                    raise
                log.warning("no further connections for a second: %s; raise 'ulimit -n'", error.strerror)
                self._loop.remove_reader(self._sock)
                self._loop.call_later(1.0, self._accept_again)
                return
            if len(self._connections) >= self._limits.max_connections:
                log.warning("connection refused: %d are open (--max-connections)", len(self._connections))
                sock.close()
                continue
            self._welcome(sock)

    def _accept_again(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.add_reader(self._sock, self._accept)

    def _welcome(self, sock: socket.socket) -> None:
        sock.settimeout(0)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections.add(
                Connection(sock, self._loop, self._limits, self._scratch, self._take, self._sent, self._end)
            )
        except OSError:  # the peer is gone already
            sock.close()

    def _end(self, connection: Connection, reason: str) -> None:
        """Close a connection; publish its will if it has not said goodbye. Ending it twice does nothing."""
        if connection.closed:
            return
        connection.close()
        self._connections.discard(connection)
        self._checking.pop(connection, None)
        for waiting in self._behind.values():
            waiting.discard(connection)
        session, will = connection.session, connection.will
        log.info("%s: %s", _who(connection), reason)
        if session is not None:
            self._log_out(session)
        if will is not None:
            connection.will = None
            self._publish_will(will)

    def _publish_will(self, will: p.Will) -> None:
        if will.topic.startswith("$SYS/"):
            return
        message = Message(will.topic, will.topic.encode(), will.payload, will.qos)
        try:
            self._route(message, None, retain=will.retain)
        except RetainedFull as error:  # nobody is there to be disconnected for it
            log.warning("the will on %r is passed on but not kept: %s", will.topic, error)
            self._route(message, None, retain=False)

    def _log_out(self, session: Session) -> None:
        session.disconnected()
        self._online.pop(session.client_id, None)
        self._release(session.client_id)
        if session.clean:
            self._router.discard(session)
        else:
            self._absent_since[session.client_id] = self._loop.time()

    def _tick(self, now: float) -> None:
        limits = self._limits
        for connection in [c for c in self._connections if not c.paused]:
            silent_s = now - connection.heard_s
            if connection.session is None:
                if now - connection.opened_s > limits.connect_timeout_s:
                    self._end(connection, f"no CONNECT within {limits.connect_timeout_s:g} s")
            elif connection.keepalive_s and silent_s > connection.keepalive_s * KEEPALIVE_GRACE:
                self._end(connection, f"silent for {silent_s:.1f} s, keep-alive {connection.keepalive_s} s")
        self._cut_off_stalled(now)
        for client_id, since in list(self._absent_since.items()):
            if now - since > limits.session_expiry_s:
                self._forget(client_id, f"absent for {limits.session_expiry_s:g} s")

    # Packets

    def _take(self, connection: Connection, packets: Iterator[Packet]) -> None:
        try:
            for packet in packets:
                if connection in self._checking:
                    self._checking[connection].append(packet)
                else:
                    self._handle(connection, packet)
                if connection.closed:
                    return
        except UnsupportedVersion as error:
            if connection.session is None:
                self._refuse(connection, p.BAD_VERSION, str(error))
            self._end(connection, str(error))
        except (MalformedPacket, RetainedFull) as error:
            # MQTT 3.1.1 has no packet that says why: closing is the one answer a server may give (section 4.8).
            log.warning("%s is disconnected: %s", _who(connection), error)
            self._end(connection, str(error))

    def _handle(self, connection: Connection, packet: Packet) -> None:
        session = connection.session
        if session is None:
            assert isinstance(packet, p.Connect), "the parser accepts nothing else before login"
            self._connect(connection, packet)
            return
        match packet:
            case p.Publish():
                self._publish(connection, session, packet)
            case p.Puback() | p.Pubrec() | p.Pubcomp():
                connection.progress_s = self._loop.time()
                if answer := session.acknowledge(packet):
                    connection.write(answer)
                connection.wake()
            case p.Pubrel():
                session.received.discard(packet.packet_id)
                connection.write(p.encode(p.Pubcomp(packet.packet_id)))
            case p.Subscribe():
                self._subscribe(connection, session, packet)
            case p.Unsubscribe():
                self._router.unsubscribe(session, packet.filters)
                connection.write(p.encode(p.Unsuback(packet.packet_id)))
            case p.Pingreq():
                connection.write(p.encode(p.Pingresp()))
            case p.Disconnect():
                connection.will = None  # MQTT-3.14.4-3
                self._end(connection, "disconnected")
            case _:
                raise MalformedPacket("MQTT-3.1.0-2", f"{type(packet).__name__} from a client that has logged in")

    def _publish(self, connection: Connection, session: Session, packet: p.Publish) -> None:
        if packet.qos == 2 and packet.packet_id in session.received:
            connection.write(p.encode(p.Pubrec(packet.packet_id)))  # sent again: it was passed on before
            return
        message = Message(packet.topic, packet.topic.encode(), packet.payload, packet.qos)
        if packet.topic.startswith("$SYS/"):
            log.info("%s: a publish to %r is ignored, $SYS is the broker's", session.client_id, packet.topic)
        elif session.access is not None and not session.access.may_publish(packet.topic):
            session.trespasses += 1
            if session.trespasses == 1:
                log.warning("%s may not publish to %r; this and the like are ignored", _who(connection), packet.topic)
        else:
            self._route(message, connection, retain=packet.retain)
        if packet.qos == 1:
            connection.write(p.encode(p.Puback(packet.packet_id)))
        elif packet.qos == 2:
            session.received.add(packet.packet_id)
            connection.write(p.encode(p.Pubrec(packet.packet_id)))

    def _subscribe(self, connection: Connection, session: Session, packet: p.Subscribe) -> None:
        codes, overflowed = self._router.subscribe(session, packet.filters)
        connection.write(p.encode(p.Suback(packet.packet_id, tuple(codes))))
        connection.wake()
        if overflowed:
            self._cut_off(connection, "asked for more retained messages than its queue holds")

    def _route(self, message: Message, publisher: Connection | None, *, retain: bool) -> None:
        ready, overflowed = self._router.publish(message, retain=retain)
        for session in ready:
            subscriber = self._online.get(session.client_id)
            if subscriber is not None:
                subscriber.wake()
                if publisher is not None and session.fill > HOLD_ABOVE:
                    self._hold(publisher, subscriber, session.client_id)
        for session in overflowed:
            subscriber = self._online.get(session.client_id)
            reason = f"its queue of {len(session)} messages, {session.queued_bytes} bytes, is full"
            if subscriber is not None:
                # Not from here: its will could fill up the next queue, and so on, as deep as there are clients.
                self._loop.call_soon(self._cut_off, subscriber, reason)
            else:
                self._forget(session.client_id, reason)

    # Login

    def _connect(self, connection: Connection, packet: p.Connect) -> None:
        connection.parser.only = 0
        connection.parser.max_packet_bytes = self._limits.max_packet_bytes
        if not packet.client_id and not packet.clean_session:
            self._refuse(connection, p.BAD_CLIENT_ID, "an empty client id needs a clean session")
        elif self._worker is None or self._passwords is None:
            self._log_in(connection, packet)
        else:
            # The hash is slow by design: check it off the loop, and hear no more from this client until then.
            self._checking[connection] = []
            connection.pause()
            job = self._loop.run_in_executor(self._worker, verify, self._passwords, packet.username, packet.password)
            job.add_done_callback(lambda done: self._checked(connection, packet, done))

    def _checked(self, connection: Connection, packet: p.Connect, done: asyncio.Future[bool]) -> None:
        early = self._checking.pop(connection, None)
        if early is None or done.cancelled():
            return
        if not done.result():
            self._refuse(connection, p.BAD_LOGIN, f"wrong user name or password, user {packet.username!r}")
            return
        self._log_in(connection, packet)
        self._take(connection, iter(early))
        connection.resume()

    def _refuse(self, connection: Connection, code: int, reason: str) -> None:
        log.warning("%s is refused: %s", connection.peer, reason)
        connection.write(p.encode(p.Connack(session_present=False, code=code)))
        self._end(connection, reason)

    def _log_in(self, connection: Connection, packet: p.Connect) -> None:
        client_id = packet.client_id or f"auto-{secrets.token_hex(8)}"
        access = None if self._access is None else self._access.of(packet.username)
        known, will = self._router.sessions.get(client_id), packet.will
        why = overreach(access, None if known is None else known.access, None if will is None else will.topic)
        if why is not None:
            self._refuse(connection, p.NOT_AUTHORISED, f"client {client_id!r}: {why}")
            return
        if client_id in self._online:
            self._end(self._online[client_id], "another connection took over its client id")  # MQTT-3.1.4-2
        try:
            session, present = self._router.open(client_id, clean=packet.clean_session)
        except TooManySessions as error:
            self._refuse(connection, p.UNAVAILABLE, str(error))
            return
        session.access = access
        self._absent_since.pop(client_id, None)
        self._online[client_id] = connection
        connection.will, connection.keepalive_s = packet.will, packet.keepalive_s
        log.info("%s logged in as %r", connection.peer, client_id)
        connection.write(p.encode(p.Connack(session_present=present, code=p.ACCEPTED)))
        session.connected()
        connection.session = session
        connection.wake()

    # Back-pressure

    def _hold(self, publisher: Connection, subscriber: Connection, client_id: str) -> None:
        """Read no more from a publisher until a subscriber has caught up.

        A held client's acknowledgements are not read either. So no ring of clients may wait for one another: the hold
        that would close one is left out, and the cap on the queue alone remains.
        """
        if self._waits_for(subscriber, publisher):
            return
        if client_id not in self._behind:
            subscriber.progress_s = self._loop.time()
        self._behind.setdefault(client_id, set()).add(publisher)
        publisher.pause()

    def _waits_for(self, connection: Connection, other: Connection) -> bool:
        """Say whether a connection is held because of another one, directly or through others, or is the same."""
        seen: set[Connection] = set()
        stack = [connection]
        while stack:
            here = stack.pop()
            if here is other:
                return True
            if here not in seen and here.paused:
                seen.add(here)
                stack.extend(self._online[name] for name, held in self._behind.items() if here in held)
        return False

    def _sent(self, connection: Connection) -> None:
        """A connection has written something: let those who wait for it go on if its queue is short again."""
        session = connection.session
        if session is None or session.client_id not in self._behind:
            return
        if session.fill <= RELEASE_BELOW:
            self._release(session.client_id)

    def _release(self, client_id: str) -> None:
        held = self._behind.pop(client_id, set())
        for publisher in held:
            if not any(publisher in waiting for waiting in self._behind.values()):
                publisher.resume()

    def _cut_off_stalled(self, now: float) -> None:
        """End the sessions that others wait for and that take nothing; one that is not listened to cannot help it."""
        stall_s = self._limits.stall_s
        for client_id in list(self._behind):
            behind = self._online.get(client_id)
            if behind and not behind.paused and now - behind.progress_s > stall_s:
                self._cut_off(behind, f"took nothing for {stall_s:g} s with its queue half full")

    def _cut_off(self, connection: Connection, reason: str) -> None:
        """Disconnect a client and forget its session, messages and all; say so."""
        session = connection.session
        if session is None or connection.closed:
            return
        self._forget(session.client_id, reason)
        self._end(connection, reason)

    def _forget(self, client_id: str, reason: str) -> None:
        self._absent_since.pop(client_id, None)
        session = self._router.sessions.get(client_id)
        if session is not None:
            self._router.discard(session)
            log.warning("the session of client %r is forgotten, with %d messages: %s", client_id, len(session), reason)


def _who(connection: Connection) -> str:
    """Whom the log speaks of."""
    session = connection.session
    return f"{connection.peer} ({'no login' if session is None else session.client_id})"
