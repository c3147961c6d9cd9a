"""What a codec is: a frozen record of two functions; what it carries from one call to the next is handed in and out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

__all__ = ["Codec", "State"]

# {name: (...) float32} carried over to the next encoding (a residual, say), or None for a codec that carries nothing.
State = Mapping[str, NDArray[Any]] | None


@dataclass(frozen=True)
class Codec:
    """A pair of functions between named tensors and bytes.

    Attributes:
        name: As a task names it.
        encode: (tensors, metadata, state) -> (bytes, new state). The tensors are not modified; equal arguments give
            equal bytes; the bytes carry the metadata.
        decode: bytes -> (tensors, metadata). Raises a RemoteError for bytes that no encode wrote.
    """

    name: str
    encode: Callable[[Mapping[str, NDArray[Any]], Mapping[str, str], State], tuple[bytes, State]]
    decode: Callable[[bytes], tuple[dict[str, NDArray[Any]], dict[str, str]]]
