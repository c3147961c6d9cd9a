"""The codec that leaves the tensors as they are: one tensor file, 4 bytes a value."""

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from edge_runtime.codecs.codec import Codec, Shapes, State
from edge_runtime.tensors import decode_tensors, encode_tensors

__all__ = ["DENSE"]


def _encode(tensors: dict[str, NDArray[Any]], metadata: Mapping[str, str], _state: State) -> bytes:
    return encode_tensors(tensors, metadata)


def _decode(data: bytes, _shapes: Shapes) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    return decode_tensors(data)


DENSE = Codec(stages=("dense",), encode=_encode, decode=_decode)
