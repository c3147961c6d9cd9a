"""Weights from other weights: what a delta's bytes change in them (docs/tasks.md, "Deltas").

A delta is a tensor file. Its entries `exact/NAME` take the place of tensors, bit for bit. The entry `coded`, if it is
there, is what the codec wrote of the differences of the tensors that the metadata's `coded` names; they are added in
float32. So whoever has the same base has the same bits afterwards.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.codecs import find_codec
from edge_runtime.errors import RemoteError
from edge_runtime.tensors import decode_tensors, encode_tensors

__all__ = ["CHANGED", "BadDelta", "apply_delta", "write_delta"]

CHANGED: tuple[str, ...] = ("changed",)  # the stages of a delta in which nothing is coded
EXACT, CODED = "exact/", "coded"

Weights = Mapping[str, NDArray[Any]]


class BadDelta(RemoteError):
    """The bytes of a delta do not fit the weights it is applied to."""


def write_delta(exact: Weights, names: list[str], coded: bytes) -> bytes:
    """Write a delta.

    Args:
        exact: Tensors as they shall be, float32.
        names: Of the tensors whose differences are coded.
        coded: Their codec's bytes; not written where `names` is empty.
    """
    entries = {EXACT + name: array for name, array in exact.items()}
    if not names:
        return encode_tensors(entries)
    entries[CODED] = np.frombuffer(coded, np.uint8)
    return encode_tensors(entries, {CODED: json.dumps(names, separators=(",", ":"))})


def apply_delta(held: Weights, data: bytes | memoryview, stages: tuple[str, ...]) -> dict[str, NDArray[np.float32]]:
    """The weights that a delta makes of others.

    Args:
        held: {name: (...) float32}; not modified, and in the result where nothing changes.
        data: The delta.
        stages: Of its codec.

    Raises:
        BadDelta: It names tensors that are not there, or has others with other shapes.
        RemoteError: The codec's or the tensor file's, for bytes that nobody wrote so.
    """
    entries, metadata = decode_tensors(data)
    coded = entries.pop(CODED, None)
    made = dict(held)
    for key, array in entries.items():
        name = key.removeprefix(EXACT)
        if not key.startswith(EXACT) or name not in held or (array.dtype, array.shape) != _kind(held[name]):
            raise BadDelta(f"entry {key!a} is {array.dtype} {array.shape}; no such tensor is held")
        made[name] = array
    if coded is None:
        return made
    shapes = {name: held[name].shape for name in _coded_names(metadata, held)}
    for name, difference in find_codec(stages).decode(coded.tobytes(), shapes)[0].items():
        if (difference.dtype, difference.shape) != _kind(held[name]):
            raise BadDelta(f"the difference of {name!a} is {difference.dtype} {difference.shape}")
        made[name] = held[name] + difference
    return made


def _kind(array: NDArray[Any]) -> tuple[np.dtype[Any], tuple[int, ...]]:
    return array.dtype, array.shape


def _coded_names(metadata: Mapping[str, str], held: Weights) -> list[str]:
    try:
        names = json.loads(metadata.get(CODED, ""))
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) and name in held for name in names):
        raise BadDelta(f"the coded tensors are {metadata.get(CODED, '')[:80]!a}; they must be names of held ones")
    return names
