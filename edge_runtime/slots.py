"""What a codec carries from task to task, kept on disk so that nothing of it is lost or sent twice.

After a task its slots hold what its update left out, and the update may or may not count: it can be refused, come too
late, or be accepted although the answer never arrived. So slots and update are kept together, in one file that is
replaced whole, and the next task says which of this device's updates was the last to count:

- the kept one: the slots go on from where they are;
- another, or none: what the kept update said goes back into the slots first;
- the kept update's own task again, after a power cut: the update itself is the answer;
- the same work under another name, as in a round's second attempt: that update is the answer too, under the new name.

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
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.codecs import RESIDUAL, Codec, State
from edge_runtime.errors import EdgeError
from edge_runtime.kept import MOST_ASIDE, Kept, read_kept, write_kept
from edge_runtime.plan import CONTROL
from edge_runtime.state_directory import set_aside
from edge_runtime.tensors import decode_tensors, encode_tensors
from edge_runtime.wire.tasks import Carry, Task, format_task

__all__ = [
    "SLOTS_NAME",
    "MemoryLost",
    "Slots",
    "encode_carried",
    "kept_answer",
    "own_controls",
    "own_tensors",
    "readdressed",
    "state_before",
]

SLOTS_NAME = "slots"  # in a device's state directory
PERSONAL = "personal"  # the slot of tensors that never leave the device, as its last task left them
CONTROLS = "control"  # the slot of what corrects gradients, as it was before the kept update


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
        """Whether what was kept may be of this task or work; spares reading it before every other one."""
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
        write_kept(self._path, kept)
        self._unwritten = None


def _lines(kept: Kept | None) -> tuple[Kept, ...]:
    """All that may have to be gone on from, what was kept last before the others."""
    return () if kept is None else (kept, *kept.asides)


def _keys(kept: Kept | None) -> frozenset[str]:
    return frozenset(name for each in _lines(kept) for name in (each.key, each.work))


def _copied(kept: Kept) -> Kept:
    state = {slot: {name: array.copy() for name, array in arrays.items()} for slot, arrays in kept.state.items()}
    return replace(kept, state=state, asides=tuple(_copied(each) for each in kept.asides))


def kept_answer(slots: Slots, task: Task) -> bytes | None:
    """The update of this very task, if it is what was kept last."""
    key = _key(task)
    if task.carry is None or not slots.may_answer(key):
        return None
    return next((each.update for each in _lines(slots.kept(task.carry.run)) if each.key == key), None)


def readdressed(slots: Slots, task: Task, examples: int) -> tuple[bytes, str] | None:
    """The update that was made by the same work for another task: as a round's attempts, which train alike.

    Were it given back and trained once more, what was trained would be said twice.

    Args:
        slots: Of this device.
        task: That was not done under its own name.
        examples: Of the device; the update is of as many.

    Returns:
        The update with the task's name, and a warning as encode_carried's; None where there is none.
    """
    work = _work(task)
    if task.carry is None or not slots.may_answer(work):
        return None
    kept = slots.kept(task.carry.run)
    made = _past(kept, task.carry)  # what was set aside before that is older: to go on from it would lose the newer
    if made is None or made.work != work:
        return None
    arrays, metadata = decode_tensors(made.update)
    if metadata["examples"] != str(examples):
        return None
    data = encode_tensors(arrays, {**metadata, "task": task.task})
    asides, _ = _set_aside(kept, task.carry)
    made = replace(made, task=task.task, key=_key(task), update=data, asides=asides, stray=False)
    return data, _put(slots, made) or slots.take_trouble()


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
    after, key, work = task.carry.counted, _key(task), _work(task)
    made = Kept(run, task.task, key, work, state, data, sent, codec.stages, after, asides, stray)
    return data, _put(slots, made) or slots.take_trouble()


def _put(slots: Slots, kept: Kept) -> str:
    try:
        slots.keep(kept)
    except OSError as error:
        return f"what the update leaves out could not be kept ({error.strerror}); a restart would lose it"
    return ""


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


def _work(task: Task) -> str:
    """Names what a task trains, and from what: not the task, nor how its weights come, nor how long it may take."""
    return _key(replace(task, task="work", deltas=(), deadline_s=1.0))


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
