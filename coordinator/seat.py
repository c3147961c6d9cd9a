"""A coordinator at work on its site: the loop that joins link, clock, operator and disk with the running job."""

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from coordinator import stall
from coordinator.closing import Parts
from coordinator.control import attend, is_idle
from coordinator.events import Emit
from coordinator.gateway import EXIT_DONE, EXIT_FAILED, RunningJob
from coordinator.journal import JournalUnwritable
from coordinator.lease import BEAT_S
from coordinator.reports import refused, superseded
from coordinator.requests import Inbox
from coordinator.watch import every, stand
from edge_runtime.link import Connected, Disconnected, Link, LinkEvent, Message, Refused, Subscribed
from edge_runtime.sending import send
from edge_runtime.wire.entry import EntryOutcome, SiteEntry
from edge_runtime.wire.events import (
    Command,
    GatewaySuperseded,
    Outcome,
    UpdateRefused,
    Warned,
)
from edge_runtime.wire.gateway import GatewaySession

POLL_S = 0.25
ENTRY_POLL_S = 0.05
LEAVE_S = 5.0
SAMPLE_S = 5.0


@dataclass(frozen=True)
class Seat:
    """A coordinator's place on a site: what a running job is made from, at the start and anew."""

    parts: Parts
    site: str
    link: Link
    epoch: int
    boot: str
    others_wait: Callable[[], object]

    def job(self) -> RunningJob:
        """The job as the journal has it; where there is a link, all of it is published again."""
        job = RunningJob(self.parts, self.site, self.epoch, self.boot, time.monotonic())
        if self.link.connected:
            send_all(self.link, job.connected(time.monotonic()))
        return job


def enter(
    parts: Parts, site: str, link: Link, asked_to_stop: list[int], others_wait: Callable[[], object]
) -> Seat | None:
    """Comes onto a site; None when another coordinator is on it, or the operator has asked to stop."""
    entry = SiteEntry(site, parts.store.epoch(), os.urandom(8).hex())
    while not entry.entered:
        if asked_to_stop:
            return None
        if (older := knock(entry, link, parts.emit)) is not None:
            parts.emit(superseded(older))
            return None
    parts.store.keep_epoch(entry.epoch)
    parts.store.fail(None)
    link.set_will(GatewaySession(site, entry.epoch, entry.boot).will())
    link.reconnect()
    return Seat(parts, site, link, entry.epoch, entry.boot, others_wait)


def knock(entry: SiteEntry, link: Link, emit: Emit) -> GatewaySuperseded | None:
    """One turn of the way onto the site; returns the other when there is one."""
    outcomes: list[EntryOutcome] = []
    for event in link.poll(ENTRY_POLL_S):
        match event:
            case Connected():
                outcomes += entry.connected()
            case Subscribed(_, ()):
                outcomes += entry.subscribed(time.monotonic())
            case Message():
                outcomes += entry.received(time.monotonic(), event.payload)
            case _:
                _trouble(link, event, emit)
    for outcome in [*outcomes, *entry.tick(time.monotonic())]:
        match outcome:
            case GatewaySuperseded():
                return outcome
            case Warned(source, rule, message):
                emit({"event": "warning", "message": f"{source}: {rule}: {message}", "rule": rule})
            case _:
                send_all(link, [outcome])
    return None


def serve(seat: Seat, asked_to_stop: list[int]) -> int:
    """The loop: what the link and the operator bring goes into the job, what the job wants goes out."""
    inbox = Inbox(seat.parts.store)
    job: RunningJob | None = None
    regularly = every(SAMPLE_S, lambda: _look_around(seat, job))
    beat = every(BEAT_S, seat.parts.store.beat)
    while not asked_to_stop:
        beat(time.monotonic())
        try:
            if job is None:
                job = seat.job()
                _tell_standing(seat, job)
            regularly(time.monotonic())
            if job.exit_code is not None:
                return _leave(job, seat)
            job = _turn(job, inbox, seat)
        except JournalUnwritable as error:
            job = None
            if (code := _wait_for_room(seat, error, asked_to_stop)) is not None:
                return code
    if job is not None:
        send_all(seat.link, job.stopping())
    return EXIT_DONE


def _look_around(seat: Seat, job: RunningJob | None) -> None:
    """Tells how things stand; a paused job of which nobody has a task leaves the site to one that waits."""
    if job is None or job.exit_code is not None:
        return  # it has told of its end
    _tell_standing(seat, job)
    seat.parts.store.give_back()
    if is_idle(job, seat.parts.store) and seat.others_wait():
        seat.parts.emit({"event": "warning", "message": "this job is paused and gives way to the next one"})
        job.exit_code = EXIT_DONE


def _tell_standing(seat: Seat, job: RunningJob) -> None:
    seat.parts.emit(stand(job, seat.link, seat.parts.store))


def _turn(job: RunningJob, inbox: Inbox, seat: Seat) -> RunningJob:
    """One turn of the loop; returns the job, or the one to go on with.

    Long work waits for one more poll, which sends what is queued: the last acknowledgement leaves before a round is
    folded.
    """
    link, due = seat.link, job.has_work
    _exchange(job, link, seat.parts.emit, 0.0 if due else POLL_S)
    if due:
        send_all(link, job.work(time.monotonic()))
        if job.closing.beside is not None:
            job.closing.beside.add_done_callback(lambda _: link.wake())
    if job.exit_code is not None:
        return job
    attended = attend(job, seat.parts.store, inbox, time.monotonic())
    send_all(link, attended.commands)
    return seat.job() if attended.renew else job


def _leave(job: RunningJob, seat: Seat) -> int:
    """The job has ended: its last messages go out, for which a link is waited for a while."""
    with suppress(JournalUnwritable):  # a journal that is larger than it need be harms nobody
        seat.parts.store.give_back()
    link, code, until_s = seat.link, job.exit_code, time.monotonic() + LEAVE_S
    while not link.connected and time.monotonic() < until_s:
        _exchange(job, link, seat.parts.emit, POLL_S)  # what a finished job leaves on the broker is worth a wait
    if not link.connected and code == EXIT_DONE:
        message = "no link to the broker at the end of the job; to take its last messages off, start this command again"
        seat.parts.emit({"event": "warning", "message": message})
    send_all(link, job.stopping())
    if code == EXIT_DONE:
        _tell_standing(seat, job)  # of a short job the first and the last, which has all its bytes
    if link.connected and seat.parts.store.done() is not None:
        with suppress(JournalUnwritable):  # then it is taken off once more
            seat.parts.store.clear()
    return EXIT_DONE if code is None else code


def _wait_for_room(seat: Seat, error: JournalUnwritable, asked_to_stop: list[int]) -> int | None:
    """Tells of a disk that takes nothing, and answers the site until it does; an exit code when it is to end."""
    store, link, emit = seat.parts.store, seat.link, seat.parts.emit
    emit({"event": "stalled", "message": str(error), "rule": type(error).__name__, "retry_s": stall.RETRY_S})
    session = stall.stalled_session(store, seat.site, seat.epoch, seat.boot)
    if link.connected:
        send_all(link, stall.answers(session.connected(time.monotonic())))
    looked_s = time.monotonic()
    while not asked_to_stop:
        for event in link.poll(POLL_S):
            outcomes = _stalled(session, link, event, emit)
            for each in outcomes:
                if isinstance(each, UpdateRefused):
                    emit(refused(each))
            send_all(link, stall.answers(outcomes))
            if (older := stall.superseder(outcomes)) is not None:
                emit(superseded(older))
                return EXIT_FAILED
        if time.monotonic() - looked_s >= stall.PROBE_S:
            looked_s = time.monotonic()
            store.beat()
            with suppress(JournalUnwritable):
                if stall.has_room(store):
                    emit({"event": "writable", "round": store.present_round()})
                    return None
    send_all(link, session.stopping())
    return EXIT_DONE


def _stalled(session: GatewaySession, link: Link, event: LinkEvent, emit: Emit) -> list[Outcome]:
    now_s = time.monotonic()
    match event:
        case Connected():
            return session.connected(now_s)
        case Message():
            return session.received(now_s, event.topic, event.payload, retain=event.retain)
        case Disconnected():
            _trouble(link, event, emit)
            return session.disconnected(now_s)
        case Refused() | Subscribed():
            _trouble(link, event, emit)
            return []


def _exchange(job: RunningJob, link: Link, emit: Emit, timeout_s: float) -> None:
    """What one poll brought goes into the job as one batch: one fsync, and then all that follows from it."""
    events = link.poll(timeout_s)
    commands: list[Command] = []
    with job.batch():
        for event in events:
            commands += _take(job, link, event, emit)
        commands += job.tick(time.monotonic())
    send_all(link, commands)


def _take(job: RunningJob, link: Link, event: LinkEvent, emit: Emit) -> list[Command]:
    now_s = time.monotonic()
    match event:
        case Connected():
            return job.connected(now_s)
        case Message():
            return job.received(event.topic, event.payload, now_s, retain=event.retain)
        case Disconnected():
            _trouble(link, event, emit)
            return job.disconnected(now_s)
        case Refused() | Subscribed():
            _trouble(link, event, emit)
            return []


def _trouble(link: Link, event: LinkEvent, emit: Emit) -> None:
    match event:
        case Disconnected():
            message = f"no link to the broker: {event.reason}; tried again in {event.retry_s:.1f} s"
            emit({"event": "warning", "message": message})
        case Subscribed(_, refused) if refused:
            message = f"the broker does not allow to subscribe to {refused[0]}; give the coordinator the whole site"
            emit({"event": "error", "message": message, "rule": "SubscriptionRefused"})
            link.give_up(message)
        case _:
            return  # a refusal is followed by its Disconnected; a job needs no word of subscriptions


def send_all(link: Link, commands: Iterable[Command]) -> None:
    """Does what a session wants of the link."""
    for command in commands:
        send(link, command)
