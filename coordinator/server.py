"""`edge-runtime coordinator`: the shell around a running job; it owns the link, the clock, the signals and the disk.

Exit codes: 0 the job is done, or was left resumable on SIGTERM; 2 bad input; 3 the job failed.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from coordinator.broker import BrokerError, start_broker
from coordinator.broker.probe import without_password
from coordinator.evaluate import Evaluation, EvaluationError, check_held_out, evaluate
from coordinator.events import Emit, json_lines, log_lines, of_job, seldom
from coordinator.gateway import EXIT_DONE, EXIT_FAILED, Parts, RunningJob, superseded
from coordinator.jobfile import JobFileError, load_job
from coordinator.journal import JournalError
from coordinator.leftovers import clear_job
from coordinator.program import Program, build_program, definition, judged_model, make_version
from coordinator.results import export, fold
from coordinator.store import Version, open_store, updates_beside, weights_beside
from coordinator.watch import MetricsError, every, stand, watching
from edge_runtime.data import Dataset, load_dataset
from edge_runtime.errors import LocalError
from edge_runtime.link import Connected, Disconnected, Link, LinkEvent, Message, Refused, Subscribed
from edge_runtime.wire.entry import EntryOutcome, SiteEntry
from edge_runtime.wire.events import Command, GatewaySuperseded, Publish, Subscribe, Unsubscribe, Warned
from edge_runtime.wire.gateway import GatewaySession
from edge_runtime.wire.topics import check_id
from models.compiler import CompileError
from models.zoo import ZooError

EXIT_BAD_INPUT = 2
POLL_S = 0.25
ENTRY_POLL_S = 0.05
LEAVE_S = 5.0
SAMPLE_S = 5.0

BAD_INPUT = (
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


def main(argv: list[str] | None = None) -> int:
    """Runs one job to its end; see the module's docstring for what is returned."""
    options = _parser().parse_args(argv)
    emit = seldom(json_lines(sys.stdout) if options.events else log_lines(sys.stdout), time.monotonic)
    with ExitStack() as stack:
        try:
            emit, watched = watching(emit, options.metrics, stack)
            parts = _prepare(options, emit, stack)
            if parts.store.done() is not None:
                return _already_done(parts, options)
            url, kind = _broker(options, stack)
            link = stack.enter_context(closing(Link(url, _client_id(options.site))))
            parts.emit(_listening(parts, options.site, (url, kind)) | watched)
        except BAD_INPUT as error:
            return _failed(emit, error, EXIT_BAD_INPUT)
        try:
            return _run(parts, options.site, link)
        except (JournalError, OSError) as error:
            return _failed(parts.emit, error, EXIT_FAILED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edge-runtime coordinator", description="Run one federated job.")
    add = parser.add_argument
    add("--job", type=Path, required=True, help="the job file (TOML, docs/job-file.md)")
    add("--state", type=Path, required=True, help="directory of the journal and the final model; resumes what it finds")
    add("--broker", metavar="URL", help="mqtt://host:port (default: start mosquitto, or the embedded broker)")
    add("--site", default="default", help="first part of every topic, as on the devices (default: default)")
    add("--events", action="store_true", help="print one JSON object a line instead of a readable log")
    add("--metrics", metavar="[HOST:]PORT", help="show Prometheus metrics there (host: 127.0.0.1; default: nowhere)")
    return parser


def _prepare(options: argparse.Namespace, emit: Emit, stack: ExitStack) -> Parts:
    """Everything that can be wrong with the input shows here, before the network is touched."""
    check_id(options.site, "site")
    job = load_job(options.job)
    program = build_program(job)
    held_out = load_dataset(job.evaluate_data, "test")
    check_held_out(program.model, held_out)
    store = stack.enter_context(closing(open_store(options.state)))
    store.begin(definition(program), make_version(1, program.weights, {}))
    # Folds and judges in a thread: the link must go on, however large the model is.
    worker = stack.enter_context(ThreadPoolExecutor(1, "versions"))
    return Parts(
        program=program,
        fold=lambda old: worker.submit(_fold, program, options.state, old),
        judge=lambda version: worker.submit(_judge, program, held_out, version),
        store=store,
        directory=options.state,
        emit=of_job(emit, job.name),
    )


def _fold(program: Program, directory: Path, old: Version) -> Version:
    with closing(updates_beside(directory, old.version)) as updates:
        return fold(program, updates, old, lambda number: weights_beside(directory, number))


def _judge(program: Program, held_out: Dataset, version: Version) -> Evaluation:
    return evaluate(judged_model(program, version), held_out)


def _broker(options: argparse.Namespace, stack: ExitStack) -> tuple[str, str]:
    """URL and kind. A broker given by URL may be down now: the link waits for it."""
    if options.broker is not None:
        return options.broker, "external"
    broker = start_broker(None, options.state / "broker")
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
    done = export(parts.program, parts.store, parts.directory)
    name = parts.program.job.name
    parts.emit({"event": "warning", "message": f"job {name} is done already: {parts.store.done()}; exported again"})
    parts.emit(done)
    if options.broker is not None:
        _clear_site(parts, options.site, options.broker)
    return EXIT_DONE


def _clear_site(parts: Parts, site: str, url: str) -> None:
    """Takes off the broker what the job left there if the two had no link when it ended."""
    entry = SiteEntry(site, parts.store.epoch(), os.urandom(8).hex())
    older: GatewaySuperseded | None = None
    until_s = time.monotonic() + LEAVE_S
    with closing(Link(url, _client_id(site))) as link:
        while not entry.entered and older is None and time.monotonic() < until_s:
            older = _knock(entry, link, parts.emit)
        if entry.entered:
            parts.store.keep_epoch(entry.epoch)
            goodbye = GatewaySession(site, entry.epoch, entry.boot).stopping()
            _send(link, [*clear_job(parts.program, parts.store, site), *goodbye])
            return
    why = "no link to it" if older is None else "another coordinator is on this site"
    message = f"it was not looked after whether the job has left messages on the broker: {why}"
    parts.emit({"event": "warning", "message": message})


def _failed(emit: Emit, error: Exception, code: int) -> int:
    emit({"event": "error", "message": str(error), "rule": type(error).__name__})
    sys.stderr.write(f"edge-runtime coordinator: {error}\n")
    return code


def _run(parts: Parts, site: str, link: Link) -> int:
    entry = SiteEntry(site, parts.store.epoch(), os.urandom(8).hex())
    with _stop_signals(link) as asked_to_stop:
        while not entry.entered:
            if asked_to_stop:
                return EXIT_DONE
            if (older := _knock(entry, link, parts.emit)) is not None:
                parts.emit(superseded(older))
                return EXIT_FAILED
        parts.store.keep_epoch(entry.epoch)
        job = RunningJob(parts, site, entry.epoch, entry.boot, time.monotonic())
        link.set_will(job.session.will())
        link.reconnect()
        tell = every(SAMPLE_S, lambda: parts.emit(stand(job, link, parts.directory)))
        return _serve(job, link, parts.emit, asked_to_stop, tell)


def _knock(entry: SiteEntry, link: Link, emit: Emit) -> GatewaySuperseded | None:
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
                _send(link, [outcome])
    return None


def _serve(job: RunningJob, link: Link, emit: Emit, asked_to_stop: list[int], tell: Callable[[float], None]) -> int:
    """The loop: what the link brings goes into the job, what the job wants goes out.

    Long work waits for one more poll, which sends what is queued: the last acknowledgement leaves before a round is
    folded.
    """
    while job.exit_code is None and not asked_to_stop:
        tell(time.monotonic())
        due = job.has_work
        _exchange(job, link, emit, 0.0 if due else POLL_S)
        if due:
            _send(link, job.work(time.monotonic()))
            if job.beside is not None:
                job.beside.add_done_callback(lambda _: link.wake())
    until_s = time.monotonic() + LEAVE_S
    while not link.connected and job.exit_code is not None and time.monotonic() < until_s:
        _exchange(job, link, emit, POLL_S)  # what a finished job leaves on the broker is worth a wait
    if not link.connected and job.exit_code == EXIT_DONE:
        message = "no link to the broker at the end of the job; to take its last messages off, start this command again"
        emit({"event": "warning", "message": message})
    _send(link, job.stopping())
    return EXIT_DONE if job.exit_code is None else job.exit_code


def _exchange(job: RunningJob, link: Link, emit: Emit, timeout_s: float) -> None:
    for event in link.poll(timeout_s):
        _send(link, _take(job, link, event, emit))
    _send(link, job.tick(time.monotonic()))


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


def _send(link: Link, commands: Iterable[Command]) -> None:
    # While the link is down nothing is sent and nothing is lost: the session says it again when it is up.
    for command in commands:
        match command:
            case Publish(topic, payload, qos, retain):
                link.publish(topic, payload, qos, retain=retain)
            case Subscribe(topics, qos):
                link.subscribe(topics, qos)
            case Unsubscribe(topics):
                link.unsubscribe(topics)


@contextmanager
def _stop_signals(link: Link) -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT in the list it yields, and wakes the link's poll."""
    asked: list[int] = []

    def ask(number: int, _frame: object) -> None:
        asked.append(number)
        link.wake()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
