"""Tensors that go up as they are, beside what a codec makes of the others: running statistics.

A device's running mean and variance are no steps that add up but states, of which an update has the difference to what
was received. A selection would send them alone, since they move a thousand times further than weights; what it left out
would be in the next difference again, beside the residual; and a rounded variance may be negative. So every update has
all of them, 4 bytes a value: the entry `exact/NAME` of its tensor file.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.codecs.codec import BadUpdate, Codec, Shapes, State
from edge_runtime.codecs.dense import DENSE
from edge_runtime.errors import RemoteError
from edge_runtime.tensors import decode_tensors, encode_tensors

__all__ = ["BadExact", "taken_exact", "with_exact"]

EXACT = "exact/"

Arrays = dict[str, NDArray[Any]]


class BadExact(RemoteError):
    """A task names tensors to be sent as they are that its update does not have."""


def with_exact(codec: Codec, names: Collection[str], places: Sequence[int]) -> Codec:
    """A codec that encodes some tensors beside the others; it decodes what it is given, as every codec does.

    Args:
        codec: For the others.
        names: Of all tensors of the update.
        places: Of those to be sent as they are, in the order of the names.

    Raises:
        BadExact: There are not so many tensors.
    """
    ordered = sorted(names)
    if any(place >= len(ordered) for place in places):
        raise BadExact(f"the task wants tensors {list(places)[-3:]} as they are; its update has {len(ordered)}")
    if not places or codec.stages == DENSE.stages:
        return codec

    def encode(tensors: Arrays, metadata: Mapping[str, str], state: State) -> bytes:
        beside = {EXACT + ordered[place]: tensors.pop(ordered[place]) for place in places}
        entries = decode_tensors(codec.encode(tensors, metadata, state))[0] if tensors else {}
        return encode_tensors({**entries, **beside}, metadata)

    return replace(codec, encode=encode)


def taken_exact(entries: Arrays, shapes: Shapes) -> Arrays:
    """The tensors that are among the entries as they are, which then are not any more.

    Raises:
        BadUpdate: One is not of the update, or of another type or shape.
    """
    taken = {}
    for key in [key for key in entries if key.startswith(EXACT)]:
        name, array = key.removeprefix(EXACT), entries.pop(key)
        if name not in shapes or array.dtype != np.float32 or array.shape != shapes[name]:
            raise BadUpdate(f"{key!a} is {array.dtype} {array.shape}; the update has no such tensor")
        taken[name] = array if array.flags.aligned else array.copy()
    return taken
