"""A gateway's home: the jobs that were submitted to it, each in a directory of its own that needs nothing outside.

    HOME/lock                      held by the coordinator that serves it
    HOME/queue/lock                held while a job gets its place; not among the jobs, of which one may be called lock
    HOME/evicted.json              devices that jobs to come begin without, and by whom they were taken out
    HOME/jobs/NAME/job.toml        the job file, with its files' places in this directory
    HOME/jobs/NAME/model.onnx      the model
    HOME/jobs/NAME/held-out/       the held-out data
    HOME/jobs/NAME/submitted.json  its place in the queue, who put it there, and from where
    HOME/jobs/NAME/journal.sqlite  and the rest of a state directory

A job's directory appears by a rename when all of it is written and synced, so there is never half a job.
"""

import json
import re
import secrets
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.evaluate import check_held_out
from coordinator.jobfile import NOT_TOML, Job, JobFileError, Problem, load_job
from coordinator.journal import JournalError, open_lock, sync_directory, write_file
from coordinator.program import Program, build_program, definition, make_version
from coordinator.requests import whoever
from coordinator.results import GRAPH_NAME, export_version, keep_model
from coordinator.store import Store, Version, open_reader, open_store
from coordinator.toml_text import toml_text
from edge_runtime.data import Dataset, load_dataset

JOBS, JOB_FILE, HELD_OUT, SUBMITTED = "jobs", "job.toml", "held-out", "submitted.json"
QUEUE = "queue"
EVICTED = "evicted.json"
# Directories being made begin with this, which no job's name can.
MAKING = "."
_KEY = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")


class HomeError(Exception):
    """The home has no such job, or has one already; the message says what to do."""


@dataclass(frozen=True)
class Submission:
    """A job's place in the queue: smaller numbers first. `fault` says why it cannot be told, if so; then it is last."""

    number: int
    name: str
    directory: Path
    fault: str | None = None


@dataclass(frozen=True)
class Queued:
    """A submitted job as the queue sees it.

    `state` is "ready", "paused", "failed", "left" (it has ended, and may have messages on the broker still), "done" or
    "damaged", with the reason in `fault`.
    """

    name: str
    directory: Path
    state: str
    fault: str = ""


def submissions(home: Path) -> tuple[Submission, ...]:
    """The jobs of a home in the order in which they were submitted; none where there is no home yet."""
    found = [_submission(path.parent) for path in (home / JOBS).glob(f"[!{MAKING}]*/{SUBMITTED}")]
    return tuple(sorted(found, key=lambda each: (each.number, each.name)))


def _submission(directory: Path) -> Submission:
    try:
        number = json.loads((directory / SUBMITTED).read_bytes())["number"]
        return Submission(int(number), directory.name, directory)
    except (OSError, ValueError, KeyError, TypeError) as error:
        fault = f"{directory / SUBMITTED} cannot be read ({error!r}); restore it, or move the job's directory away"
        return Submission(sys.maxsize, directory.name, directory, fault)


def queue(home: Path) -> tuple[Queued, ...]:
    """How every submitted job stands, in their order; one that is damaged keeps no other from running."""
    return tuple(_queued(each) for each in submissions(home))


def _queued(each: Submission) -> Queued:
    if each.fault is not None:
        return Queued(each.name, each.directory, "damaged", each.fault)
    try:
        with closing(open_reader(each.directory)) as store:
            return Queued(each.name, each.directory, _state(store))
    except JournalError as error:
        return Queued(each.name, each.directory, "damaged", str(error))


def _state(store: Store) -> str:
    if store.done() is not None:
        return "done" if store.cleared() else "left"
    if store.failed() is not None:
        return "failed"
    return "paused" if store.paused() else "ready"


def next_ready(home: Path, but: Collection[str] = ()) -> Queued | None:
    """The first job of the queue that can run and is none of `but`."""
    return next((each for each in queue(home) if each.state == "ready" and each.name not in but), None)


def bring_up_to_date(home: Path) -> None:
    """Give journals of an older version of this program the present tables; damaged ones are left to the queue."""
    for each in submissions(home):
        with suppress(JournalError):
            open_store(each.directory).close()


def job_directory(home: Path, name: str) -> Path:
    """The directory of a submitted job.

    Raises:
        HomeError: There is none of this name.
    """
    names = [each.name for each in submissions(home)]
    if name not in names:
        raise HomeError(f"{home} has no job {name!r}; it has: {', '.join(names) or 'none'}")
    return home / JOBS / name


def home_of(directory: Path) -> Path:
    """The home that a job's directory is in.

    Raises:
        HomeError: It is in none: a state directory of `coordinator --job FILE --state DIR`.
    """
    if not (directory / SUBMITTED).is_file():
        raise HomeError(
            f"{directory} is of no home and has no copy of its job file; "
            "submit a job file of your own, with [model] onnx = what `job export` gives"
        )
    return directory.resolve().parent.parent


@dataclass(frozen=True)
class CheckedJob:
    """A job of which nothing is wrong."""

    job: Job
    program: Program
    held_out: Dataset


def check_job(path: Path) -> CheckedJob:
    """Everything that can be wrong with a job file, its model and its held-out data.

    Raises:
        JobFileError: With every problem of the file.
        CompileError, ZooError, EvaluationError, edge_runtime.data.DataError: Its model or its
            data cannot be used.
    """
    job = load_job(path)
    program = build_program(job)
    held_out = load_dataset(job.evaluate_data, "test")
    check_held_out(program.model, held_out)
    return CheckedJob(job, program, held_out)


def submit(home: Path, path: Path) -> Submission:
    """Check a job file wholly, and put the job with all it needs at the end of a home's queue.

    Raises:
        As check_job; HomeError: The home has a job of this name.
    """
    checked = check_job(path)
    name = checked.job.name
    with _alone(home):
        directory = home / JOBS / name
        if directory.exists():
            raise HomeError(f"{home} has a job {name!r} already; give this one another name")
        number = max((each.number for each in submissions(home)), default=0) + 1
        making = home / JOBS / f"{MAKING}{name}-{secrets.token_hex(4)}"
        try:
            _write_job(making, checked, path, evicted_from(home))
            note = {"number": number, "by": whoever(), "from": str(path.resolve())}
            write_file(making / SUBMITTED, json.dumps(note).encode())
            making.rename(directory)
        except BaseException:
            shutil.rmtree(making, ignore_errors=True)
            raise
        sync_directory(home / JOBS)
    return Submission(number, name, directory)


def _write_job(making: Path, checked: CheckedJob, path: Path, evicted: Mapping[str, str]) -> None:
    making.mkdir(parents=True)
    document = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    if "onnx" in document["model"]:
        document["model"] = {"onnx": GRAPH_NAME}
    document["evaluate"] = {**document["evaluate"], "data": HELD_OUT}
    write_file(making / JOB_FILE, toml_text(document).encode())
    (making / HELD_OUT).mkdir()
    arrays = BytesIO()
    np.savez(arrays, x=checked.held_out.x, y=checked.held_out.y)
    write_file(making / HELD_OUT / "test.npz", arrays.getvalue())
    keep_model(making, checked.program.model)
    with closing(open_store(making)) as store:
        store.begin(definition(checked.program), make_version(1, checked.program.weights, {}))
        with store.transaction() as write:
            for row in evicted.items():
                write("INSERT INTO evictions VALUES (?, ?)", row)


def evicted_from(home: Path) -> dict[str, str]:
    """The devices that jobs to come begin without, each with why.

    Raises:
        HomeError: What the home has of them cannot be read.
    """
    path = home / EVICTED
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise HomeError(f"{path} cannot be read ({error}); restore it, or move it away and evict again") from error
    if not isinstance(found, dict) or not all(isinstance(why, str) for why in found.values()):
        raise HomeError(f"{path} is no object of device ids and reasons; restore it, or move it away and evict again")
    return found


def keep_out(home: Path, device: str, *, evicted: bool) -> None:
    """Jobs that are submitted from now on begin without the device, or with it again.

    Raises:
        HomeError: There is no home, or what it has of evictions cannot be read.
    """
    if not (home / JOBS).is_dir():
        raise HomeError(f"{home} is no home: no job was ever submitted to it")
    with _alone(home):
        before = evicted_from(home)
        after = {name: why for name, why in before.items() if name != device}
        if evicted:
            after[device] = before.get(device, f"evicted by {whoever()}")
        if after != before:
            write_file(home / EVICTED, json.dumps(after, indent=1, sort_keys=True).encode())


def clone(home: Path, source: Path, version: Version, name: str, changes: Mapping[str, Any]) -> Submission:
    """Submit a job that begins with the weights of another's version, and with some keys of its job file changed.

    Args:
        home: Where the new job goes.
        source: The directory of the other job.
        version: Of the other job.
        name: Of the new one.
        changes: {"section.key": value}.

    Raises:
        As submit.
    """
    document = tomllib.loads((source / JOB_FILE).read_text(encoding="utf-8"))
    for key, value in {**changes, "job.name": name}.items():
        section, _, rest = key.partition(".")
        document.setdefault(section, {})[rest] = value
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory)
        export_version(source, version, copy / GRAPH_NAME, copy / "weights.safetensors")
        document["model"] = {"onnx": GRAPH_NAME}
        document["evaluate"] = {**document["evaluate"], "data": str((source / HELD_OUT).resolve())}
        (copy / JOB_FILE).write_text(toml_text(document), encoding="utf-8")
        try:
            return submit(home, copy / JOB_FILE)
        except JobFileError as error:  # its file is gone when anybody could look there
            problems = (Problem(None, each.where, each.message) for each in error.problems)
            raise JobFileError(Path(f"clone of {source.name}"), tuple(problems)) from error


def parse_changes(words: tuple[str, ...]) -> dict[str, Any]:
    """`section.key=value` as on a command line, values as in a job file; a bare word is text.

    Raises:
        JobFileError: One is not of this form.
    """
    changes: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or _KEY.fullmatch(key.strip()) is None:
            problem = Problem(None, word, "is not SECTION.KEY=VALUE, such as training.lr=0.01")
            raise JobFileError(Path("--set"), (problem,))
        try:
            changes[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except NOT_TOML:
            changes[key.strip()] = text.strip()
    return changes


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """One submission at a time: numbers and names are each given once."""
    (home / JOBS).mkdir(parents=True, exist_ok=True)
    with open_lock(home / QUEUE):
        yield


def remove_remains(home: Path) -> None:
    """Remove what a submission that was killed has left; call it with the home's lock held and none under way."""
    with _alone(home):
        for path in (home / JOBS).glob(f"{MAKING}*"):
            shutil.rmtree(path, ignore_errors=True)
