"""The job file: TOML in, a frozen Job out, every problem reported at once.

```toml
[job]
name = "digits"          # [a-z0-9][a-z0-9-]{0,63}
seed = 1                 # 0 .. 2^63 - 1; equal seed, devices and data give equal bytes
rounds = 20              # 1 .. 1,000,000
target_accuracy = 0.97   # optional, (0, 1]: stop as soon as a round reaches it

[model]                  # either an ONNX file ...
onnx = "model.onnx"      # relative to the job file
# zoo = "lenet"          # ... or a model of the zoo, with the two keys below
# input_shape = [1, 8, 8]
# classes = 10

[method]
name = "fedavg"          # a row of coordinator.methods; its own options stand beside the name
server_lr = 1.0          # optional

[training]
epochs = 1               # 1 .. 10,000 passes over the device's data a round
batch = 32               # 1 .. 65,536 examples
lr = 0.05                # (0, 1000]
optimizer = "sgd"        # optional; or "adamw", with betas = [0.9, 0.999] and epsilon = 1e-8
momentum = 0.9           # optional, sgd, [0, 1), default 0
nesterov = false         # optional, sgd
weight_decay = 1e-4      # optional, [0, 10], default 0
max_norm = 1.0           # optional: gradients are clipped to this norm
proximal = 0.0           # optional: weight of the distance from what was received
trainable = ["*"]        # optional patterns of tensor names; the others are frozen
frozen = []              # optional patterns of names that are frozen after all
boards = [               # optional: devices with less memory train as much of the model as fits it
    {devices = ["zero-*"], memory_mb = 24},
]
cache = "disk"           # optional: where devices keep the features of frozen layers; or "memory", "off"
cache_mb = 256           # optional: the most they may take on a device
stages = [               # optional: other patterns, and rates, for some rounds each; together job.rounds
    {rounds = 10, trainable = ["fc2.*"]},
    {rounds = 10, trainable = ["*"], lr = 0.01},
]

[round]
devices = 4              # round 1 waits for so many devices with examples
min_updates = 2          # 1 .. devices: with fewer at the deadline the round is tried again
deadline_s = 60.0        # (0, 604800] seconds
grace_s = 10.0           # optional, [0, 86400]: a device lost for less still counts as coming back
fraction = 1.0           # optional, (0, 1]: the share of the online devices that a round asks
over_select = 0.0        # optional, [0, 10]: so many more, and the round closes without them
select = "uniform"       # optional, or "weighted": by availability and past times
scale_work = false       # optional: slow devices do fewer steps

[schedule]               # optional; without it rounds are synchronous
name = "fedbuff"         # "sync", "tiers", "fedasync" or "fedbuff"; the other keys are in docs/job-file.md
buffer = 4

[upload]                 # optional
codec = ["dense"]        # or stages such as ["topk 0.01 ef", "fp16", "rice"]; docs/job-file.md

[download]               # optional
codec = ["topk 0.05", "fp16", "rice"]  # how devices are sent what changed in the weights; docs/job-file.md

[keep]                   # optional: which versions keep their weights on the gateway
versions = 3             # the newest so many
every = 10               # and every 10th; default: no other

[evaluate]
data = "held-out"        # directory with test.npz (x, y) or t10k-*-ubyte idx files
```

`load_job` collects all problems before it raises, each with its line where one can be named.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coordinator.contradictions import contradictions
from coordinator.fields import (
    Field,
    boolean,
    codec,
    download_codec,
    integer,
    number,
    one_of,
    or_known,
    shape,
    shown,
    text,
    with_defaults,
)
from coordinator.keep import KEEP, Keep
from coordinator.methods import METHODS
from coordinator.round_records import SYNCHRONOUS, ScheduleRules
from coordinator.schedule_keys import SCHEDULE, make_schedule
from coordinator.training_keys import TRAINING, Training, make_training
from models.zoo import MODELS

MAX_JOB_FILE_BYTES = 1 << 20
# What tomllib says of text that is none: ValueError of numbers with too many digits, too, RecursionError of brackets.
NOT_TOML = (ValueError, RecursionError)


@dataclass(frozen=True)
class OnnxFile:
    """A model that the user brings."""

    path: Path


@dataclass(frozen=True)
class ZooModel:
    """A model of the zoo: its name, the shape of one example, the number of classes."""

    name: str
    input_shape: tuple[int, ...]
    classes: int


@dataclass(frozen=True)
class Round:
    """When a round starts and when it closes; see coordinator.rounds."""

    devices: int
    min_updates: int
    deadline_s: float
    grace_s: float
    fraction: float
    over_select: float = 0.0
    select: str = "uniform"
    scale_work: bool = False


@dataclass(frozen=True)
class Job:
    """One checked job file."""

    name: str
    seed: int
    rounds: int
    target_accuracy: float | None
    model: OnnxFile | ZooModel
    method: str
    method_options: Mapping[str, Any]
    training: Training
    round: Round
    evaluate_data: Path
    codec: tuple[str, ...] | None = None  # the stages of devices' uploads; None: as the method has it
    schedule: ScheduleRules = SYNCHRONOUS
    download: tuple[str, ...] | None = None  # the stages of what devices are sent; None: what changed, as it is
    keep: Keep = KEEP


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a job file; `line` counts from 1 and is None where none can be named."""

    line: int | None
    where: str
    message: str


class JobFileError(ValueError):
    """A job file that cannot be run; `problems` holds all of them and `str` shows them all."""

    def __init__(self, path: Path, problems: tuple[Problem, ...]) -> None:
        self.path = path
        self.problems = problems
        super().__init__("\n".join(_problem_line(path, problem) for problem in problems))


def _problem_line(path: Path, problem: Problem) -> str:
    place = str(path) if problem.line is None else f"{path}:{problem.line}"
    return f"{place}: {problem.where} {problem.message}".replace(":  ", ": ")


_NAME = text(r"[a-z0-9][a-z0-9-]{0,63}", "1 to 64 lower-case letters, digits and dashes")
_PATH = text(r"[^\x00]+", "a path")
_WEEK_S = 604_800.0

SCHEMA: Mapping[str, Mapping[str, Field]] = {
    "job": {
        "name": Field(_NAME),
        "seed": Field(integer(0, 2**63 - 1)),
        "rounds": Field(integer(1, 1_000_000)),
        "target_accuracy": Field(number(0, 1, above_low=True), required=False),
    },
    "model": {
        "onnx": Field(_PATH, required=False),
        "zoo": Field(one_of(MODELS), required=False),
        "input_shape": Field(shape, required=False),
        "classes": Field(integer(2, 65_536), required=False),
    },
    "method": {"name": Field(one_of(METHODS))},
    "training": TRAINING,
    "round": {
        "devices": Field(integer(1, 100_000)),
        "min_updates": Field(integer(1, 100_000)),
        "deadline_s": Field(number(0, _WEEK_S, above_low=True)),
        "grace_s": Field(number(0, 86_400), required=False, default=10.0),
        "fraction": Field(number(0, 1, above_low=True), required=False, default=1.0),
        "over_select": Field(number(0, 10), required=False, default=0.0),
        "select": Field(one_of(("uniform", "weighted")), required=False, default="uniform"),
        "scale_work": Field(boolean, required=False, default=False),
    },
    "schedule": SCHEDULE,
    "upload": {"codec": Field(codec, required=False)},
    "download": {"codec": Field(download_codec)},
    "keep": {
        "versions": Field(integer(1, 100_000), required=False, default=3),
        "every": Field(integer(1, 1_000_000), required=False),
    },
    "evaluate": {"data": Field(_PATH)},
}
OPTIONAL = frozenset({"schedule", "upload", "download", "keep"})  # sections that may be left out


def load_job(path: Path) -> Job:
    """Reads and checks a job file; relative paths in it start at its own directory.

    Raises:
        JobFileError: With every problem of the file.
    """
    source = _source(path)
    try:
        document = tomllib.loads(source)
    except NOT_TOML as error:
        line = re.search(r"at line (\d+)", str(error))
        problem = Problem(int(line[1]) if line else None, "", f"is not TOML: {error}")
        raise JobFileError(path, (problem,)) from error
    lines = key_lines(source)
    schema = _schema_for(document)
    found = [*_misfits(document, schema), *contradictions(document, path.parent)]
    if found:
        problems = [Problem(_line_of(lines, where), where, message) for where, message in found]
        raise JobFileError(path, tuple(sorted(problems, key=lambda each: each.line or 0)))
    return _job(document, schema, path.parent)


def _source(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_JOB_FILE_BYTES:
            raise JobFileError(path, (Problem(None, "", f"is larger than {MAX_JOB_FILE_BYTES} bytes"),))
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        problem = Problem(None, "", f"cannot be read: {error.strerror}")
        raise JobFileError(path, (problem,)) from error
    except UnicodeDecodeError as error:
        problem = Problem(None, "", f"is not UTF-8 at byte {error.start}")
        raise JobFileError(path, (problem,)) from error


def key_lines(source: str) -> dict[str, int]:
    """The line of every `[section]` and `section.key` written the plain way; for messages only."""
    lines: dict[str, int] = {}
    section = ""
    for count, line in enumerate(source.splitlines(), start=1):
        if header := re.match(r"\s*\[{1,2}\s*([\w.-]+)\s*\]", line):
            section = header[1]
            lines.setdefault(section, count)
        elif key := re.match(r"\s*([\w.-]+)\s*=", line):
            lines.setdefault(f"{section}.{key[1]}" if section else key[1], count)
    return lines


def _line_of(lines: Mapping[str, int], where: str) -> int | None:
    return lines.get(where, lines.get(where.partition(".")[0]))


def _schema_for(document: Mapping[str, Any]) -> dict[str, Mapping[str, Field]]:
    """The schema with the options of the method that the file names, if it names one."""
    method = document.get("method")
    name = method.get("name") if isinstance(method, dict) else None
    options = METHODS[name].options if isinstance(name, str) and name in METHODS else {}
    return {**SCHEMA, "method": {**SCHEMA["method"], **options}}


def _misfits(document: Mapping[str, Any], schema: Mapping[str, Mapping[str, Field]]) -> Iterator[tuple[str, str]]:
    """Unknown and missing sections and keys, and values that fail their check."""
    for section in document.keys() - schema.keys():
        yield section, f"is not a section of a job file{or_known(section, schema)}"
    for section, fields in schema.items():
        table = document.get(section)
        if table is None and section in OPTIONAL:
            continue
        if table is None:
            yield section, "is missing; add a section " + f"[{section}]"
        elif not isinstance(table, dict):
            yield section, f"must be a section, not {shown(table)}"
        else:
            yield from _misfits_of(section, table, fields)


def _misfits_of(section: str, table: Mapping[str, Any], fields: Mapping[str, Field]) -> Iterator[tuple[str, str]]:
    for key in table.keys() - fields.keys():
        yield f"{section}.{key}", f"is not a key of [{section}]{or_known(key, fields)}"
    for key, field in fields.items():
        where = f"{section}.{key}"
        if key not in table:
            if field.required:
                yield where, "is missing"
        elif (fault := field.check(table[key])) is not None:
            yield where, fault


def _job(document: Mapping[str, Any], schema: Mapping[str, Mapping[str, Field]], home: Path) -> Job:
    tables = {name: with_defaults(fields, document.get(name, {})) for name, fields in schema.items()}
    job, method = tables["job"], dict(tables["method"])
    target = job["target_accuracy"]
    return Job(
        name=job["name"],
        seed=job["seed"],
        rounds=job["rounds"],
        target_accuracy=None if target is None else float(target),
        model=_model(tables["model"], home),
        method=method.pop("name"),
        method_options=method,
        training=make_training(tables["training"], job["rounds"]),
        round=_round(tables["round"]),
        evaluate_data=home / tables["evaluate"]["data"],
        codec=None if tables["upload"]["codec"] is None else tuple(tables["upload"]["codec"]),
        schedule=make_schedule(tables["schedule"]),
        download=None if tables["download"]["codec"] is None else tuple(tables["download"]["codec"]),
        keep=Keep(**tables["keep"]),
    )


def _model(table: Mapping[str, Any], home: Path) -> OnnxFile | ZooModel:
    if table["onnx"] is not None:
        return OnnxFile(home / table["onnx"])
    return ZooModel(table["zoo"], tuple(table["input_shape"]), table["classes"])


def _round(table: Mapping[str, Any]) -> Round:
    return Round(
        devices=table["devices"],
        min_updates=table["min_updates"],
        deadline_s=float(table["deadline_s"]),
        grace_s=float(table["grace_s"]),
        fraction=float(table["fraction"]),
        over_select=float(table["over_select"]),
        select=table["select"],
        scale_work=table["scale_work"],
    )
