"""The protocol without sockets (docs/wire.md): bytes and the time in, commands and events out.

Exported here is what a device's shell meets. The gateway's end is wire.gateway and wire.intake, which a board does not
import: they would cost it memory. Each message, topic and chunk rule lives in the module named after it.
"""

from edge_runtime.wire.device import DeviceSession
from edge_runtime.wire.events import (
    AbandonTask,
    Command,
    DeviceCommand,
    KeepGen,
    Publish,
    PublishChunk,
    RenewWill,
    RunTask,
    Stop,
    StoreBlob,
    StoreUpdate,
    Subscribe,
    Unsubscribe,
    UpdateSettled,
    Warned,
)
from edge_runtime.wire.tasks import Delta, Phase, Task, Upload, format_task, parse_task
from edge_runtime.wire.work import Outbox

__all__ = [
    "AbandonTask",
    "Command",
    "Delta",
    "DeviceCommand",
    "DeviceSession",
    "KeepGen",
    "Outbox",
    "Phase",
    "Publish",
    "PublishChunk",
    "RenewWill",
    "RunTask",
    "Stop",
    "StoreBlob",
    "StoreUpdate",
    "Subscribe",
    "Task",
    "Unsubscribe",
    "UpdateSettled",
    "Upload",
    "Warned",
    "format_task",
    "parse_task",
]
