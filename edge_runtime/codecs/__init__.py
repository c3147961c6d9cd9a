"""Codecs: named tensors <-> the bytes of an update. CODECS is the whole list."""

from collections.abc import Sequence

from edge_runtime.codecs.codec import Codec, State
from edge_runtime.codecs.dense import DENSE
from edge_runtime.errors import RemoteError

__all__ = ["CODECS", "Codec", "State", "UnknownCodec", "find_codec"]

CODECS = {codec.name: codec for codec in (DENSE,)}


class UnknownCodec(RemoteError):
    """A task names a codec this version does not have."""


def find_codec(stages: Sequence[str]) -> Codec:
    """Look up the codec of a task's upload.

    Args:
        stages: The pipeline's stages by name; this version has pipelines of one stage.

    Returns:
        The codec.

    Raises:
        UnknownCodec: Lists what is known.
    """
    if len(stages) != 1 or stages[0] not in CODECS:
        raise UnknownCodec(f"codec {list(stages)!r} is not known here; known are {', '.join(sorted(CODECS))}")
    return CODECS[stages[0]]
