"""The protocol without sockets (docs/protocol.md): bytes and the time in, commands and events out.

The records a shell meets are exported here; each message, topic and chunk rule lives in the module named after it.
"""

from edge_runtime.wire.device import DeviceSession
from edge_runtime.wire.events import (
    AbandonTask,
    Command,
    DeviceCommand,
    DeviceStatus,
    Event,
    GatewaySuperseded,
    KeepGen,
    Outcome,
    Publish,
    RenewWill,
    RunTask,
    Stop,
    StoreBlob,
    StoreUpdate,
    Subscribe,
    TaskFailed,
    Telemetry,
    Unsubscribe,
    UpdateReceived,
    UpdateSettled,
    Warned,
)
from edge_runtime.wire.gateway import GatewaySession
from edge_runtime.wire.intake import NotOffered, Refusal
from edge_runtime.wire.tasks import Phase, Task, Upload, format_task, parse_task
from edge_runtime.wire.work import Outbox

__all__ = [
    "AbandonTask",
    "Command",
    "DeviceCommand",
    "DeviceSession",
    "DeviceStatus",
    "Event",
    "GatewaySession",
    "GatewaySuperseded",
    "KeepGen",
    "NotOffered",
    "Outbox",
    "Outcome",
    "Phase",
    "Publish",
    "Refusal",
    "RenewWill",
    "RunTask",
    "Stop",
    "StoreBlob",
    "StoreUpdate",
    "Subscribe",
    "Task",
    "TaskFailed",
    "Telemetry",
    "Unsubscribe",
    "UpdateReceived",
    "UpdateSettled",
    "Upload",
    "Warned",
    "format_task",
    "parse_task",
]
