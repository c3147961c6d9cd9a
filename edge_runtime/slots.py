"""What a codec carries from task to task, kept on disk so that nothing of it is lost or sent twice.

After a task its slots hold what its update left out, and the update may or may not count: it can be refused, come too
late, or be accepted although the answer never arrived. So slots and update are kept together, in one file that is
replaced whole, and the next task says which of this device's updates was the last to count:

- the kept one: the slots go on from where they are;
- another, or none: what the kept update said goes back into the slots first;
- the kept update's own task again, after a power cut: the update itself is the answer.

A broker that was killed may come back with a task of long ago, which a device does again before it hears better. Such a
task, or any before which the kept update did not count, does not end what was kept: it is set aside, and the next task
whose past it is goes on from there, as if nothing had been between. Which update counted is told by its SHA-256 beside
its task, because a task that is done again, with other slots, gives another update.

Therefore what is sent and counts, plus what is carried, is what training gave, to a rounding of float32, whatever fails
in between. Momentum that ended with an update (`dgc`) does not come back with it.

A codec that remembers (`ef21`) carries what its updates said so far, which the gateway holds as well: there what did
not count is taken out again. Such slots must hold all that counted and nothing else, or the sum on the gateway would be
wrong for ever; so a device whose slots are lost, or older than what counted, fails its task with MemoryLost.

Two more slots are of methods. Control variates (`control`, edge_runtime/control.py) are kept as they were before the
update and advance by what it said once it has counted; a device that has lost them begins anew, and says so. Of their
changes no residual is carried: each is made anew against what was said so far, as with `ef21`. Personal
tensors (`personal`) go on from where the last task left them, whatever became of its update.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.codecs import RESIDUAL, Codec, State
from edge_runtime.errors import EdgeError
from edge_runtime.plan import CONTROL
from edge_runtime.state_directory import set_aside, write_atomically
from edge_runtime.tensors import decode_tensors, tensor_file_parts
from edge_runtime.wire.tasks import Carry, Task, format_task

__all__ = [
    "SLOTS_NAME",
    "Kept",
    "MemoryLost",
    "Slots",
    "encode_carried",
    "kept_answer",
    "own_controls",
    "own_tensors",
    "read_kept",
    "state_before",
]

SLOTS_NAME = "slots"  # in a device's state directory
PERSONAL = "personal"  # the slot of tensors that never leave the device, as its last task left them
CONTROLS = "control"  # the slot of what corrects gradients, as it was before the kept update
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
    state: State
    update: bytes
    sent: Mapping[str, tuple[int, ...]]
    stages: tuple[str, ...]
    after: str | None = None
    asides: "tuple[Kept, ...]" = ()
    stray: bool = False


class MemoryLost(EdgeError):
    """The codec goes on from what its updates said, and this device's slots do not hold just those that counted."""


class Slots:
    """The slots of one device: a file, or memory alone while the disk cannot take it."""

    def __init__(self, path: Path) -> None:
        """Read nothing yet; `path` is the file."""
        self._path = path
        self._unwritten: Kept | None = None
        self._keys: frozenset[str] | None = None  # of what is kept, once this process knows it
        self.trouble = ""

    def may_answer(self, key: str) -> bool:
        """Whether what was kept may be of this task; spares reading it before every other one."""
        return self._keys is None or key in self._keys

    def kept(self, run: str) -> Kept | None:
        """What was kept in this run, the caller's to change; None where there is nothing or it cannot be read."""
        kept = _copied(self._unwritten) if self._unwritten is not None else self._read()
        self._keys = _keys(kept)
        return kept if kept is not None and kept.run == run else None

    def _read(self) -> Kept | None:
        kept = read_kept(self._path)
        if kept is None and self._path.exists():
            self.trouble = set_aside(self._path, "is not what was written; what it carried over is lost")
        return kept

    def take_trouble(self) -> str:
        """What was found damaged since the last call, "" if nothing was."""
        told, self.trouble = self.trouble, ""
        return told

    def keep(self, kept: Kept) -> None:
        """Put in place of what was there.

        Raises:
            OSError: It could not be written; it stays in memory, for write_again().
        """
        self._unwritten, self._keys = kept, _keys(kept)
        self._write(kept)

    def write_again(self) -> None:
        """Try once more to write what the disk did not take.

        Raises:
            OSError: As of keep().
        """
        if self._unwritten is not None:
            self._write(self._unwritten)

    @property
    def in_memory(self) -> bool:
        """Whether something is kept in memory alone, and would be lost with the process."""
        return self._unwritten is not None

    def _write(self, kept: Kept) -> None:
        tensors, metadata = _entries(kept)
        for place, aside in enumerate(kept.asides):
            beside, said = _entries(aside)
            tensors |= {ASIDE.format(place) + name: array for name, array in beside.items()}
            metadata |= {ASIDE.format(place) + name: text for name, text in said.items()}
        parts = tensor_file_parts(tensors, metadata)
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        write_atomically(self._path, digest.digest(), *parts)
        self._unwritten = None


def _entries(kept: Kept) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    tensors = {f"{slot}/{name}": array for slot, arrays in kept.state.items() for name, array in arrays.items()}
    tensors[UPDATE] = np.frombuffer(kept.update, np.uint8)
    metadata = {"run": kept.run, "task": kept.task, "key": kept.key}
    metadata |= {"sent": json.dumps(kept.sent), "stages": json.dumps(kept.stages)}
    metadata |= {"stray": "1"} if kept.stray else {}
    return tensors, metadata | ({} if kept.after is None else {"after": kept.after})


def _lines(kept: Kept | None) -> tuple[Kept, ...]:
    """All that may have to be gone on from, what was kept last before the others."""
    return () if kept is None else (kept, *kept.asides)


def _keys(kept: Kept | None) -> frozenset[str]:
    return frozenset(each.key for each in _lines(kept))


def _copied(kept: Kept) -> Kept:
    state = {slot: {name: array.copy() for name, array in arrays.items()} for slot, arrays in kept.state.items()}
    return replace(kept, state=state, asides=tuple(_copied(each) for each in kept.asides))


def kept_answer(slots: Slots, task: Task) -> bytes | None:
    """The update of this very task, if it is what was kept last."""
    key = _key(task)
    if task.carry is None or not slots.may_answer(key):
        return None
    return next((each.update for each in _lines(slots.kept(task.carry.run)) if each.key == key), None)


def encode_carried(  # noqa: PLR0913, PLR0917 an update, and all that is kept with it
    slots: Slots,
    codec: Codec,
    task: Task,
    tensors: dict[str, NDArray[Any]],
    metadata: Mapping[str, str],
    personal: Mapping[str, NDArray[Any]] | None = None,
) -> tuple[bytes, str]:
    """Encode an update, and keep it and what it leaves out before anybody hears of it.

    Args:
        slots: Of this device.
        codec: One that carries something over.
        task: Which is answered; with `carry`.
        tensors: As `codec.encode` takes them; changed.
        metadata: The update's.
        personal: Tensors that stay here, as the task left them.

    Returns:
        The bytes, and a warning where they and the slots could not be written to disk, or read ("" otherwise).

    Raises:
        MemoryLost: The codec remembers, and the slots are not what has counted.
    """
    assert task.carry is not None, "run_task refuses a carrying codec without"
    run = task.carry.run
    sent = {name: tensors[name].shape for name in sorted(tensors)}
    kept = slots.kept(run)
    asides, stray = _set_aside(kept, task.carry)
    state = state_before(kept, task.carry, codec)
    for name in (name.removeprefix(CONTROL) for name in sent if name.startswith(CONTROL)):
        state.setdefault(CONTROLS, {}).setdefault(name, np.zeros(sent[name], np.float32))
    if personal:
        state[PERSONAL] = {**state.get(PERSONAL, {}), **personal}
    data = codec.encode(tensors, metadata, state)
    _forget_controls(state)
    try:
        after = task.carry.counted
        slots.keep(Kept(run, task.task, _key(task), state, data, sent, codec.stages, after, asides, stray))
    except OSError as error:
        return data, f"what the update leaves out could not be kept ({error.strerror}); a restart would lose it"
    return data, slots.take_trouble()


def _forget_controls(state: State) -> None:
    """Carry nothing of control variates over.

    What an update leaves out of their change is in the next one anyway, which is made against c_i as it then is:
    carried beside that, it would be sent again and again, and throw c_i far beyond what it follows.
    """
    carried = state.get(RESIDUAL, {})
    for name in [name for name in carried if name.startswith(CONTROL)]:
        del carried[name]


def _key(task: Task) -> str:
    return hashlib.sha256(format_task(task)).hexdigest()


def _past(kept: Kept | None, carry: Carry) -> Kept | None:
    """What the task goes on from: the newest that has a claim to be its past, else what was kept last."""
    return next((each for each in _lines(kept) if _leads_to(each, carry)), kept)


def _leads_to(kept: Kept, carry: Carry) -> bool:
    """Whether what counted last is the kept update, or the one before it, which giving that back leads to."""
    return _counted(kept, carry) or kept.after == carry.counted


def _counted(kept: Kept, carry: Carry) -> bool:
    if kept.task != carry.counted:
        return False
    return carry.sha256 is None or hashlib.sha256(kept.update).hexdigest() == carry.sha256


def _set_aside(kept: Kept | None, carry: Carry) -> tuple[tuple[Kept, ...], bool]:
    """What a task may turn out not to end, as copies, and whether it is a stray one.

    Any number of stray tasks leave what was aside before them. One that is not, after an update that did not count, may
    be the next task or one of long ago that was asked in the same place: of such two in a row lose nothing.
    """
    past = _past(kept, carry)
    if kept is None or past is None or _counted(past, carry):
        return (), False
    if kept.stray and past is kept:
        asides, stray = kept.asides, True
    else:
        asides, stray = (_lines(kept) if past is kept else (past,)), not _leads_to(past, carry)
    return tuple(replace(_copied(each), asides=()) for each in asides[:MOST_ASIDE]), stray


def state_before(kept: Kept | None, carry: Carry, codec: Codec) -> State:
    """The slots that a task begins with.

    If the kept update counted, controls advance by what it said; if not, what it said is still to be sent.

    Args:
        kept: Of the same run, or None; changed.
        carry: As the task has it.
        codec: The run's.

    Raises:
        MemoryLost: As in encode_carried.
    """
    kept = _past(kept, carry)
    if codec.remembers:
        _check_memory(kept, carry)
    if kept is None:
        return {}
    counted = kept.task == carry.counted
    if counted and CONTROLS in kept.state:
        for name, said in codec.decode(kept.update, kept.sent)[0].items():
            if name.startswith(CONTROL):
                kept.state[CONTROLS][name.removeprefix(CONTROL)] += said
    elif _is_behind(kept, carry):
        kept.state.pop(CONTROLS, None)
    if codec.carries and not counted:
        slot = kept.state.get(codec.carries[0], {})
        for name, said in codec.decode(kept.update, kept.sent)[0].items():
            if name in slot:  # not control variates, and not what went beside the codec
                np.add(slot[name], -said if codec.remembers else said, out=slot[name])
    return kept.state


def own_controls(slots: Slots, carry: Carry, codec: Codec) -> tuple[dict[str, NDArray[np.float32]], str]:
    """The control variates of this device, by the name of the tensor they belong to.

    Returns:
        They, and a warning where the device should have some and has lost them ("" otherwise).
    """
    kept = slots.kept(carry.run)
    if _is_behind(_past(kept, carry), carry):
        return {}, "the control variates of this device are lost; it begins anew, and its old ones stay in the mean"
    return state_before(kept, carry, codec).get(CONTROLS, {}), ""


def own_tensors(slots: Slots, carry: Carry) -> dict[str, NDArray[np.float32]]:
    """The tensors that stay on this device, as its last task of this run left them; whether it counted is all one."""
    kept = _past(slots.kept(carry.run), carry)
    return {} if kept is None else kept.state.get(PERSONAL, {})


def _is_behind(kept: Kept | None, carry: Carry) -> bool:
    """What counted last is neither the kept update nor the one before it, which giving that back leads to."""
    return carry.counted not in ({None} if kept is None else {kept.task, kept.after})


def _check_memory(kept: Kept | None, carry: Carry) -> None:
    if _is_behind(kept, carry):
        raise MemoryLost(
            f"the update that counted last is that of {carry.counted}, but the slots end with "
            f"{'nothing' if kept is None else kept.task}; only a new run can take this device in again: clone the job"
        )


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
    run, task, key, stray = metadata["run"], metadata["task"], metadata["key"], "stray" in metadata
    return Kept(run, task, key, state, update, shapes, stages, after, stray=stray)
