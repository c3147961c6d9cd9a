"""`edge-runtime device VERB`: the devices of a gateway's jobs."""

import argparse
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from coordinator import command_lines as lines
from coordinator.home import HomeError, keep_out, queue
from coordinator.standing import DeviceStanding, device_standings
from coordinator.store import open_reader
from edge_runtime.wire.topics import check_id


def main(argv: list[str] | None = None) -> int:
    """Runs one verb; the exit codes are in coordinator.command_lines."""
    options = _parser().parse_args(argv)
    try:
        return VERBS[options.verb](options)
    except lines.BAD_INPUT as error:
        return lines.failed("device", error)
    except KeyboardInterrupt:
        return lines.EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edge-runtime device",
        description="Devices of a gateway's jobs (docs/coordinator.md).",
        epilog=lines.EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, text in {
        "list": "the devices that jobs have seen",
        "show": "one device in every job",
        "evict": "take a device out of jobs until it is readmitted",
        "readmit": "ask a device again that was evicted or could not do its tasks",
    }.items():
        each = verbs.add_parser(verb, help=text)
        lines.add_place(each, job_required=False)
        if verb != "list":
            each.add_argument("device", help="its id")
        lines.add_timeout(each)
    return parser


def _places(options: argparse.Namespace) -> list[Path]:
    """One job where one is named, else all of the home that are not done."""
    if options.home is None or options.job is not None:
        return [lines.place_of(options)]
    return [each.directory for each in queue(options.home) if each.state in {"ready", "paused", "failed"}]


def _list(options: argparse.Namespace) -> int:
    _print(options, [each for directory in _places(options) for each in _devices(directory)])
    return lines.EXIT_DONE


def _show(options: argparse.Namespace) -> int:
    found = [each for place in _places(options) for each in _devices(place) if each.device == options.device]
    if not found:
        which = "that is not done " if options.job is None and options.state is None else ""
        raise HomeError(
            f"no job {which}has seen a device {options.device!r}; `device list [JOB]` shows those that were seen"
        )
    _print(options, found)
    return lines.EXIT_DONE


def _devices(directory: Path) -> tuple[DeviceStanding, ...]:
    with closing(open_reader(directory)) as store:
        return device_standings(store)


def _print(options: argparse.Namespace, found: list[DeviceStanding]) -> None:
    if options.json:
        for each in found:
            lines.show(options, asdict(each), "")
        return
    head = ("DEVICE", "JOB", "PRESENCE", "EXAMPLES", "UPDATES", "LAST ROUND", "FAILURES", "TAKES PART")
    rows = [
        (e.device, e.job, e.presence, e.examples, e.updates, e.last_round, e.failures, e.evicted or e.unfit or "yes")
        for e in found
    ]
    lines.show(options, {}, lines.table([head, *rows]))


def _request(options: argparse.Namespace) -> int:
    check_id(options.device, "device")
    if options.home is not None and options.job is None and options.state is None:
        keep_out(options.home, options.device, evicted=options.verb == "evict")
        word = "without" if options.verb == "evict" else "with"
        message = f"jobs to come begin {word} {options.device}"
        record = {"job": None, "verb": options.verb, "code": lines.EXIT_DONE, "message": message}
        lines.show(options, record, f"{options.home}: {message}")
    answers = [lines.ask(options, place, options.verb, options.device) for place in _places(options)]
    return max(answers, default=lines.EXIT_DONE)


VERBS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "list": _list,
    "show": _show,
    "evict": _request,
    "readmit": _request,
}
