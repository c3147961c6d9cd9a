"""The file of a device's slots: what it carries, the update it left that out of, and what was set aside before."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.codecs import RESIDUAL, State
from edge_runtime.state_directory import write_atomically
from edge_runtime.tensors import decode_tensors, tensor_file_parts

__all__ = ["MOST_ASIDE", "Kept", "read_kept", "write_kept"]

UPDATE = "update"
ASIDE = "aside{}:"  # before the names of what was set aside; no slot's name has a colon
MOST_ASIDE = 2


@dataclass(frozen=True)
class Kept:
    """Slots after a task, and that task's update.

    Attributes:
        run: The job's run they belong to; another one begins with empty slots.
        task: The task's name.
        key: SHA-256 of the task, by which it is known again.
        work: SHA-256 of what the task has trained, whatever its name; "" in files of version 0.2.
        state: {slot: {tensor: (...) float32}}.
        update: Its bytes.
        sent: The shapes of the update's tensors, by name.
        stages: Of the codec.
        after: The task whose update was the last to count before it; None if none had.
        asides: What was kept before and may have to be gone on from, the newest first; themselves with nothing aside.
        stray: Whether nothing that was kept was this task's past, as of a task of long ago.
    """

    run: str
    task: str
    key: str
    work: str
    state: State
    update: bytes
    sent: Mapping[str, tuple[int, ...]]
    stages: tuple[str, ...]
    after: str | None = None
    asides: "tuple[Kept, ...]" = ()
    stray: bool = False


def write_kept(path: Path, kept: Kept) -> None:
    """Put in the place of what the file held, whole or not at all.

    Raises:
        OSError: It could not be written.
    """
    tensors, metadata = _entries(kept)
    for place, aside in enumerate(kept.asides):
        beside, said = _entries(aside)
        tensors |= {ASIDE.format(place) + name: array for name, array in beside.items()}
        metadata |= {ASIDE.format(place) + name: text for name, text in said.items()}
    parts = tensor_file_parts(tensors, metadata)
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    write_atomically(path, digest.digest(), *parts)


def _entries(kept: Kept) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    tensors = {f"{slot}/{name}": array for slot, arrays in kept.state.items() for name, array in arrays.items()}
    tensors[UPDATE] = np.frombuffer(kept.update, np.uint8)
    metadata = {"run": kept.run, "task": kept.task, "key": kept.key, "work": kept.work}
    metadata |= {"sent": json.dumps(kept.sent), "stages": json.dumps(kept.stages)}
    metadata |= {"stray": "1"} if kept.stray else {}
    return tensors, metadata | ({} if kept.after is None else {"after": kept.after})


def read_kept(path: Path) -> Kept | None:
    """What a device's file holds; one that is absent or damaged counts as none, so that training goes on."""
    try:
        content = memoryview(bytearray(path.stat().st_size))
        with path.open("rb") as file:
            whole = file.readinto(content) == len(content) and not file.read(1)
    except OSError:
        return None
    if not whole:
        return None
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        return None
    arrays, metadata = decode_tensors(content[32:])
    asides = (_taken(arrays, metadata, ASIDE.format(place)) for place in range(MOST_ASIDE))
    found = tuple(_of_entries(*each) for each in asides if each[0])
    return replace(_of_entries(arrays, metadata), asides=found)


def _taken(
    arrays: dict[str, NDArray[Any]], metadata: Mapping[str, str], prefix: str
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The entries of such names, without the prefix; they are not among the others any more."""
    own = {name.removeprefix(prefix): arrays.pop(name) for name in [*arrays] if name.startswith(prefix)}
    return own, {name.removeprefix(prefix): text for name, text in metadata.items() if name.startswith(prefix)}


def _of_entries(arrays: dict[str, NDArray[Any]], metadata: Mapping[str, str]) -> Kept:
    update = arrays.pop(UPDATE).tobytes()
    state: dict[str, dict[str, NDArray[Any]]] = {}
    for name, array in arrays.items():
        array.flags.writeable = True  # the bytes are this function's own
        slot, _, tensor = name.partition("/")
        state.setdefault(slot, {})[tensor] = array
    sent, stages = json.loads(metadata["sent"]), tuple(json.loads(metadata["stages"]))
    if isinstance(sent, list):  # as up to version 0.2: every tensor of the update has a residual
        sent = {name: state[RESIDUAL][name].shape for name in sent}
    shapes = {name: tuple(shape) for name, shape in sent.items()}
    after = metadata.get("after")
    run, task, key, work = (metadata.get(name, "") for name in ("run", "task", "key", "work"))
    return Kept(run, task, key, work, state, update, shapes, stages, after, stray="stray" in metadata)
