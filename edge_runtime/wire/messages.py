"""Control messages: one frozen record each, written canonically and read with every field checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edge_runtime.wire import fields
from edge_runtime.wire.chunks import CHUNK_BYTES
from edge_runtime.wire.tasks import MAX_BLOB_BYTES, MAX_TASK_NAME

__all__ = [
    "Begin",
    "Done",
    "Down",
    "Fail",
    "GatewayState",
    "Have",
    "Refuse",
    "Status",
    "format_begin",
    "format_down",
    "format_fail",
    "format_gateway",
    "format_status",
    "format_telemetry",
    "format_whole",
    "parse_begin",
    "parse_down",
    "parse_fail",
    "parse_gateway",
    "parse_status",
    "parse_telemetry",
    "parse_whole",
]

MAX_RULE = 64
MAX_TEXT = 1000
MAX_INFO_FIELDS = 64
MAX_WINDOW = 64
MAX_EPOCH = (1 << 53) - 1
# The largest update that travels in one message with its offer, where the gateway takes such.
MAX_WHOLE_BYTES = 16_384
GATEWAY_STATES = ("up", "lost", "stopped")
DEVICE_STATES = ("online", "lost", "stopped")


@dataclass(frozen=True)
class GatewayState:
    """Presence of the coordinator: epoch grows by one a start, boot is random and new for every process.

    Updates of up to whole_bytes may come with their offer in one message; 0 from a coordinator that takes none so.
    """

    epoch: int
    boot: str
    state: str
    whole_bytes: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Status:
    """Presence of a device: birth, will, or goodbye; `answers` is the boot of another of its id that it has met."""

    boot: str
    gen: int
    state: str
    examples: int
    info: Mapping[str, Any]
    answers: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Begin:
    """An update is offered, resumed, or asked after; answers are wanted after every `ack_chunks` new chunks."""

    task: str
    sha256: str
    size_bytes: int
    ack_chunks: int | None = None


@dataclass(frozen=True)
class Have:
    """The gateway has these chunks (hexadecimal bitmap) and takes `window` more."""

    uid: str
    have: str
    window: int


@dataclass(frozen=True)
class Done:
    """The update is safe on the gateway."""

    uid: str
    sha256: str


@dataclass(frozen=True)
class Refuse:
    """The update is not taken; with retry_s it may be offered again after that time."""

    uid: str
    rule: str
    message: str
    retry_s: float | None


@dataclass(frozen=True)
class Fail:
    """A task cannot be done on this device."""

    task: str
    rule: str
    message: str


Down = Have | Done | Refuse


def format_gateway(state: GatewayState) -> bytes:
    """Write the coordinator's presence."""
    whole = {"whole_bytes": state.whole_bytes} if state.whole_bytes else {}
    return fields.write_object({"epoch": state.epoch, "boot": state.boot, "state": state.state, **whole})


def parse_gateway(payload: bytes) -> GatewayState:
    """Read the coordinator's presence."""
    message = fields.parse_object(payload)
    return GatewayState(
        epoch=fields.integer(message, "epoch", low=0, high=MAX_EPOCH),
        boot=fields.text(message, "boot", cap=64),
        state=_one_of(message, "state", GATEWAY_STATES),
        whole_bytes=fields.integer(message, "whole_bytes", low=0) if "whole_bytes" in message else 0,
    )


def format_status(status: Status) -> bytes:
    """Write a device's presence."""
    return fields.write_object(
        {
            "boot": status.boot,
            "gen": status.gen,
            "state": status.state,
            "examples": status.examples,
            "info": dict(status.info),
            "answers": status.answers,
        }
    )


def parse_status(payload: bytes) -> Status:
    """Read a device's presence."""
    message = fields.parse_object(payload)
    return Status(
        boot=fields.text(message, "boot", cap=64),
        gen=fields.integer(message, "gen", low=0, high=(1 << 53) - 1),
        state=_one_of(message, "state", DEVICE_STATES),
        examples=fields.integer(message, "examples", low=0, high=(1 << 53) - 1),
        info=fields.mapping(message, "info", cap=MAX_INFO_FIELDS),
        answers=fields.text(message, "answers", cap=64) if "answers" in message else None,
    )


def format_begin(begin: Begin) -> bytes:
    """Write the offer of an update."""
    return fields.write_object(
        {
            "task": begin.task,
            "sha256": begin.sha256,
            "bytes": begin.size_bytes,
            "chunk_bytes": CHUNK_BYTES,
            "ack_chunks": begin.ack_chunks,
        }
    )


def parse_begin(payload: bytes) -> Begin:
    """Read the offer of an update."""
    message = fields.parse_object(payload)
    fields.integer(message, "chunk_bytes", low=CHUNK_BYTES, high=CHUNK_BYTES)
    return Begin(
        task=fields.text(message, "task", cap=MAX_TASK_NAME),
        sha256=fields.digest(message, "sha256"),
        size_bytes=fields.integer(message, "bytes", low=1, high=MAX_BLOB_BYTES),
        ack_chunks=fields.integer(message, "ack_chunks", low=1, high=MAX_WINDOW) if "ack_chunks" in message else None,
    )


def format_whole(begin: Begin, chunk: bytes) -> bytes:
    """Write an update's offer and its only chunk as one message: a zero byte, which no JSON has, between them."""
    return format_begin(begin) + b"\0" + chunk


def parse_whole(payload: bytes) -> tuple[Begin, bytes]:
    """Read an offer and the chunk that comes with it, which is not looked at."""
    offer, zero, chunk = payload.partition(b"\0")
    if not zero:
        raise fields.BadMessage(f"an offer of {len(payload)} bytes without the chunk that it must come with")
    begin = parse_begin(offer)
    if begin.size_bytes > MAX_WHOLE_BYTES:
        raise fields.BadField(f"an update of {begin.size_bytes} bytes with its offer; the cap is {MAX_WHOLE_BYTES}")
    return begin, chunk


def format_down(down: Down) -> bytes:
    """Write an answer about an upload."""
    match down:
        case Have(uid, have, window):
            return fields.write_object({"uid": uid, "have": have, "window": window})
        case Done(uid, sha256):
            return fields.write_object({"uid": uid, "done": sha256})
        case Refuse(uid, rule, message, retry_s):
            shown = printable(message, MAX_TEXT)
            return fields.write_object({"uid": uid, "refuse": rule, "message": shown, "retry_s": retry_s})


def parse_down(payload: bytes) -> Down:
    """Read an answer about an upload."""
    message = fields.parse_object(payload)
    uid = fields.text(message, "uid", cap=16)
    if "done" in message:
        return Done(uid, fields.digest(message, "done"))
    if "refuse" in message:
        retry_s = fields.number(message, "retry_s", low=0.0, high=1e6) if "retry_s" in message else None
        rule = fields.text(message, "refuse", cap=MAX_RULE)
        return Refuse(uid, rule, fields.text(message, "message", cap=MAX_TEXT), retry_s)
    window = fields.integer(message, "window", low=1, high=MAX_WINDOW)
    return Have(uid, fields.text(message, "have", cap=fields.MAX_MESSAGE_BYTES), window)


def format_fail(fail: Fail) -> bytes:
    """Write that a task cannot be done; a long message is cut."""
    return fields.write_object({"task": fail.task, "rule": fail.rule, "message": printable(fail.message, MAX_TEXT)})


def parse_fail(payload: bytes) -> Fail:
    """Read that a task cannot be done."""
    message = fields.parse_object(payload)
    return Fail(
        fields.text(message, "task", cap=MAX_TASK_NAME),
        fields.text(message, "rule", cap=MAX_RULE),
        fields.text(message, "message", cap=MAX_TEXT),
    )


def format_telemetry(measured: Mapping[str, int | float | str]) -> bytes:
    """Write measurements by name."""
    return fields.write_object(dict(measured))


def parse_telemetry(payload: bytes) -> dict[str, int | float | str]:
    """Read measurements: every field must be a finite number or a text of at most 200 characters."""
    message = fields.parse_object(payload)
    del message["v"]
    message.pop("crc", None)
    if len(message) > MAX_INFO_FIELDS:
        raise fields.BadField(f"{len(message)} measurements; the cap is {MAX_INFO_FIELDS}")
    values: dict[str, int | float | str] = {}
    for key, value in message.items():
        if isinstance(value, str):
            values[key] = fields.text(message, key, cap=MAX_TASK_NAME)
        elif type(value) is int:
            values[key] = fields.integer(message, key, low=-(1 << 63))
        else:
            values[key] = fields.number(message, key, low=-1e300, high=1e300)
    return values


def printable(message: str, cap: int) -> str:
    """Make a text fit the wire: control characters become spaces, what is over the cap is cut."""
    shown = "".join(letter if letter.isprintable() else " " for letter in message[: cap + 1]).strip() or "?"
    return shown if len(shown) <= cap else shown[: cap - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _one_of(message: dict[str, Any], key: str, allowed: tuple[str, ...]) -> str:
    value = fields.text(message, key, cap=32)
    if value not in allowed:
        raise fields.BadField(f"{key} is {value!a}; it must be one of {', '.join(allowed)}")
    return value
