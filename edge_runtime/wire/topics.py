"""Topics: built from checked ids, and taken apart again without trusting what arrives."""

import re
from dataclasses import dataclass

from edge_runtime.errors import LocalError, RemoteError

__all__ = [
    "Address",
    "BadId",
    "BadTopic",
    "check_id",
    "chunk",
    "down",
    "gateway",
    "parse_topic",
    "status",
    "task",
    "telemetry",
    "upload",
    "upload_all",
]

ROOT = "edge/v1"

_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_UID = re.compile(r"[0-9a-f]{16}")
_INDEX = re.compile(r"0|[1-9][0-9]{0,6}")


class BadId(LocalError):
    """A site or device id that no topic can carry."""


class BadTopic(RemoteError):
    """A topic that is not one of the protocol's."""


@dataclass(frozen=True)
class Address:
    """A topic taken apart.

    kind is "gateway", "status", "task", "down", "tel", "blob", "begin", "whole", "fail" or "chunk"; device, name
    (of a blob or an upload) and index are empty where the kind has none.
    """

    kind: str
    device: str = ""
    name: str = ""
    index: int = -1


def check_id(value: str, what: str) -> str:
    """Return a site or device id that is safe inside a topic.

    Raises:
        BadId: It does not match [a-z0-9][a-z0-9-]{0,63}.
    """
    if _ID.fullmatch(value) is None:
        raise BadId(
            f"{what} {value!a} cannot be an id; use 1 to 64 of a-z, 0-9 and '-', beginning with a letter or digit"
        )
    return value


def gateway(site: str) -> str:
    """Presence of the coordinator."""
    return f"{ROOT}/{site}/gateway"


def status(site: str, device: str) -> str:
    """Presence of a device; "+" for all."""
    return f"{ROOT}/{site}/d/{device}/status"


def task(site: str, device: str) -> str:
    """What a device is asked to do."""
    return f"{ROOT}/{site}/d/{device}/task"


def down(site: str, device: str) -> str:
    """Answers about a device's upload."""
    return f"{ROOT}/{site}/d/{device}/down"


def telemetry(site: str, device: str) -> str:
    """Measurements of a device; "+" for all."""
    return f"{ROOT}/{site}/d/{device}/tel"


def upload(site: str, device: str, uid: str, part: str | int) -> str:
    """A part of an upload: "begin", "whole", "fail" or the index of a chunk."""
    return f"{ROOT}/{site}/d/{device}/up/{uid}/{part}"


def upload_all(site: str) -> str:
    """Every part of every upload of every device."""
    return f"{ROOT}/{site}/d/+/up/+/+"


def chunk(site: str, blob: str, index: int) -> str:
    """Chunk of a blob."""
    return f"{ROOT}/{site}/b/{blob}/{index}"


def parse_topic(site: str, topic: str) -> Address:
    """Take a topic apart.

    Raises:
        BadTopic: It is not a topic of this site and version.
    """
    prefix = f"{ROOT}/{site}/"
    if topic.startswith(prefix):
        found = _parse(topic[len(prefix) :].split("/"))
        if found is not None:
            return found
    raise BadTopic(f"{topic!a} is not a topic of site {site!r} in version 1 of the protocol")


def _parse(parts: list[str]) -> Address | None:
    match parts:
        case ["gateway"]:
            return Address("gateway")
        case ["b", blob, index] if _DIGEST.fullmatch(blob) and _INDEX.fullmatch(index):
            return Address("blob", name=blob, index=int(index))
        case ["d", device, "status" | "task" | "down" | "tel" as kind] if _ID.fullmatch(device):
            return Address(kind, device)
        case ["d", device, "up", uid, part] if _ID.fullmatch(device) and _UID.fullmatch(uid):
            return _parse_part(device, uid, part)
    return None


def _parse_part(device: str, uid: str, part: str) -> Address | None:
    if part in {"begin", "whole", "fail"}:
        return Address(part, device, uid)
    return Address("chunk", device, uid, int(part)) if _INDEX.fullmatch(part) else None
