"""Checking an update before it may count: a device's word is taken for nothing that can be checked."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_runtime.codecs import LARGEST, BadUpdate, Codec, find_codec
from edge_runtime.control import JOINED
from edge_runtime.errors import RemoteError
from edge_runtime.kernels import CodedUpdate, Layout, Piece, StreamError, Workspace
from edge_runtime.plan import CONTROL
from edge_runtime.tensors import MAX_HEADER_BYTES, decode_tensors, flat_values
from edge_runtime.wire.tasks import MAX_BLOB_BYTES, Task

MAX_EXAMPLES = 2**31
# A float32 and a place of 4 bytes, and as much again for a method that sends a second set of tensors.
MAX_BYTES_A_VALUE = 16

_COUNT = re.compile(r"[1-9][0-9]{0,9}")
_LOSS = re.compile(r"-?[0-9.]{1,40}(e[+-]?[0-9]{1,3})?")


class UpdateError(RemoteError):
    """An update that does not count; the subclass names the rule."""


class WrongTask(UpdateError):
    """The metadata do not name the task that the device was asked to do."""


class BadCount(UpdateError):
    """Examples, steps or loss are missing or not numbers in range."""


class TooManyExamples(UpdateError):
    """More examples than the device's birth announced; the surplus would be weight it has no claim to."""


class BadJoined(UpdateError):
    """What the device says of its control variates is no list of them."""


class WrongTensors(UpdateError):
    """The names, dtypes or shapes are not those of the trained tensors."""


class TooLarge(UpdateError):
    """A value times the examples is beyond what a fold can add up."""


class FleetFull(UpdateError):
    """The method is for a fixed number of devices, and as many others have taken part."""


class NonFinite(UpdateError):
    """A tensor holds NaN or infinity."""


@dataclass(frozen=True)
class Claims:
    """What an update says of itself, checked.

    Attributes:
        examples: Their number.
        steps: Done on the device.
        loss: Mean over them.
        joined: The control variates that the device begins with it.
    """

    examples: int
    steps: int
    loss: float
    joined: frozenset[str] = frozenset()


def max_update_bytes(trained: Iterable[Mapping[str, tuple[int, ...]]]) -> int:
    """More than any codec writes for the largest of these sets of tensors; what is announced beyond it is no update.

    Args:
        trained: {name: shape} for every stage and board of a job.
    """
    values = max(sum(math.prod(shape) for shape in shapes.values()) for shapes in trained)
    return min(MAX_BLOB_BYTES, MAX_HEADER_BYTES + MAX_BYTES_A_VALUE * values)


def check_update(
    data: bytes, task: Task, layout: Layout, announced_examples: int, *, workspace: Workspace | None = None
) -> tuple[Claims, CodedUpdate]:
    """Checks an update against the task it answers, and gives what it says and what a fold takes.

    Args:
        data: As it came, of a size that the wire has capped.
        task: As it was sent.
        layout: Of the tensors that must be there, no more and no less.
        announced_examples: From the device's birth.
        workspace: To look through the values with; None for a new one, which takes longer than a small update.

    Raises:
        RemoteError: A subclass for each rule: those of this module, and the codec's for bytes it cannot decode.
    """
    update, metadata = read_update(data, find_codec(task.upload.codec), layout, workspace=workspace)
    _check_names(metadata, task)
    claims = claims_of(metadata, layout)
    if claims.examples > announced_examples:
        raise TooManyExamples(f"{claims.examples} examples, but the birth announced {announced_examples}")
    if update.first_bad is not None:
        raise NonFinite(f"tensor {update.first_bad!r} holds NaN or infinity; training diverged on the device")
    if update.peak * claims.examples >= LARGEST:
        raise TooLarge(f"a value of {update.peak:.3g} with {claims.examples} examples; training diverged on the device")
    return claims, update


def read_update(
    data: bytes, codec: Codec, layout: Layout, *, workspace: Workspace | None = None
) -> tuple[CodedUpdate, dict[str, str]]:
    """An update as a fold takes it, not made dense where the codec has pieces, and its metadata.

    Raises:
        RemoteError: Bytes that the codec cannot decode, or other tensors than the layout's.
    """
    pieces, metadata = _dense_pieces(data, layout) if codec.pieces is None else codec.pieces(data, layout)
    try:
        return CodedUpdate(pieces, layout, workspace=workspace), metadata
    except StreamError as error:
        raise BadUpdate(str(error.args[1])) from None


def _dense_pieces(data: bytes, layout: Layout) -> tuple[list[Piece], dict[str, str]]:
    """One piece where the tensors lie in the file as they do in the layout, as those of our clients do."""
    flat = flat_values(data, layout.shapes)
    if flat is not None:
        return [Piece(flat[0])], flat[1]
    tensors, metadata = decode_tensors(data)
    _check_tensors(tensors, layout.shapes)
    return layout.pieces(tensors), metadata


def claims_of(metadata: Mapping[str, str], layout: Layout) -> Claims:
    """What an update of these tensors says of itself.

    Raises:
        BadCount: A number is missing or out of range.
        BadJoined: `joined` is no list of control variates among the update's tensors.
    """
    counts = (_count(metadata, "examples"), _count(metadata, "steps"), _loss(metadata))
    return Claims(*counts, _joined(metadata, layout))


def _joined(metadata: Mapping[str, str], layout: Layout) -> frozenset[str]:
    text = metadata.get(JOINED)
    if text is None:
        return frozenset()
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(
        isinstance(name, str) and name.startswith(CONTROL) and name in layout.shapes for name in names
    ):
        raise BadJoined(f"{JOINED} is {_shown(text)}; it must be a list of the update's tensors {CONTROL}*")
    return frozenset(names)


def _check_names(metadata: Mapping[str, str], task: Task) -> None:
    wanted = {
        "task": task.task,
        "job": task.job,
        "round": str(task.round),
        "version": str(task.version),
        "device": task.device,
    }
    for key, value in wanted.items():
        if metadata.get(key) != value:
            raise WrongTask(f"{key} is {_shown(metadata.get(key))}, the task has {value!r}")


def _count(metadata: Mapping[str, str], key: str) -> int:
    text = metadata.get(key, "")
    if _COUNT.fullmatch(text) is None or int(text) > MAX_EXAMPLES:
        raise BadCount(f"{key} is {_shown(metadata.get(key))}; it must be a number in 1 .. {MAX_EXAMPLES}")
    return int(text)


def _loss(metadata: Mapping[str, str]) -> float:
    text = metadata.get("loss", "")
    if _LOSS.fullmatch(text) is None:
        raise BadCount(f"loss is {_shown(metadata.get('loss'))}; it must be a finite number")
    try:
        loss = float(text)
    except ValueError:
        raise BadCount(f"loss is {_shown(text)}; it must be a finite number") from None
    if not math.isfinite(loss):
        raise BadCount(f"loss is {_shown(text)}; it must be a finite number")
    return loss


def _check_tensors(tensors: Mapping[str, NDArray[np.float32]], trained: Mapping[str, tuple[int, ...]]) -> None:
    if tensors.keys() != trained.keys():
        missing, surplus = sorted(trained.keys() - tensors.keys()), sorted(tensors.keys() - trained.keys())
        raise WrongTensors(f"missing {_shown(missing)}, not asked for {_shown(surplus)}")
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32 or tensor.shape != trained[name]:
            raise WrongTensors(f"tensor {name!r} is {tensor.dtype} {tensor.shape}, asked for float32 {trained[name]}")


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."
