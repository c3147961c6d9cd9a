"""The task: what one device is asked to do once (docs/tasks.md, "A task")."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from edge_runtime.errors import RemoteError
from edge_runtime.wire import fields

__all__ = [
    "MAX_BLOB_BYTES",
    "BlobNotListed",
    "Cache",
    "Carry",
    "Control",
    "Delta",
    "Phase",
    "Task",
    "UnknownForm",
    "Upload",
    "format_task",
    "parse_task",
    "steps_from",
]

MAX_BLOB_BYTES = 256 << 20
MAX_PHASES = 64
MAX_SCALARS = 64
MAX_BLOBS = 256
MAX_DELTAS = 16
MAX_EPOCHS = 1_000_000
MAX_TASK_NAME = 200
MAX_PERSONAL, MAX_TENSOR_NAME = 1024, 1000
MAX_EXACT = 4096
MAX_CACHE_BYTES = 1 << 40

_TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_RUN = re.compile(r"[0-9a-f]{16}")
_FORMS = ("delta",)
_PLACES = ("memory", "disk")


class BlobNotListed(RemoteError):
    """A task names a blob whose size it does not give."""


class UnknownForm(RemoteError):
    """A task asks for an upload of a form this version does not know."""


@dataclass(frozen=True)
class Cache:
    """What may be kept of a prefix's features: `place` is "memory" or "disk", `cap_bytes` the most they may take."""

    place: str
    cap_bytes: int


@dataclass(frozen=True)
class Phase:
    """One use of a plan.

    Attributes:
        plan: Its name (SHA-256).
        epochs: How many over the local data.
        scalars: What it runs with.
        prefix: The plan that makes its batch columns from the data; None where it takes the data themselves.
        cache: How the prefix's results may be kept; None for not at all.
        steps: The most that are done, however many the epochs have; None for all.
    """

    plan: str
    epochs: int
    scalars: Mapping[str, float]
    prefix: str | None = None
    cache: Cache | None = None
    steps: int | None = None

    @property
    def plans(self) -> tuple[str, ...]:
        """The names of all plans it runs."""
        return (self.plan,) if self.prefix is None else (self.plan, self.prefix)


@dataclass(frozen=True)
class Upload:
    """What is sent back: `form` "delta" is trained minus received, through the codec's stages.

    `exact` are the places, ascending in the order of the names, of tensors that are sent as they are (running
    statistics); `codec` is of the others.
    """

    form: str = "delta"
    codec: tuple[str, ...] = ("dense",)
    exact: tuple[int, ...] = ()


@dataclass(frozen=True)
class Carry:
    """What a codec that carries something over must know.

    Attributes:
        run: 16 hexadecimal digits that no other run of a job has.
        counted: The name of this device's task whose update was the last to count; None if none did.
        sha256: Of that update; None if none did, or the coordinator does not say (up to version 0.2).
    """

    run: str
    counted: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Control:
    """Gradients are corrected by control variates (edge_runtime/control.py); `momentum` is that of the plan's SGD."""

    momentum: float


@dataclass(frozen=True)
class Delta:
    """A step from weights that a device may hold to newer ones.

    Attributes:
        base: SHA-256 of the tensor file it starts from.
        blob: Its own SHA-256.
        bytes: Its size.
        codec: How its values are coded, or ("changed",) where all of them are as they are.
    """

    base: str
    blob: str
    bytes: int
    codec: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """What one device is asked to do once.

    Attributes:
        task: Its name, unique for the site.
        job: The job it belongs to.
        round: The round, counted by the coordinator.
        version: The version of the weights it starts from.
        device: Who is asked.
        phases: Run in order, each on the weights the one before left.
        weights: SHA-256 of the tensor file to start from.
        blobs: Bytes of every blob named here, by SHA-256.
        classes: Labels are 0 .. classes - 1.
        seed: Of the order of examples, 0 <= seed < 2**64.
        upload: What to send back.
        deadline_s: How long the coordinator waits, counted from when it sent the task.
        carry: For a codec that carries something over, and for control variates.
        control: For control variates.
        personal: Tensors that the device trains and keeps for itself; with `carry`.
        deltas: Steps to `weights`, the last one first: each gives what the one before it in this list starts from.
    """

    task: str
    job: str
    round: int
    version: int
    device: str
    phases: tuple[Phase, ...]
    weights: str
    blobs: Mapping[str, int]
    classes: int
    seed: int
    upload: Upload
    deadline_s: float
    carry: Carry | None = None
    deltas: tuple[Delta, ...] = ()
    control: Control | None = None
    personal: tuple[str, ...] = ()


def format_task(task: Task) -> bytes:
    """Write a task; equal tasks give equal bytes.

    Raises:
        RemoteError: The task would be refused by parse_task.
    """
    payload = fields.write_object(
        {
            **vars(task),
            "phases": [_written(phase) for phase in task.phases],
            "upload": {key: value for key, value in vars(task.upload).items() if value != ()},
            "carry": None if task.carry is None else _carried(task.carry),
            "control": None if task.control is None else vars(task.control),
            "personal": task.personal or None,
            "deltas": [vars(delta) for delta in task.deltas] or None,
        }
    )
    parse_task(payload)
    return payload


def parse_task(payload: bytes) -> Task:
    """Read a task.

    Args:
        payload: At most 65,536 bytes.

    Returns:
        The task; every blob it needs has a size in `blobs`.

    Raises:
        RemoteError: A subclass for each rule; FutureVersion for a task of a later protocol.
    """
    message = fields.parse_object(payload)
    task = Task(
        task=_name(message, "task"),
        job=_name(message, "job"),
        round=fields.integer(message, "round", low=0),
        version=fields.integer(message, "version", low=0),
        device=fields.identifier(message, "device"),
        phases=_phases(fields.sequence(message, "phases", cap=MAX_PHASES)),
        weights=fields.digest(message, "weights"),
        blobs=_blobs(fields.mapping(message, "blobs", cap=MAX_BLOBS)),
        classes=fields.integer(message, "classes", low=1, high=(1 << 31) - 1),
        seed=fields.integer(message, "seed", low=0),
        upload=_upload(fields.mapping(message, "upload", cap=16)),
        deadline_s=fields.number(message, "deadline_s", low=0.0, high=1e9),
        carry=_carry(fields.mapping(message, "carry", cap=16)) if message.get("carry") is not None else None,
        deltas=_deltas(fields.sequence(message, "deltas", cap=MAX_DELTAS)) if message.get("deltas") is not None else (),
        control=_control(fields.mapping(message, "control", cap=16)) if message.get("control") is not None else None,
        personal=_personal(message),
    )
    _check_control(task)
    if task.personal and task.carry is None:
        raise fields.BadField("personal tensors need `carry`: they belong to one run of a job")
    for blob in (task.weights, *(plan for phase in task.phases for plan in phase.plans)):
        if blob not in task.blobs:
            raise BlobNotListed(f"the task names blob {blob}, but blobs does not give its size")
    return task


def steps_from(task: Task, held: Callable[[str], bool]) -> tuple[Delta, ...]:
    """The deltas that lead from weights at hand to the task's, in the order they are applied.

    Args:
        task: Whose weights are wanted.
        held: Whether a device has the weights of this SHA-256.

    Returns:
        Empty where no base is held, or where the whole weights are no more bytes.
    """
    total_bytes = 0
    for count, delta in enumerate(task.deltas, 1):
        total_bytes += delta.bytes
        if total_bytes >= task.blobs[task.weights]:
            break
        if held(delta.base):
            return task.deltas[:count][::-1]
    return ()


def _name(message: dict[str, Any], key: str) -> str:
    value = fields.text(message, key, cap=MAX_TASK_NAME)
    if _TASK_NAME.fullmatch(value) is None:
        raise fields.BadField(f"{key} is {value!a}; it is made of letters, digits, '.', '_' and '-'")
    return value


def _phases(items: list[Any]) -> tuple[Phase, ...]:
    return tuple(_phase(item) for item in items)


def _phase(item: object) -> Phase:
    if not isinstance(item, dict):
        raise fields.BadField("every phase must be an object")
    scalars = fields.mapping(item, "scalars", cap=MAX_SCALARS)
    return Phase(
        plan=fields.digest(item, "plan"),
        epochs=fields.integer(item, "epochs", low=1, high=MAX_EPOCHS),
        scalars={name: fields.number(scalars, name, low=-3e38, high=3e38) for name in scalars},
        prefix=fields.digest(item, "prefix") if item.get("prefix") is not None else None,
        cache=_cache(fields.mapping(item, "cache", cap=16)) if item.get("cache") is not None else None,
        steps=fields.integer(item, "steps", low=1) if item.get("steps") is not None else None,
    )


def _written(phase: Phase) -> dict[str, Any]:
    """A phase without the fields that are None."""
    cache = None if phase.cache is None else vars(phase.cache)
    return {key: value for key, value in {**vars(phase), "cache": cache}.items() if value is not None}


def _cache(message: dict[str, Any]) -> Cache:
    place = fields.text(message, "place", cap=64)
    if place not in _PLACES:
        raise fields.BadField(f"the cache's place is {place!a}; known are {', '.join(_PLACES)}")
    return Cache(place, fields.integer(message, "cap_bytes", low=0, high=MAX_CACHE_BYTES))


def _blobs(sizes: dict[str, Any]) -> dict[str, int]:
    for name in sizes:
        fields.digest({"the name of a blob": name}, "the name of a blob")
    return {name: fields.integer(sizes, name, low=1, high=MAX_BLOB_BYTES) for name in sizes}


def _carry(message: dict[str, Any]) -> Carry:
    run = fields.text(message, "run", cap=16)
    if _RUN.fullmatch(run) is None:
        raise fields.BadField(f"run is {run!a}; it is 16 hexadecimal digits")
    if message.get("counted") is None:
        return Carry(run)
    return Carry(run, _name(message, "counted"), fields.digest(message, "sha256") if "sha256" in message else None)


def _carried(carry: Carry) -> dict[str, str | None]:
    said = {} if carry.sha256 is None else {"sha256": carry.sha256}
    return {"run": carry.run, "counted": carry.counted, **said}


def _control(message: dict[str, Any]) -> Control:
    momentum = fields.number(message, "momentum", low=0.0, high=1.0)
    if momentum == 1.0:
        raise fields.BadField("momentum is 1; it must be below")
    return Control(momentum)


def _personal(message: dict[str, Any]) -> tuple[str, ...]:
    names = fields.sequence(message, "personal", cap=MAX_PERSONAL) if message.get("personal") is not None else []
    return tuple(fields.text({"personal": name}, "personal", cap=MAX_TENSOR_NAME) for name in names)


def _check_control(task: Task) -> None:
    if task.control is None:
        return
    if len(task.phases) != 1 or not task.phases[0].scalars.get("lr", 0.0) > 0:
        raise fields.BadField("control variates need one phase, with the scalar lr above 0")
    if task.carry is None:
        raise fields.BadField("control variates need `carry`: what a device keeps depends on what counted")


def _deltas(items: list[Any]) -> tuple[Delta, ...]:
    return tuple(_delta(item) for item in items)


def _delta(item: object) -> Delta:
    if not isinstance(item, dict):
        raise fields.BadField("every delta must be an object")
    return Delta(
        base=fields.digest(item, "base"),
        blob=fields.digest(item, "blob"),
        bytes=fields.integer(item, "bytes", low=1, high=MAX_BLOB_BYTES),
        codec=_stages(item),
    )


def _stages(message: dict[str, Any]) -> tuple[str, ...]:
    stages = fields.sequence(message, "codec", cap=16)
    return tuple(fields.text({"codec": stage}, "codec", cap=64) for stage in stages)


def _upload(message: dict[str, Any]) -> Upload:
    form = fields.text(message, "form", cap=64)
    if form not in _FORMS:
        raise UnknownForm(f"the upload's form is {form!a}; known are {', '.join(_FORMS)}")
    return Upload(form, _stages(message), _exact(message))


def _exact(message: dict[str, Any]) -> tuple[int, ...]:
    if message.get("exact") is None:
        return ()
    places = fields.sequence(message, "exact", cap=MAX_EXACT)
    if any(type(place) is not int or not 0 <= place < MAX_EXACT for place in places):
        raise fields.BadField(f"exact must be numbers in 0 .. {MAX_EXACT - 1}")
    if any(one >= other for one, other in pairwise(places)):
        raise fields.BadField("exact must ascend")
    return tuple(places)
