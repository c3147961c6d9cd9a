"""A gateway's home: the jobs that were submitted to it, each in a directory of its own that needs nothing outside.

    HOME/lock                      held by the coordinator that serves it
    HOME/jobs/NAME/job.toml        the job file, with its files' places in this directory
    HOME/jobs/NAME/model.onnx      the model
    HOME/jobs/NAME/held-out/       the held-out data
    HOME/jobs/NAME/submitted.json  its place in the queue, who put it there, and from where
    HOME/jobs/NAME/journal.sqlite  and the rest of a state directory

A job's directory appears by a rename when all of it is written and synced, so there is never half a job.
"""

import json
import secrets
import shutil
import tempfile
import tomllib
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.evaluate import check_held_out
from coordinator.jobfile import Job, JobFileError, Problem, load_job
from coordinator.journal import open_lock, sync_directory, write_file
from coordinator.program import Program, build_program, definition, make_version
from coordinator.requests import whoever
from coordinator.results import GRAPH_NAME, export_version, keep_model
from coordinator.store import Version, open_reader, open_store
from coordinator.toml_text import toml_text
from edge_runtime.data import Dataset, load_dataset

JOBS, JOB_FILE, HELD_OUT, SUBMITTED = "jobs", "job.toml", "held-out", "submitted.json"
# Directories being made begin with this, which no job's name can.
MAKING = "."


class HomeError(Exception):
    """The home has no such job, or has one already; the message says what to do."""


@dataclass(frozen=True)
class Submission:
    """A job's place in the queue: smaller numbers first."""

    number: int
    name: str
    directory: Path


def submissions(home: Path) -> tuple[Submission, ...]:
    """The jobs of a home in the order in which they were submitted; none where there is no home yet."""
    found = [_submission(path.parent) for path in (home / JOBS).glob(f"[!{MAKING}]*/{SUBMITTED}")]
    return tuple(sorted(found, key=lambda each: each.number))


def _submission(directory: Path) -> Submission:
    try:
        number = json.loads((directory / SUBMITTED).read_bytes())["number"]
        return Submission(int(number), directory.name, directory)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HomeError(f"{directory / SUBMITTED} cannot be read ({error}); restore it, or remove the job") from error


def next_ready(home: Path, but: Collection[str] = ()) -> Submission | None:
    """The first job of the queue that is neither done, failed nor paused, and is none of `but`."""
    for each in submissions(home):
        if each.name in but:
            continue
        with closing(open_reader(each.directory)) as store:
            if store.done() is None and store.failed() is None and not store.paused():
                return each
    return None


def job_directory(home: Path, name: str) -> Path:
    """The directory of a submitted job.

    Raises:
        HomeError: There is none of this name.
    """
    names = [each.name for each in submissions(home)]
    if name not in names:
        raise HomeError(f"{home} has no job {name!r}; it has: {', '.join(names) or 'none'}")
    return home / JOBS / name


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
            _write_job(making, checked, path)
            note = {"number": number, "by": whoever(), "from": str(path.resolve())}
            write_file(making / SUBMITTED, json.dumps(note).encode())
            making.rename(directory)
        except BaseException:
            shutil.rmtree(making, ignore_errors=True)
            raise
        sync_directory(home / JOBS)
    return Submission(number, name, directory)


def _write_job(making: Path, checked: CheckedJob, path: Path) -> None:
    making.mkdir(parents=True)
    document = tomllib.loads(path.read_text(encoding="utf-8"))
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
        document["evaluate"] = {**document["evaluate"], "data": str(source / HELD_OUT)}
        (copy / JOB_FILE).write_text(toml_text(document), encoding="utf-8")
        return submit(home, copy / JOB_FILE)


def parse_changes(words: tuple[str, ...]) -> dict[str, Any]:
    """`section.key=value` as on a command line, values as in a job file; a bare word is text.

    Raises:
        JobFileError: One is not of this form.
    """
    changes: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or "." not in key:
            problem = Problem(None, word, "is not SECTION.KEY=VALUE, such as training.lr=0.01")
            raise JobFileError(Path("--set"), (problem,))
        try:
            changes[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            changes[key.strip()] = text.strip()
    return changes


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """One submission at a time: numbers and names are each given once."""
    (home / JOBS).mkdir(parents=True, exist_ok=True)
    with open_lock(home / JOBS):
        yield


def remove_remains(home: Path) -> None:
    """Remove what a submission that was killed has left; call it with the home's lock held and none under way."""
    with _alone(home):
        for path in (home / JOBS).glob(f"{MAKING}*"):
            shutil.rmtree(path, ignore_errors=True)
