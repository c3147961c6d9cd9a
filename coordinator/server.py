"""`edge-runtime coordinator`: its command line, what a job is prepared from, and the queue of a home.

Exit codes: 0 the job is done, or was left resumable on SIGTERM; 2 bad input; 3 the job failed, or another coordinator
is on the site. With --home a job that fails is left to `edge-runtime job resume`, and the next one runs.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coordinator.broker import BrokerError, start_broker
from coordinator.broker.probe import without_password
from coordinator.closing import Parts
from coordinator.evaluate import Evaluation, EvaluationError, evaluate
from coordinator.events import Emit, enduring, json_lines, log_lines, of_job, seldom
from coordinator.gateway import EXIT_DONE, EXIT_FAILED
from coordinator.home import (
    HELD_OUT,
    JOB_FILE,
    HomeError,
    Queued,
    bring_up_to_date,
    check_job,
    next_ready,
    queue,
    remove_remains,
)
from coordinator.jobfile import JobFileError
from coordinator.journal import JournalError, JournalInUse, JournalUnwritable, open_lock
from coordinator.leftovers import clear_job
from coordinator.program import Program, definition, judged_model, make_version
from coordinator.results import GRAPH_NAME, export, fold_journalled, keep_model
from coordinator.seat import LEAVE_S, enter, knock, send_all, serve
from coordinator.speaker import GatewaySpeaker
from coordinator.store import Version, open_store
from coordinator.watch import MetricsError, watching
from edge_runtime.broker_url import parse_url
from edge_runtime.data import Dataset
from edge_runtime.errors import LocalError
from edge_runtime.link import Link
from edge_runtime.wire.entry import SiteEntry
from edge_runtime.wire.gateway import GatewaySession
from edge_runtime.wire.topics import check_id
from models.compiler import CompileError
from models.zoo import ZooError

EXIT_BAD_INPUT = 2
IDLE_S = 1.0  # between two looks at a home that has nothing to do
RETRY_S = 2.0  # until a job that something was in the way of is tried again

LeftOut = dict[str, Callable[[], bool]]  # name of a job -> whether it is still not to be tried
TRANSIENT = (JournalInUse, JournalUnwritable, OSError)  # a command that is just at work, a full disk

BAD_INPUT = (
    HomeError,
    MetricsError,
    JobFileError,
    JournalError,
    CompileError,
    EvaluationError,
    ZooError,
    LocalError,
    BrokerError,
    OSError,
)


@dataclass(frozen=True)
class Place:
    """One job: its file, and the directory of its state."""

    job: Path
    state: Path


def main(argv: list[str] | None = None) -> int:
    """Runs one job to its end, or those of a home until it is stopped; see the module's docstring."""
    options = _parse(argv)
    told = enduring(json_lines(sys.stdout) if options.events else log_lines(sys.stdout))
    emit = seldom(told, time.monotonic)
    with ExitStack() as stack:
        asked_to_stop = stack.enter_context(_stop_signals())
        try:
            check_id(options.site, "site")
            emit, watched = watching(emit, options.metrics, stack)
            if options.home is not None:
                return _serve_home(options, emit, watched, asked_to_stop)
            place = Place(options.job, options.state)
            parts = _prepare(place, emit, stack)
            if parts.store.done() is not None:
                return _already_done(parts, options)
            broker = _broker(options, options.state, stack)
        except BAD_INPUT as error:
            return _failed(emit, error, EXIT_BAD_INPUT)
        return _run(parts, options.site, broker, watched, asked_to_stop)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    description = "Run one federated job, or those that were submitted to a home, one after the other."
    parser = argparse.ArgumentParser(prog="edge-runtime coordinator", description=description)
    add = parser.add_argument
    add("--job", type=Path, help="the job file (TOML, docs/job-file.md)")
    add("--state", type=Path, help="directory of the journal and the final model; resumes what it finds")
    add("--home", type=Path, metavar="DIR", help="instead of both: serve what `edge-runtime job submit` puts there")
    add("--broker", metavar="URL", help="mqtt://host:port (default: start mosquitto, or the embedded broker)")
    add("--site", default="default", help="first part of every topic, as on the devices (default: default)")
    add("--events", action="store_true", help="print one JSON object a line instead of a readable log")
    add("--metrics", metavar="[HOST:]PORT", help="show Prometheus metrics there (host: 127.0.0.1; default: nowhere)")
    options = parser.parse_args(argv)
    named = (options.job is not None, options.state is not None, options.home is not None)
    if named not in {(True, True, False), (False, False, True)}:
        parser.error("give --job and --state, or --home")
    return options


def _serve_home(options: argparse.Namespace, emit: Emit, watched: Mapping[str, Any], asked_to_stop: list[int]) -> int:
    """Runs the jobs of a home in the order of their submission, and waits for more when there are none."""
    home, told, idle = options.home, set[str](), False
    left_out: LeftOut = {}
    with ExitStack() as stack:
        stack.enter_context(open_lock(home))
        remove_remains(home)
        bring_up_to_date(home)
        broker = _broker(options, home, stack)
        while not asked_to_stop:
            jobs = queue(home)
            _tell_damaged(jobs, told, emit)
            out = _names(left_out)
            ready = next((each for each in jobs if each.state in {"ready", "left"} and each.name not in out), None)
            if ready is not None:
                code = _run_queued(ready, options, emit, (broker, watched), asked_to_stop, left_out)
                if code != EXIT_DONE:
                    return code
            elif not idle:
                emit({"event": "idle", "home": str(home), "url": without_password(broker[0]), **watched})
            else:
                time.sleep(IDLE_S)
            idle = ready is None or (idle and ready.name in left_out)  # one more try in vain is no news
    return EXIT_DONE


def _names(left_out: LeftOut) -> set[str]:
    """The jobs that are not to be tried now."""
    return {name for name, still in left_out.items() if still()}


def _until_mended(directory: Path) -> Callable[[], bool]:
    """Whether what a job is prepared from is as it was; the journal, which also requests change, is no part of it."""

    def stamps() -> list[tuple[str, int]]:
        found: list[tuple[str, int]] = []
        for path in [directory / JOB_FILE, directory / GRAPH_NAME, *sorted((directory / HELD_OUT).glob("*"))]:
            with suppress(FileNotFoundError):  # an editor may put another in its place at this moment
                found.append((path.name, path.stat().st_mtime_ns))
        return found

    before = stamps()
    return lambda: stamps() == before


def _until(time_s: float) -> Callable[[], bool]:
    return lambda: time.monotonic() < time_s


def _tell_damaged(jobs: tuple[Queued, ...], told: set[str], emit: Emit) -> None:
    for each in jobs:
        if each.state == "damaged" and each.name not in told:
            told.add(each.name)
            emit({"event": "warning", "message": f"job {each.name} is left out: {each.fault}", "rule": "JobDamaged"})


def _run_queued(  # noqa: PLR0913, PLR0917 a job, and all that it runs on
    ready: Queued,
    options: argparse.Namespace,
    emit: Emit,
    outside: tuple[tuple[str, str], Mapping[str, Any]],
    asked_to_stop: list[int],
    left_out: LeftOut,
) -> int:
    """Runs one job of a home, or takes one that has ended off the broker; those not to be tried now join `left_out`."""
    with ExitStack() as stack:
        try:
            parts = _prepare(Place(ready.directory / JOB_FILE, ready.directory), emit, stack)
        except TRANSIENT as error:
            message = f"job {ready.name} cannot be begun, which is tried again: {error}"
            emit({"event": "warning", "message": message, "rule": type(error).__name__})
            left_out[ready.name] = _until(time.monotonic() + RETRY_S)
            return EXIT_DONE
        except BAD_INPUT as error:
            _failed(emit, error, EXIT_BAD_INPUT)
            left_out[ready.name] = _until_mended(ready.directory)
            return EXIT_DONE
        if ready.state == "left":
            left_out[ready.name] = lambda: (
                True
            )  # once is enough: a broker that is down now has forgotten by the time it is up
            _clear_site(parts, options.site, outside[0][0])
            return EXIT_DONE
        code = _run(parts, options.site, *outside, asked_to_stop, lambda: next_ready(options.home, _names(left_out)))
        return EXIT_DONE if parts.store.failed() is not None else code


def _prepare(place: Place, emit: Emit, stack: ExitStack) -> Parts:
    """Everything that can be wrong with the input shows here, before the network is touched."""
    checked = check_job(place.job)
    program, held_out = checked.program, checked.held_out
    store = stack.enter_context(closing(open_store(place.state)))
    store.begin(definition(program), make_version(1, program.weights, {}))
    store.keep = checked.job.keep
    keep_model(place.state, program.model)
    # Folds and judges in a thread: the link must go on, however large the model is.
    worker = stack.enter_context(ThreadPoolExecutor(1, "versions"))
    return Parts(
        program=program,
        fold=lambda old, gathered: worker.submit(fold_journalled, program, place.state, old, gathered),
        judge=lambda version: worker.submit(_judge, program, held_out, version),
        store=store,
        directory=place.state,
        emit=of_job(emit, checked.job.name),
    )


def _judge(program: Program, held_out: Dataset, version: Version) -> Evaluation:
    return evaluate(judged_model(program, version), held_out)


def _broker(options: argparse.Namespace, directory: Path, stack: ExitStack) -> tuple[str, str]:
    """URL and kind. A broker given by URL may be down now: the link waits for it."""
    if options.broker is not None:
        parse_url(options.broker)  # a bad one is refused now
        return options.broker, "external"
    broker = start_broker(None, directory / "broker")
    stack.callback(broker.stop)
    return broker.url, broker.kind


def _client_id(site: str) -> str:
    # The process id keeps two coordinators from taking each other's connection; epochs decide which one stays.
    return f"edge-coordinator-{site}-{os.getpid()}"


def _listening(parts: Parts, site: str, broker: tuple[str, str]) -> dict[str, object]:
    return {
        "event": "listening",
        "url": without_password(broker[0]),
        "broker": broker[1],
        "site": site,
        "round": parts.store.present_round(),
        "state": str(parts.directory),
    }


def _already_done(parts: Parts, options: argparse.Namespace) -> int:
    done = export(parts.store)
    name = parts.program.job.name
    parts.emit({"event": "warning", "message": f"job {name} is done already: {parts.store.done()}; exported again"})
    parts.emit(done)
    if options.broker is not None:
        _clear_site(parts, options.site, options.broker)
    return EXIT_DONE


def _clear_site(parts: Parts, site: str, url: str) -> None:
    """Takes off the broker what the job left there if the two had no link when it ended."""
    entry = SiteEntry(site, parts.store.epoch(), os.urandom(8).hex())
    older = None
    until_s = time.monotonic() + LEAVE_S
    with closing(Link(url, _client_id(site), speak=GatewaySpeaker)) as link:
        while not entry.entered and older is None and time.monotonic() < until_s:
            older = knock(entry, link, parts.emit)
        if entry.entered:
            parts.store.keep_epoch(entry.epoch)
            goodbye = GatewaySession(site, entry.epoch, entry.boot).stopping()
            send_all(link, [*clear_job(parts.program, parts.store, site), *goodbye])
            parts.store.clear()
            return
    why = "no link to it" if older is None else "another coordinator is on this site"
    message = f"it was not looked after whether the job has left messages on the broker: {why}"
    parts.emit({"event": "warning", "message": message})


def _failed(emit: Emit, error: Exception, code: int) -> int:
    with suppress(OSError):  # the log itself may be what fails
        emit({"event": "error", "message": str(error), "rule": type(error).__name__})
    sys.stderr.write(f"edge-runtime coordinator: {error}\n")
    return code


def _run(  # noqa: PLR0913, PLR0917 a job, and all that it runs on
    parts: Parts,
    site: str,
    broker: tuple[str, str],
    watched: Mapping[str, Any],
    asked_to_stop: list[int],
    others_wait: Callable[[], object] = lambda: None,
) -> int:
    """Runs a job until it ends, gives way or is stopped."""
    try:
        with closing(Link(broker[0], _client_id(site), speak=GatewaySpeaker)) as link:
            parts.emit({**_listening(parts, site, broker), **watched})
            seat = enter(parts, site, link, asked_to_stop, others_wait)
            return EXIT_DONE if asked_to_stop else EXIT_FAILED if seat is None else serve(seat, asked_to_stop)
    except (JournalError, OSError) as error:
        return _failed(parts.emit, error, EXIT_FAILED)


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT in the list it yields."""
    asked: list[int] = []

    def ask(number: int, _frame: object) -> None:
        asked.append(number)

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
