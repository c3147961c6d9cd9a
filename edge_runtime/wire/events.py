"""What a session asks its shell to do (commands, in the imperative) and tells it (events, in the past)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge_runtime.wire.chunks import Readable, cut_chunk
from edge_runtime.wire.tasks import Delta, Task

__all__ = [
    "AbandonTask",
    "Command",
    "DeviceCommand",
    "DeviceStatus",
    "Event",
    "GatewaySuperseded",
    "KeepGen",
    "Outcome",
    "Publish",
    "PublishChunk",
    "RenewWill",
    "RunTask",
    "Stop",
    "StoreBlob",
    "StoreUpdate",
    "Subscribe",
    "TaskFailed",
    "Telemetry",
    "Unsubscribe",
    "UpdateReceived",
    "UpdateRefused",
    "UpdateSettled",
    "Warned",
]


@dataclass(frozen=True)
class Publish:
    """Publish a message."""

    topic: str
    payload: bytes
    qos: int
    retain: bool = False


class PublishChunk(Publish):
    """Publish a chunk of an update, at QoS 0; it is cut when its payload is asked for, and takes no memory before.

    Asking for the payload raises a RemoteError where the update cannot be read any more.
    """

    _cut: tuple[Readable, int]

    def __init__(self, topic: str, data: Readable, index: int) -> None:
        for name, value in {"topic": topic, "qos": 0, "_cut": (data, index)}.items():
            object.__setattr__(self, name, value)

    @property
    def payload(self) -> bytes:
        """The chunk as it travels."""
        return cut_chunk(*self._cut)


@dataclass(frozen=True)
class Subscribe:
    """Subscribe to topics, in one packet."""

    topics: tuple[str, ...]
    qos: int


@dataclass(frozen=True)
class Unsubscribe:
    """Unsubscribe from topics, in one packet."""

    topics: tuple[str, ...]


Command = Publish | Subscribe | Unsubscribe


@dataclass(frozen=True)
class RenewWill:
    """Disconnect and connect again with the session's present will."""


@dataclass(frozen=True)
class StoreBlob:
    """A blob has come and its SHA-256 is right: keep it for the RunTask that follows; cache it if it is a plan.

    `data` is None for one that is in a sink of the shell's.
    """

    sha256: str
    data: bytes | None
    is_plan: bool


@dataclass(frozen=True)
class KeepGen:
    """Keep this generation on disk: the next start of the device counts on from it."""

    gen: int


@dataclass(frozen=True)
class RunTask:
    """Every blob the task needs is in the shell's hands: run it, then call finished, failed or unusable with this key.

    `deltas`, in the order they are applied, make the task's weights of those the shell holds; without any it holds the
    task's own.
    """

    key: str
    task: Task
    deltas: tuple[Delta, ...] = ()


@dataclass(frozen=True)
class AbandonTask:
    """Stop running this task as soon as possible; what comes of it is ignored."""

    key: str


@dataclass(frozen=True)
class StoreUpdate:
    """Make the update durable, in place of the one before it; the commands after this one rely on it."""

    key: str
    task: str
    data: bytes


@dataclass(frozen=True)
class UpdateSettled:
    """The gateway has the update ("done"), or does not want it ("refused", with the rule)."""

    key: str
    task: str
    outcome: str
    rule: str = ""
    message: str = ""


@dataclass(frozen=True)
class Stop:
    """End the process: this device must not be on the wire."""

    rule: str
    message: str


@dataclass(frozen=True)
class Warned:
    """Something was ignored; the peer named in `source` broke `rule`."""

    source: str
    rule: str
    message: str


@dataclass(frozen=True)
class DeviceStatus:
    """A device came ("online"), went ("stopped") or was lost.

    live is False for what the broker has kept: a device that died together with the broker left no will there.
    """

    device: str
    state: str
    live: bool
    boot: str
    gen: int
    examples: int
    info: Mapping[str, Any]


@dataclass(frozen=True)
class UpdateReceived:
    """An update is complete and its SHA-256 is right: make it durable, then accept or refuse it."""

    device: str
    task: str
    uid: str
    sha256: str
    data: bytes


@dataclass(frozen=True)
class UpdateRefused:
    """The session has refused what a device offered or sent; the device is told so by the command beside this."""

    device: str
    rule: str
    message: str
    retry_s: float | None


@dataclass(frozen=True)
class TaskFailed:
    """A device cannot do a task."""

    device: str
    task: str
    rule: str
    message: str


@dataclass(frozen=True)
class Telemetry:
    """A device measured something."""

    device: str
    fields: Mapping[str, int | float | str]


@dataclass(frozen=True)
class GatewaySuperseded:
    """An older coordinator, by (epoch, boot), is alive on this site: this one must stop."""

    epoch: int


Event = DeviceStatus | UpdateReceived | UpdateRefused | TaskFailed | Telemetry | GatewaySuperseded | Warned
DeviceCommand = (
    Command | RenewWill | KeepGen | StoreBlob | RunTask | AbandonTask | StoreUpdate | UpdateSettled | Stop | Warned
)
Outcome = Command | Event
