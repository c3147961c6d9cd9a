"""What a codec is: a frozen record of functions; what it carries from one call to the next is handed in and out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from edge_runtime.errors import RemoteError

if TYPE_CHECKING:
    from edge_runtime.kernels import Layout, Piece  # boards that send all as it is need no more

__all__ = ["LARGEST", "RESIDUAL", "BadCodec", "BadUpdate", "Codec", "Shapes", "State"]

Shapes = Mapping[str, tuple[int, ...]]

# {slot: {tensor: (...) float32}}, carried over to the next encoding; empty for a codec that carries nothing.
State = dict[str, dict[str, NDArray[Any]]]

# No value of an update, times the examples it counts for, may reach this: a fold takes terms below 2^72, whatever else
# a method weighs by; and what codecs make of such values, or carry of many of them, stays far from float32's end.
LARGEST = 2.0**70

RESIDUAL = "residual"  # the slot of what is still to be sent


class BadCodec(RemoteError):
    """A codec is asked for that this version cannot build; says which stage and what is known."""


class BadUpdate(RemoteError):
    """The bytes of an update are not what the codec writes for these tensors."""


@dataclass(frozen=True)
class Codec:
    """A pair of functions between named tensors and bytes.

    Attributes:
        stages: As a task names them; equal stages make equal codecs.
        encode: (tensors, metadata, state) -> bytes. The tensors are float32 and below LARGEST; they and the state are
            changed: what the bytes do not say of the tensors is in the state afterwards, if the codec carries
            anything. Equal arguments give equal bytes; the bytes carry the metadata.
        decode: (bytes, shapes) -> (tensors, metadata), with the names and shapes that the encoder had. Raises a
            RemoteError for bytes that no encode wrote.
        carries: The slots of its state; the first holds an array of its own shape for each tensor.
        remembers: The first slot is the sum of what the updates said, which the gateway holds as well, and no residual:
            an update that did not count comes out of it again, and it must not begin anew while the gateway's goes on.
        pieces: (bytes, layout) -> (pieces, metadata): what decode gives, as a fold takes it; None where the bytes are
            the tensors' own file.
    """

    stages: tuple[str, ...]
    encode: Callable[[dict[str, NDArray[Any]], Mapping[str, str], State], bytes]
    decode: Callable[[bytes, Shapes], tuple[dict[str, NDArray[Any]], dict[str, str]]]
    carries: tuple[str, ...] = ()
    remembers: bool = False
    pieces: "Callable[[bytes, Layout], tuple[list[Piece], dict[str, str]]] | None" = None
