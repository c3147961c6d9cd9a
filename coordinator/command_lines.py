"""What `edge-runtime job` and `edge-runtime device` share: where a job is, how answers are printed, exit codes."""

import argparse
import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coordinator.broker import BrokerError
from coordinator.evaluate import EvaluationError
from coordinator.home import HomeError, job_directory
from coordinator.jobfile import JobFileError
from coordinator.journal import JournalError
from coordinator.requests import MAX_DIGITS, request
from coordinator.results import ModelMissing
from coordinator.versions import VersionMissing
from edge_runtime.errors import EdgeError
from models.compiler import CompileError
from models.zoo import ZooError

EXIT_DONE, EXIT_BAD_INPUT, EXIT_FAILED, EXIT_NO_ANSWER, EXIT_INTERRUPTED = 0, 2, 3, 4, 130
EXIT_NO_READER = 141  # as a shell says of a program that SIGPIPE ended

EXIT_CODES = """\
exit codes:
  0    done
  2    bad input: no such job, no version or device of this name, or a job file with problems, which are listed
  3    the job failed, or it refused what was asked: the message says why
  4    the coordinator that holds the job did not answer in time; the request waits for it
  130  interrupted"""

BAD_INPUT = (
    HomeError,
    JobFileError,
    JournalError,
    VersionMissing,
    ModelMissing,
    CompileError,
    EvaluationError,
    ZooError,
    BrokerError,
    EdgeError,
    OSError,
)


def add_place(parser: argparse.ArgumentParser, *, job_required: bool = True) -> None:
    """The job and where it is: `NAME --home DIR`, or `--state DIR`; and `--json`."""
    what = "name of a job in the home" + ("" if job_required else " (default: every job that is not done)")
    parser.add_argument("job", nargs="?", help=what)
    parser.add_argument("--home", type=Path, metavar="DIR", help="the gateway's home")
    parser.add_argument("--state", type=Path, metavar="DIR", help="instead: the state directory of one job")
    parser.add_argument("--json", action="store_true", help="print JSON, one object a line")


def place_of(options: argparse.Namespace) -> Path:
    """The state directory that was named.

    Raises:
        HomeError: None was, or it is not there.
    """
    if options.state is not None:
        if options.home is not None or options.job is not None:
            raise HomeError("--state is a job's own directory: give it alone, or NAME and --home")
        return Path(options.state)
    if options.home is None or options.job is None:
        raise HomeError("say which job: NAME --home DIR, or --state DIR")
    return job_directory(options.home, options.job)


def ask(options: argparse.Namespace, directory: Path, verb: str, argument: str = "") -> int:
    """Make a request of a job, print what came of it, and return the exit code."""
    answer = request(directory, verb, argument, options.timeout)
    if answer is None:
        message = (
            f"no answer in {options.timeout:g} s; the coordinator that holds the job finds the request when it can"
        )
        code = EXIT_NO_ANSWER
    else:
        message, code = answer.message, EXIT_DONE if answer.done else EXIT_FAILED
    show(
        options, {"job": directory.name, "verb": verb, "code": code, "message": message}, f"{directory.name}: {message}"
    )
    return code


def version_number(word: str) -> int:
    """A version as an argument: 1, 2, 3 ...

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    if not word.isascii() or not word.isdecimal() or len(word) > MAX_DIGITS or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!a} is no version: give its number, as `job show` lists them")
    return int(word)


def seconds(word: str) -> float:
    """A time to wait as an argument: a number of seconds, 0 or more.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{word!a} is no number of seconds, 0 or more")
    return number


def add_timeout(parser: argparse.ArgumentParser) -> None:
    """How long to wait for the coordinator."""
    parser.add_argument(
        "--timeout", type=seconds, default=30.0, metavar="S", help="wait so long for an answer (default 30)"
    )


def show(options: argparse.Namespace, record: Mapping[str, Any], text: str) -> None:
    """One record as a line of JSON, or as a line of text; ends the process where whoever read them has gone."""
    try:
        sys.stdout.write((json.dumps(record, allow_nan=False) if options.json else text) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer would be complained about when the interpreter goes down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(EXIT_NO_READER) from None


def table(rows: list[tuple[Any, ...]]) -> str:
    """Rows in columns as wide as they need; None is a dash."""
    words = [["-" if value is None else _word(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*words, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in words)


def _word(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def failed(name: str, error: Exception) -> int:
    """Print what is wrong with the input."""
    sys.stderr.write(f"edge-runtime {name}: {error}\n")
    return EXIT_BAD_INPUT
