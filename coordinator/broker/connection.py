"""One TCP connection of the embedded broker: bytes to packets, and a bounded queue of buffers to bytes.

The sockets are driven through the loop's readiness callbacks, not through asyncio's transports: a transport copies what
it cannot send at once, and one payload is meant to serve every subscriber from one buffer.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from coordinator.broker.packets import CONNECT, Packet, Will
from coordinator.broker.parser import Parser

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable, Iterator

    from coordinator.broker.limits import Limits
    from coordinator.broker.session import Buffers, Session

__all__ = ["Connection"]

# Bytes handed to a connection ahead of what its socket has taken. Small, so that an acknowledgement or a PINGRESP,
# which is written behind them, never waits for a whole queue.
WRITE_AHEAD_BYTES = 256 * 1024
# Below this much missing, a body is read through the shared scratch buffer, along with what follows it.
DIRECT_BYTES = 16 * 1024
MAX_BUFFERS = 64  # of one sendmsg call; Linux takes 1024
# What the peer must take for it to count as progress, so that a byte now and then does not hold publishers for ever.
PROGRESS_BYTES = 64 * 1024
MAX_SENDS = 8  # system calls for one connection in one turn of the loop


class Connection:
    """A socket, its parser, and what is to be written.

    Whole packets are appended to the write queue, head and payload together, so nothing ever lands inside a PUBLISH.

    Attributes:
        session: Set at login; its messages are written as fast as the socket takes them.
        will: Published when the connection ends without DISCONNECT.
        paused: Nothing is read: a subscriber of this publisher is behind, or the login is being checked.
        progress_s: Loop time when the peer had last taken 64 KB, or all there was, or acknowledged something.
        heard_s: Loop time of the last bytes from the peer.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - made in one place; three of them are its events
        self,
        sock: socket.socket,
        loop: asyncio.AbstractEventLoop,
        limits: Limits,
        scratch: memoryview,
        on_packets: Callable[[Connection, Iterator[Packet]], None],
        on_sent: Callable[[Connection], None],
        on_end: Callable[[Connection, str], None],
    ) -> None:
        peer = sock.getpeername()
        self.peer = f"{peer[0]}:{peer[1]}"
        self.parser = Parser(limits.max_connect_bytes, only=CONNECT)
        self.session: Session | None = None
        self.will: Will | None = None
        self.keepalive_s = 0
        self.paused = False
        self.closed = False
        self.heard_s = self.progress_s = self.opened_s = loop.time()
        self._sock = sock
        self._loop = loop
        self._scratch = scratch  # shared by all connections: it is emptied before another one reads
        self._on_packets = on_packets
        self._on_sent = on_sent
        self._on_end = on_end
        self._out: deque[memoryview] = deque()
        self._unsent_bytes = 0
        self._taken_bytes = 0  # since progress_s
        self._flush_due = False
        self._awaiting_room = False
        loop.add_reader(sock, self._readable)

    def write(self, *buffers: bytes | memoryview) -> None:
        """Append one packet; it goes out at the end of this turn of the loop, with others in one system call."""
        for buffer in buffers:
            self._out.append(memoryview(buffer))
            self._unsent_bytes += len(buffer)
        self.wake()

    def wake(self) -> None:
        """Write what the session has to send, at the end of this turn of the loop."""
        if not (self._flush_due or self._awaiting_room or self.closed):
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def pause(self) -> None:
        """Stop reading."""
        if not (self.paused or self.closed):
            self.paused = True
            self._loop.remove_reader(self._sock)

    def resume(self) -> None:
        """Read again. The peer was not listened to, so its silence does not count."""
        if self.paused and not self.closed:
            self.paused = False
            self.heard_s = self._loop.time()
            self._loop.add_reader(self._sock, self._readable)

    def close(self) -> None:
        """Send what the socket takes at once, and close."""
        if self.closed:
            return
        self._send_some()
        self.closed = True
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._out.clear()
        self._sock.close()

    def _readable(self) -> None:
        space = self.parser.space()
        direct = space is not None and len(space) >= DIRECT_BYTES
        try:
            n_bytes = self._sock.recv_into(space if space is not None and direct else self._scratch)
        except BlockingIOError:
            return
        except OSError as error:
            self._on_end(self, f"read failed: {error.strerror}")
            return
        finally:
            if space is not None:
                space.release()
        if n_bytes == 0:
            self._on_end(self, "closed by the peer")
            return
        self.heard_s = self._loop.time()
        self._on_packets(self, self._filled(n_bytes) if direct else self.parser.feed(self._scratch[:n_bytes]))

    def _filled(self, n_bytes: int) -> Iterator[Packet]:
        packet = self.parser.filled(n_bytes)
        if packet is not None:
            yield packet

    def _flush(self) -> None:
        self._flush_due = False
        if self.closed:
            return
        for _ in range(MAX_SENDS):
            self._take_from_session()
            if not self._out or not self._send_some():
                break
        else:
            self._loop.call_soon(self._flush)  # a fast reader with a long queue: let the others have their turn
            self._flush_due = True
        self._await_room(waiting=bool(self._out) and not self._flush_due)
        self._on_sent(self)

    def _take_from_session(self) -> None:
        """Queue the session's packets up to the write-ahead mark."""
        session = self.session
        while session is not None and self._unsent_bytes < WRITE_AHEAD_BYTES:
            buffers: Buffers | None = session.next_packet()
            if buffers is None:
                return
            for buffer in buffers:
                self._out.append(memoryview(buffer))
                self._unsent_bytes += len(buffer)

    def _send_some(self) -> bool:
        """Send once; True when everything handed to the socket was taken."""
        batch = [self._out[i] for i in range(min(len(self._out), MAX_BUFFERS))]
        try:
            n_bytes = self._sock.sendmsg(batch) if batch else 0
        except BlockingIOError:
            return False
        except OSError as error:
            self._out.clear()
            self._unsent_bytes = 0
            self._loop.call_soon(self._on_end, self, f"write failed: {error.strerror}")
            return False
        self._unsent_bytes -= n_bytes
        self._taken_bytes += n_bytes
        if self._taken_bytes >= PROGRESS_BYTES or not self._unsent_bytes:
            self._taken_bytes = 0
            self.progress_s = self._loop.time()
        while self._out and n_bytes >= len(self._out[0]):
            n_bytes -= len(self._out.popleft())
        if n_bytes:
            self._out[0] = self._out[0][n_bytes:]
            return False
        return True

    def _await_room(self, *, waiting: bool) -> None:
        """Have the loop call when the socket has room again, or no longer."""
        if waiting and not self._awaiting_room:
            self._loop.add_writer(self._sock, self._flush)
        elif self._awaiting_room and not waiting:
            self._loop.remove_writer(self._sock)
        self._awaiting_room = waiting
