"""A TCP proxy between MQTT clients and their broker, in a thread of its own: slow, cut, silent, or harmful to packets.

Peers are told apart by the client id in their CONNECT, less its last part, which is new for every process. Whatever the
proxy does is drawn from a seed and noted with its time; equal traffic with an equal seed meets equal faults.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Self

from coordinator.broker.probe import parse_url
from support.mqtt_harm import CALM, Frames, Harm, NotMqtt, Odds, Passed, client_id_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Fault", "Proxy", "Shape"]

HOST = "127.0.0.1"
READ_BYTES = 65_536
QUEUE_BYTES = 262_144
RESET = struct.pack("ii", 1, 0)
UP, DOWN = "up", "down"


@dataclass(frozen=True)
class Shape:
    """A link's speed, each direction: bytes a second (0: no limit), one-way delay, and what is added at random."""

    rate_bytes_s: float = 0.0
    delay_s: float = 0.0
    jitter_s: float = 0.0


@dataclass(frozen=True)
class Fault:
    """One thing the proxy did: seconds since it started, to whom, what."""

    at_s: float
    peer: str
    fault: str
    detail: str = ""


@dataclass
class _Peer:
    """What holds for every connection of one peer, present and to come."""

    flow: asyncio.Event
    shape: Shape
    odds: Odds
    connections: int = 0
    open: set[_Connection] = field(default_factory=set)


class Proxy:
    """A running proxy; every method may be called from any thread."""

    def __init__(self, broker_url: str, seed: int = 0, log: Path | None = None, *, packets: bool = True) -> None:
        """Start listening.

        Args:
            broker_url: Where connections go.
            seed: Of all that is drawn.
            log: A file that gets a JSON line for every fault.
            packets: Whether traffic is cut into MQTT packets, as faults of packets need; else it passes as it comes,
                and all connections are one peer, "".
        """
        broker = parse_url(broker_url)
        self.faults: list[Fault] = []
        self.wire_bytes: Counter[tuple[str, str]] = Counter()
        self.packets = packets
        self._broker = broker.host, broker.port
        self.seed = seed
        self._log = log
        self._began_s = time.monotonic()
        self._peers: dict[str, _Peer] = {}
        self._default = Shape(), CALM
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._sock = socket.create_server((HOST, 0))
        self.url = f"mqtt://{HOST}:{self._sock.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, name="proxy")
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Cut everything and stop listening."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    # What may be done to a peer; None is everybody, also those to come.

    def shape(self, peer: str | None, shape: Shape) -> None:
        """Give a link its speed from now on."""
        self._for(peer, lambda each: setattr(each, "shape", shape), "shape", json.dumps(asdict(shape)))
        if peer is None:
            self._default = shape, self._default[1]

    def harm(self, peer: str | None, odds: Odds) -> None:
        """Give a link its chances of packet faults from now on."""
        self._for(peer, lambda each: _set_odds(each, odds), "harm", json.dumps(asdict(odds)))
        if peer is None:
            self._default = self._default[0], odds

    def cut(self, peer: str | None, *, reset: bool) -> None:
        """End a peer's connections at once, in the middle of a packet if need be: with RST, or with FIN."""
        self._for(peer, lambda each: _close_all(each, reset=reset), "cut", "RST" if reset else "FIN")

    def stall(self, peer: str | None) -> None:
        """Hand nothing on, in either direction, until `resume`; connections look alive, new ones get no answer."""
        self._for(peer, lambda each: each.flow.clear(), "stall")

    def resume(self, peer: str | None) -> None:
        """End a stall; what was on its way arrives."""
        self._for(peer, lambda each: each.flow.set(), "resume")

    def blackhole(self, peer: str | None) -> None:
        """Never hand anything on again on a peer's present connections, nor close them: both ends are half open."""
        self._for(peer, lambda each: [one.go_silent() for one in each.open], "blackhole")

    def _for(self, peer: str | None, act: Callable[[_Peer], object], fault: str, detail: str = "") -> None:
        def do() -> None:
            for name in list(self._peers) if peer is None else [peer]:
                act(self._peer(name))

        self.note("*" if peer is None else peer, fault, detail)
        asyncio.run_coroutine_threadsafe(_called(do), self._loop).result()

    def note(self, peer: str, fault: str, detail: str = "") -> None:
        """Note something that was done."""
        noted = Fault(round(time.monotonic() - self._began_s, 3), peer, fault, detail)
        self.faults.append(noted)
        if self._log is not None:
            with self._log.open("a") as file:
                file.write(json.dumps({"seed": self.seed, **asdict(noted)}) + "\n")

    # In the thread.

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, sock=self._sock, limit=READ_BYTES))
        self._loop.run_forever()
        server.close()
        for each in self._peers.values():
            _close_all(each, reset=True)
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self._loop.close()

    def _peer(self, name: str) -> _Peer:
        if name not in self._peers:
            self._peers[name] = _Peer(asyncio.Event(), *self._default)
            self._peers[name].flow.set()
        return self._peers[name]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames = Frames()
        try:
            name, first = await self._greet(reader, frames)
            peer = self._peer(name)
            await peer.flow.wait()
            broker = await asyncio.open_connection(*self._broker, limit=READ_BYTES)
        except (OSError, NotMqtt, asyncio.IncompleteReadError):
            writer.close()
            return
        peer.connections += 1
        harms = {way: Harm(f"{self.seed}/{name}/{peer.connections}/{way}", peer.odds) for way in (UP, DOWN)}
        connection = _Connection(self, name, peer, harms, (reader, writer), broker, frames)
        peer.open.add(connection)
        await connection.run(first)
        peer.open.discard(connection)

    async def _greet(self, reader: asyncio.StreamReader, frames: Frames) -> tuple[str, list[bytes]]:
        """Who connects, and what has been read of it."""
        if not self.packets:
            return "", []
        while not (packets := frames.feed(data := await reader.read(READ_BYTES))):
            if not data:
                raise NotMqtt("a connection that ended before its CONNECT")
        return client_id_of(packets[0]).rsplit("-", 1)[0], packets


class _Connection:
    """One client, the broker, and a pump each way."""

    def __init__(  # noqa: PLR0917  what a connection is made of
        self,
        proxy: Proxy,
        name: str,
        peer: _Peer,
        harms: dict[str, Harm],
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        broker: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        frames: Frames,
    ) -> None:
        self.proxy, self.name, self.peer, self.harms = proxy, name, peer, harms
        self._ends = {UP: (client[0], broker[1]), DOWN: (broker[0], client[1])}
        self._frames = {UP: frames, DOWN: Frames()}
        self._silent = asyncio.Event()
        self._pumps: list[asyncio.Task[None]] = []
        for _, writer in self._ends.values():
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def run(self, first: list[bytes]) -> None:
        """Pump until an end closes."""
        self._pumps = [asyncio.ensure_future(self._pump(way, first if way == UP else [])) for way in (UP, DOWN)]
        await asyncio.wait(self._pumps, return_when=asyncio.FIRST_COMPLETED)
        if self.silent:
            await asyncio.wait(self._pumps)  # neither end hears that the other has given up
        self.close(reset=False)
        await asyncio.gather(*self._pumps, return_exceptions=True)

    def go_silent(self) -> None:
        """Hand nothing on any more; the sockets stay open until an end gives up."""
        self._silent.set()

    def close(self, *, reset: bool) -> None:
        """Close both sides, by RST or after what was written."""
        for _, writer in self._ends.values():
            if reset:
                with suppress(OSError):
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                writer.transport.abort()
            else:
                writer.close()
        for pump in self._pumps:
            pump.cancel()

    async def _pump(self, way: str, first: list[bytes]) -> None:
        reader, writer = self._ends[way]
        line = _Line(self, way, writer)
        sending = asyncio.ensure_future(line.send())
        try:
            for packet in first:
                line.put(Passed(packet))
            while data := await reader.read(READ_BYTES):
                if self._silent.is_set():
                    continue
                for each in self._handed_on(way, data):
                    line.put(each)
                await line.room()
            await line.drained()
        except (OSError, NotMqtt):
            return  # as good as an end that closed
        finally:
            sending.cancel()

    def _handed_on(self, way: str, data: bytes) -> list[Passed]:
        if not self.proxy.packets:
            return [Passed(data)]
        harm = self.harms[way]
        harm.odds = self.peer.odds
        handed_on: list[Passed] = []
        for packet in self._frames[way].feed(data):
            fault, passed = harm.pass_on(packet)
            if fault:
                topic = (passed[0].topic or b"").decode(errors="replace") if passed else ""
                self.proxy.note(self.name, fault, f"{way} {topic}")
            handed_on += passed
        return handed_on

    @property
    def silent(self) -> bool:
        """Whether nothing is handed on any more."""
        return self._silent.is_set()


class _Line:
    """The bytes on their way in one direction, each with the time it is due."""

    def __init__(self, connection: _Connection, way: str, writer: asyncio.StreamWriter) -> None:
        self._connection, self._way, self._writer = connection, way, writer
        self._queue: list[tuple[float, int, bytes]] = []
        self._queued_bytes = 0
        self._count = 0
        self._last_s = 0.0
        self._of_topic: dict[bytes, float] = {}
        self._changed = asyncio.Event()
        name = connection.name
        self._chance = random.Random(f"{connection.proxy.seed}/{name}/{way}/jitter")  # noqa: S311  a schedule, not a secret

    def put(self, passed: Passed) -> None:
        """Queue what is handed on."""
        shape = self._connection.peer.shape
        now = time.monotonic()
        sent_s = len(passed.data) / shape.rate_bytes_s if shape.rate_bytes_s else 0.0
        due = max(self._last_s, now + shape.delay_s + self._chance.random() * shape.jitter_s) + sent_s
        self._last_s = due
        if passed.topic is not None:
            due = max(due + passed.late_s, self._of_topic.get(passed.topic, 0.0))
            self._of_topic[passed.topic] = due
        if passed.last:
            due = max([due, *(each for each, _, _ in self._queue)])
        self._count += 1
        heapq.heappush(self._queue, (due, self._count, passed.data))
        self._queued_bytes += len(passed.data)
        self._changed.set()

    async def room(self) -> None:
        """Wait until not too much is on its way."""
        while self._queued_bytes > QUEUE_BYTES:
            self._changed.clear()
            await self._changed.wait()

    async def drained(self) -> None:
        """Wait until nothing is."""
        while self._queued_bytes:
            self._changed.clear()
            await self._changed.wait()

    async def send(self) -> None:
        """Write what is due, until the end it goes to is gone."""
        with suppress(OSError):
            await self._send()
        self._connection.close(reset=True)

    async def _send(self) -> None:
        while True:
            wait_s = self._queue[0][0] - time.monotonic() if self._queue else None
            if wait_s is None or wait_s > 0:
                self._changed.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), wait_s)
                continue
            await self._connection.peer.flow.wait()
            data = heapq.heappop(self._queue)[2]
            if not self._connection.silent:
                self._writer.write(data)
                await self._writer.drain()
                self._connection.proxy.wire_bytes[self._connection.name, self._way] += len(data)
            self._queued_bytes -= len(data)
            self._changed.set()


def _set_odds(peer: _Peer, odds: Odds) -> None:
    peer.odds = odds


def _close_all(peer: _Peer, *, reset: bool) -> None:
    for connection in list(peer.open):
        connection.close(reset=reset)


async def _called(act: Callable[[], Any]) -> None:
    act()
