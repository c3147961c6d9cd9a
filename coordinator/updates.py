"""Checking an update before it may count: a device's word is taken for nothing that can be checked."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_runtime.codecs import find_codec
from edge_runtime.errors import RemoteError
from edge_runtime.tensors import MAX_HEADER_BYTES
from edge_runtime.wire.tasks import MAX_BLOB_BYTES, Task

MAX_EXAMPLES = 2**31
# A float32 and a place of 4 bytes, and as much again for a method that sends a second set of tensors.
MAX_BYTES_A_VALUE = 16


class UpdateError(RemoteError):
    """An update that does not count; the subclass names the rule."""


class WrongTask(UpdateError):
    """The metadata do not name the task that the device was asked to do."""


class BadCount(UpdateError):
    """Examples, steps or loss are missing or not numbers in range."""


class TooManyExamples(UpdateError):
    """More examples than the device's birth announced; the surplus would be weight it has no claim to."""


class WrongTensors(UpdateError):
    """The names, dtypes or shapes are not those of the trained tensors."""


class NonFinite(UpdateError):
    """A tensor holds NaN or infinity."""


@dataclass(frozen=True)
class Claims:
    """What an update says of itself, checked: its number of examples, steps, and mean training loss."""

    examples: int
    steps: int
    loss: float


def max_update_bytes(trained: Iterable[Mapping[str, tuple[int, ...]]]) -> int:
    """More than any codec writes for the largest of these sets of tensors; what is announced beyond it is no update.

    Args:
        trained: {name: shape} for every stage and board of a job.
    """
    values = max(sum(math.prod(shape) for shape in shapes.values()) for shapes in trained)
    return min(MAX_BLOB_BYTES, MAX_HEADER_BYTES + MAX_BYTES_A_VALUE * values)


def check_update(data: bytes, task: Task, trained: Mapping[str, tuple[int, ...]], announced_examples: int) -> Claims:
    """Checks an update against the task it answers.

    Args:
        data: As it came, of a size that the wire has capped.
        task: As it was sent.
        trained: The tensors that must be there, no more and no less, with their shapes.
        announced_examples: From the device's birth.

    Raises:
        RemoteError: A subclass for each rule: those of this module, and the codec's for bytes it cannot decode.
    """
    tensors, metadata = find_codec(task.upload.codec).decode(data, trained)
    _check_names(metadata, task)
    claims = Claims(examples=_count(metadata, "examples"), steps=_count(metadata, "steps"), loss=_loss(metadata))
    if claims.examples > announced_examples:
        raise TooManyExamples(f"{claims.examples} examples, but the birth announced {announced_examples}")
    _check_tensors(tensors, trained)
    return claims


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
    if re.fullmatch(r"[1-9][0-9]{0,9}", text) is None or int(text) > MAX_EXAMPLES:
        raise BadCount(f"{key} is {_shown(metadata.get(key))}; it must be a number in 1 .. {MAX_EXAMPLES}")
    return int(text)


def _loss(metadata: Mapping[str, str]) -> float:
    text = metadata.get("loss", "")
    if re.fullmatch(r"-?[0-9.]{1,40}(e[+-]?[0-9]{1,3})?", text) is None:
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
        if not all_finite(tensor):
            raise NonFinite(f"tensor {name!r} holds NaN or infinity; training diverged on the device")


def all_finite(tensor: NDArray[np.float32]) -> bool:
    """Whether every value is finite, mostly in one pass and without a temporary array.

    dot(g, g) is NaN or infinite as soon as one value is; it also overflows for finite values beyond 1.8e19, so that
    answer alone is looked at again, value by value.
    """
    flat = tensor.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        square = float(np.dot(flat, flat))
    return math.isfinite(square) or bool(np.isfinite(flat).all())


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."
