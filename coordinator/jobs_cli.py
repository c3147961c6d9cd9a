"""`edge-runtime job VERB`: submit jobs to a gateway's home, look at them, and steer them while they run or not."""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from coordinator import command_lines as lines
from coordinator.backup import back_up
from coordinator.home import HomeError, clone, home_of, parse_changes, submissions, submit
from coordinator.results import export_version
from coordinator.standing import JobStanding, job_standing, requests_of, rounds_after, standing_of
from coordinator.store import open_reader
from coordinator.versions import find_version, list_versions

WATCH_S = 0.25
SHOWN = 10


def main(argv: list[str] | None = None) -> int:
    """Runs one verb; the exit codes are in coordinator.command_lines."""
    options = _parser().parse_args(argv)
    try:
        return VERBS[options.verb](options)
    except lines.BAD_INPUT as error:
        return lines.failed("job", error)
    except KeyboardInterrupt:
        return lines.EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edge-runtime job",
        description="Jobs of a gateway (docs/coordinator.md).",
        epilog=lines.EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_submit(verbs.add_parser("submit", help="check a job file and put the job into the queue of a home"))
    listing = verbs.add_parser("list", help="the jobs of a home")
    listing.add_argument("--home", type=Path, required=True, metavar="DIR")
    listing.add_argument("--json", action="store_true", help="print JSON, one object a line")
    for verb, text in {
        "show": "how a job stands, its versions, its last rounds and requests",
        "watch": "follow a job's rounds until it ends",
        "pause": "start no further round; the one that runs goes on to its version",
        "resume": "start rounds again, also of a job that failed",
        "stop": "end a job with the version it has",
    }.items():
        each = verbs.add_parser(verb, help=text)
        lines.add_place(each)
        lines.add_timeout(each)
    _add_versions(verbs)
    return parser


def _add_submit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="the job file (docs/job-file.md)")
    parser.add_argument("--home", type=Path, required=True, metavar="DIR", help="the gateway's home; made if not there")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_versions(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    rollback = verbs.add_parser("rollback", help="put the weights and server state of an older version on top")
    lines.add_place(rollback)
    rollback.add_argument("version", type=lines.version_number, help="its number")
    lines.add_timeout(rollback)
    export = verbs.add_parser("export", help="write a kept version as ONNX and safetensors, or figures for TensorBoard")
    lines.add_place(export)
    export.add_argument("--version", type=lines.version_number, help="its number (default: the newest)")
    export.add_argument("--to", type=Path, metavar="DIR", help="gets NAME-VERSION.onnx and .safetensors")
    export.add_argument("--tensorboard", type=Path, metavar="DIR", help="gets NAME/ with every round's figures")
    backup = verbs.add_parser("backup", help="copy a job, while it runs or not")
    lines.add_place(backup)
    backup.add_argument("--to", type=Path, required=True, metavar="DIR", help="a directory that is not there yet")
    copy = verbs.add_parser("clone", help="submit a job that begins with a version of another")
    lines.add_place(copy)
    copy.add_argument("new", help="the new job's name")
    copy.add_argument("--version", type=lines.version_number, help="of the other job (default: its newest)")
    copy.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="a key that is different")


def _submit(options: argparse.Namespace) -> int:
    submitted = submit(options.home, options.file)
    record = {"job": submitted.name, "number": submitted.number, "directory": str(submitted.directory)}
    lines.show(options, record, f"job {submitted.name} is number {submitted.number} of {options.home}")
    return lines.EXIT_DONE


def _list(options: argparse.Namespace) -> int:
    found = [job_standing(each.directory, each.fault) for each in submissions(options.home)]
    if options.json:
        for each in found:
            lines.show(options, asdict(each), "")
        return lines.EXIT_DONE
    head = ("JOB", "STATE", "ROUND", "OF", "VERSION", "ACCURACY", "DEVICES")
    rows = [(e.name, e.state, e.round, e.rounds, e.version, e.accuracy, e.devices) for e in found]
    faults = [f"{each.name}: {each.reason}" for each in found if each.state == "damaged"]
    lines.show(options, {}, "\n".join([lines.table([head, *rows]), *faults]))
    return lines.EXIT_DONE


def _show(options: argparse.Namespace) -> int:
    directory = lines.place_of(options)
    with closing(open_reader(directory)) as store:
        standing, versions = standing_of(store), list_versions(store)
        rounds = list(rounds_after(store, 0))[-SHOWN:]
        requests = requests_of(store, SHOWN)
    kept = [asdict(each) for each in versions if each.kept]
    record = {**asdict(standing), "versions": kept, "last_rounds": rounds, "last_requests": requests}
    text = [_sentence(standing), *_part("kept versions", kept), *_part("last rounds", rounds)]
    lines.show(options, record, "\n".join([*text, *_part("last requests", requests)]))
    return lines.EXIT_DONE


def _part(title: str, records: Sequence[Mapping[str, object]]) -> list[str]:
    if not records:
        return []
    return ["", title, lines.table([tuple(records[0]), *(tuple(each.values()) for each in records)])]


def _sentence(standing: JobStanding) -> str:
    why = f": {standing.reason}" if standing.reason else ""
    return (
        f"{standing.name} is {standing.state}{why}; round {standing.round} of {standing.rounds}, "
        f"version {standing.version}, {standing.devices} devices on line"
    )


def _watch(options: argparse.Namespace) -> int:
    directory = lines.place_of(options)
    last_state, last_round, seen = "", 0, -1
    with closing(open_reader(directory)) as store:
        while True:
            changes = store.foreign_changes()
            standing = standing_of(store)
            if changes != seen:
                for each in rounds_after(store, last_round):
                    last_round = each["round"]
                    lines.show(options, each, _round_line(each))
            seen = changes
            if standing.state != last_state:
                last_state = standing.state
                lines.show(options, asdict(standing), _sentence(standing))
            if standing.state in {"done", "failed"}:
                return lines.EXIT_DONE if standing.state == "done" else lines.EXIT_FAILED
            time.sleep(WATCH_S)


def _round_line(each: Mapping[str, object]) -> str:
    note = f" ({each['note']})" if each["note"] else ""
    return (
        f"round {each['round']}: accuracy {each['accuracy']:.4f}, loss {each['loss']:.4f}, "
        f"{each['devices_accepted']} updates, {each['devices_asked']} asked, {each['seconds']:.2f} s{note}"
    )


def _request(options: argparse.Namespace) -> int:
    return lines.ask(options, lines.place_of(options), options.verb, str(getattr(options, "version", "")))


def _export(options: argparse.Namespace) -> int:
    if options.to is None and options.tensorboard is None:
        raise HomeError("say what is wanted: --to DIR for the model, --tensorboard DIR for its rounds' figures")
    directory = lines.place_of(options)
    if options.tensorboard is not None:
        _export_scalars(options, directory)
    if options.to is not None:
        _export_model(options, directory)
    return lines.EXIT_DONE


def _export_scalars(options: argparse.Namespace, directory: Path) -> None:
    from coordinator.tensorboard import write_scalars  # noqa: PLC0415  its writer takes a second to import

    with closing(open_reader(directory)) as store:
        name = standing_of(store).name
        rounds = write_scalars(store, options.tensorboard / name)
    record = {"job": name, "rounds": rounds, "tensorboard": str(options.tensorboard / name)}
    lines.show(options, record, f"{rounds} rounds in {options.tensorboard / name}")


def _export_model(options: argparse.Namespace, directory: Path) -> None:
    with closing(open_reader(directory)) as store:
        version = store.latest() if options.version is None else find_version(store, options.version)
        name = standing_of(store).name
    options.to.mkdir(parents=True, exist_ok=True)
    model, weights = (options.to / f"{name}-{version.version}.{kind}" for kind in ("onnx", "safetensors"))
    export_version(directory, version, model, weights)
    record = {"job": name, "version": version.version, "model": str(model), "weights": str(weights)}
    lines.show(options, record, f"{model}\n{weights}")


def _backup(options: argparse.Namespace) -> int:
    directory = lines.place_of(options)
    back_up(directory, options.to)
    lines.show(options, {"job": directory.name, "backup": str(options.to)}, f"{directory} is copied to {options.to}")
    return lines.EXIT_DONE


def _clone(options: argparse.Namespace) -> int:
    directory = lines.place_of(options)
    home = options.home if options.home is not None else home_of(directory)
    with closing(open_reader(directory)) as store:
        version = store.latest() if options.version is None else find_version(store, options.version)
    made = clone(home, directory, version, options.new, parse_changes(tuple(options.set)))
    record = {
        "job": made.name,
        "number": made.number,
        "directory": str(made.directory),
        "from_version": version.version,
    }
    lines.show(options, record, f"job {made.name} is number {made.number}; it begins with version {version.version}")
    return lines.EXIT_DONE


VERBS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "submit": _submit,
    "list": _list,
    "show": _show,
    "watch": _watch,
    "pause": _request,
    "resume": _request,
    "stop": _request,
    "rollback": _request,
    "export": _export,
    "backup": _backup,
    "clone": _clone,
}
