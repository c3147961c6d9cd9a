"""`edge-runtime coordinator`: the shell around a running job; it owns the link, the clock, the signals and the disk.

Exit codes: 0 the job is done, or was left resumable on SIGTERM; 2 bad input; 3 the job failed.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from coordinator.broker import BrokerError, start_broker
from coordinator.broker.probe import without_password
from coordinator.evaluate import Evaluation, EvaluationError, check_held_out, evaluate
from coordinator.events import Emit, json_lines, log_lines, of_job, seldom
from coordinator.gateway import EXIT_DONE, EXIT_FAILED, Parts, superseded
from coordinator.jobfile import JobFileError, load_job
from coordinator.journal import JournalError
from coordinator.leftovers import clear_job
from coordinator.program import Program, build_program, definition, judged_model, make_version
from coordinator.results import export, fold, keep_model
from coordinator.seat import LEAVE_S, Seat, knock, send, serve
from coordinator.store import Version, open_store, updates_beside, weights_beside
from coordinator.watch import MetricsError, watching
from edge_runtime.data import Dataset, load_dataset
from edge_runtime.errors import LocalError
from edge_runtime.link import Link
from edge_runtime.wire.entry import SiteEntry
from edge_runtime.wire.gateway import GatewaySession
from edge_runtime.wire.topics import check_id
from models.compiler import CompileError
from models.zoo import ZooError

EXIT_BAD_INPUT = 2

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
    keep_model(options.state, program.model)
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
    with closing(Link(url, _client_id(site))) as link:
        while not entry.entered and older is None and time.monotonic() < until_s:
            older = knock(entry, link, parts.emit)
        if entry.entered:
            parts.store.keep_epoch(entry.epoch)
            goodbye = GatewaySession(site, entry.epoch, entry.boot).stopping()
            send(link, [*clear_job(parts.program, parts.store, site), *goodbye])
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
            if (older := knock(entry, link, parts.emit)) is not None:
                parts.emit(superseded(older))
                return EXIT_FAILED
        parts.store.keep_epoch(entry.epoch)
        parts.store.fail(None)
        link.set_will(GatewaySession(site, entry.epoch, entry.boot).will())
        link.reconnect()
        return serve(Seat(parts, site, link, entry.epoch, entry.boot), asked_to_stop)


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
