"""Runs a federation while a schedule of faults strikes it, and says what was struck."""

from __future__ import annotations

import heapq
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from queue import Empty
from typing import TYPE_CHECKING, Any

from chaos.schedule import BROKER, COORDINATOR, DAY_S, HARMFUL, SLOW, UNRELIABLE, Strike
from chaos.surroundings import DISK_MB, Clock, Disk, find_faketime, why_no_disks
from support.fleet import GOES_ON
from support.proxy import Proxy, Shape

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from support.fleet import Federation

__all__ = ["Driver", "EndedByItself", "StoodStill"]

COORDINATOR_PEER = "edge-coordinator-test"
# What a service manager does with a process that has ended by itself: it starts it again a moment later.
AGAIN_S = 1.0
POLL_S = 0.2
# Longer than any fault, its retries (the slowest is the coordinator's roll call, every ten minutes) and a round.
QUIET_S = 900.0


class EndedByItself(AssertionError):
    """A process ended that nobody had killed, and whose disk was not full."""


class StoodStill(AssertionError):
    """Nothing has gone on for QUIET_S."""


@dataclass
class Driver:
    """A federation behind a proxy, its processes' disks and clocks, and the faults still to come.

    Attributes:
        ended: What ended by itself while its disk was full, and was started again.
        skipped: Faults that this machine cannot make, with the reason.
    """

    federation: Federation
    proxy: Proxy
    seed: int
    disks: dict[str, Disk] = field(default_factory=dict)
    clocks: dict[str, Clock] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    _agenda: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _entered: int = 0
    _heard_s: float = 0.0
    _down: set[str] = field(default_factory=set)
    _full: Counter[str] = field(default_factory=Counter)  # strikes may overlap; the last one to end makes room
    _was_full: set[str] = field(default_factory=set)

    def prepare(self, journal_mb: int = 0) -> None:
        """Mount the disks, the coordinator's with room for a journal, and set the clocks, before any process starts."""
        self.federation.url = self.proxy.url
        processes = [*self.federation.names, COORDINATOR]
        if why := why_no_disks():
            self.skipped["disk full"] = why
        else:
            places = {name: self.federation.root / name / "state" for name in self.federation.names}
            self.disks = {name: Disk(place) for name, place in places.items()}
            self.disks[COORDINATOR] = Disk(self.federation.root / "coordinator", DISK_MB + journal_mb)
        for disk in self.disks.values():
            disk.mount()
        if (library := find_faketime()) is None:
            self.skipped["clock"] = "libfaketime is not installed: apt-get install faketime"
            return
        self.clocks = {name: Clock(library, self.federation.root / f"{name}.clock") for name in processes}
        for name, clock in self.clocks.items():
            clock.set(0)
            self.federation.environments[name] = clock.environment()

    def run(self, strikes: Sequence[Strike]) -> dict[str, Any]:
        """Start everything, strike, and wait for the end of the job; returns its last event.

        Raises:
            EndedByItself: A process ended that was not killed.
            StoodStill: Nothing goes on.
        """
        self._heard_s = time.monotonic()
        began_s = time.monotonic()
        if any(strike.kind == "packets" for strike in strikes):
            self.proxy.harm(None, UNRELIABLE)
        self.federation.start()
        for strike in strikes:
            self._at(began_s + strike.at_s, lambda strike=strike: self._begin(strike))  # type: ignore[misc]  # bound here
        while (done := self._listen()) is None:
            now_s = time.monotonic()
            while self._agenda and self._agenda[0][0] <= now_s:
                heapq.heappop(self._agenda)[2]()
            self._look_after()
            if now_s - self._heard_s > QUIET_S:
                told = f"nothing has gone on for {QUIET_S:.0f} s"
                raise StoodStill(f"{told}; {self.proxy.faults[-12:]}\n{self.federation.logs()}")
        assert self.federation.coordinator is not None
        assert self.federation.coordinator.wait(60.0) == 0, self.federation.logs()
        return done

    def close(self) -> None:
        """Stop what runs and take the disks away."""
        self.proxy.resume(None)
        self.federation.stop()
        self.proxy.stop()
        for disk in self.disks.values():
            disk.unmount()

    def _at(self, at_s: float, act: Callable[[], None]) -> None:
        self._entered += 1
        heapq.heappush(self._agenda, (at_s, self._entered, act))

    def _after(self, lasts_s: float, act: Callable[[], None]) -> None:
        self._at(time.monotonic() + lasts_s, act)

    def _listen(self) -> dict[str, Any] | None:
        """The end of the job, if it comes before the next entry of the agenda is due."""
        assert self.federation.reader is not None
        wait_s = min(POLL_S, self._agenda[0][0] - time.monotonic()) if self._agenda else POLL_S
        try:
            event = self.federation.reader.queue.get(timeout=max(wait_s, 0.001))
        except Empty:
            return None
        if event is None:
            return None  # its process has ended; `_look_after` sees to that
        self.federation.seen.append(event)
        if event["event"] in GOES_ON:
            self._heard_s = time.monotonic()
        return event if event["event"] == "job_done" else None

    def _look_after(self) -> None:
        """Starts what ended by itself on a full disk again, as soon as there is room."""
        for name, device in self.federation.devices.items():
            if name not in self._down and device.process.poll() is not None:
                self._ended(name, device.process.returncode, lambda name=name: self.federation.start_device(name))  # type: ignore[misc]  # bound here
        process = self.federation.coordinator
        if COORDINATOR not in self._down and process is not None and process.poll() not in {None, 0}:
            self._ended(COORDINATOR, process.returncode, self.federation.start_coordinator)

    def _ended(self, name: str, code: int, start: Callable[[], None]) -> None:
        if name not in self._was_full:
            raise EndedByItself(f"{name} ended with code {code}; {self.proxy.faults[-12:]}\n{self.federation.logs()}")
        self.ended.append(name)
        self._down.add(name)
        self.proxy.note(name, "ended by itself", f"code {code}")
        self._after(AGAIN_S, lambda: self._start_when_there_is_room(name, start))

    def _start_when_there_is_room(self, name: str, start: Callable[[], None]) -> None:
        if self._full[name]:
            self._after(AGAIN_S, lambda: self._start_when_there_is_room(name, start))
            return
        self._was_full.discard(name)
        self._down.discard(name)
        start()

    # Faults.

    def _begin(self, strike: Strike) -> None:
        if strike.kind in self.skipped:
            return
        self.proxy.note(strike.victim, strike.kind, f"{strike.lasts_s} s")
        getattr(self, f"_{strike.kind.replace(' ', '_')}")(strike)

    def _kill(self, strike: Strike) -> None:
        name = strike.victim
        if name in self._down:
            return
        self._down.add(name)
        if name == BROKER:
            self.federation.broker.kill()
        elif name == COORDINATOR:
            self.federation.kill_coordinator()
        else:
            self.federation.kill_device(name)
        self._after(strike.lasts_s, lambda: self._start_again(name))

    def _start_again(self, name: str) -> None:
        self._down.discard(name)
        if name == BROKER:
            self.federation.broker.restart()
        elif name == COORDINATOR:
            self.federation.start_coordinator()
        else:
            self.federation.start_device(name)

    def _reset(self, strike: Strike) -> None:
        self.proxy.cut(_peer(strike.victim), reset=True)

    def _close(self, strike: Strike) -> None:
        self.proxy.cut(_peer(strike.victim), reset=False)

    def _stall(self, strike: Strike) -> None:
        peer = _peer(strike.victim)
        self.proxy.stall(peer)
        self._after(strike.lasts_s, lambda: self.proxy.resume(peer))

    def _partition(self, strike: Strike) -> None:
        """Half of the devices see nobody; their connections are dead afterwards, as behind a router that forgets."""
        names = self.federation.names
        cut_off = random.Random(f"{self.seed}/{strike.number}").sample(names, len(names) // 2)  # noqa: S311  a schedule
        for name in cut_off:
            self.proxy.stall(name)
        self._after(strike.lasts_s, lambda: self._heal(cut_off))

    def _heal(self, names: list[str]) -> None:
        for name in names:
            self.proxy.cut(name, reset=True)
            self.proxy.resume(name)

    def _blackhole(self, strike: Strike) -> None:
        self.proxy.blackhole(_peer(strike.victim))

    def _slow(self, strike: Strike) -> None:
        peer = _peer(strike.victim)
        self.proxy.shape(peer, SLOW)
        self._after(strike.lasts_s, lambda: self.proxy.shape(peer, Shape()))

    def _packets(self, strike: Strike) -> None:
        peer = _peer(strike.victim)
        self.proxy.harm(peer, HARMFUL)
        self._after(strike.lasts_s, lambda: self.proxy.harm(peer, UNRELIABLE))

    def _disk_full(self, strike: Strike) -> None:
        name = strike.victim
        self._full[name] += 1
        self._was_full.add(name)
        self.disks[name].fill()
        self._after(strike.lasts_s, lambda: self._make_room(name))

    def _make_room(self, name: str) -> None:
        self._full[name] -= 1
        if not self._full[name]:
            self.disks[name].clear()

    def _clock(self, strike: Strike) -> None:
        clock = self.clocks[strike.victim]
        clock.set(random.Random(f"{self.seed}/{strike.number}").choice((-DAY_S, DAY_S)))  # noqa: S311  a schedule
        self._after(strike.lasts_s, lambda: clock.set(0))


def _peer(victim: str) -> str:
    return COORDINATOR_PEER if victim == COORDINATOR else victim
