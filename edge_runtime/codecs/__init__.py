"""Codecs: named tensors <-> the bytes of an update."""

from collections.abc import Sequence
from functools import lru_cache

from edge_runtime.codecs.codec import LARGEST, RESIDUAL, BadCodec, BadUpdate, Codec, State
from edge_runtime.codecs.dense import DENSE
from edge_runtime.codecs.exact import with_exact

__all__ = ["DENSE", "LARGEST", "RESIDUAL", "BadCodec", "BadUpdate", "Codec", "State", "find_codec", "with_exact"]


def find_codec(stages: Sequence[str]) -> Codec:
    """The codec of a task's upload.

    Args:
        stages: As in a job file's `upload.codec`: ["dense"], or those of edge_runtime/codecs/pipeline.py.

    Raises:
        BadCodec: A stage is unknown, out of place, or has arguments out of range.
    """
    return DENSE if tuple(stages) == DENSE.stages else _built(tuple(stages))


@lru_cache(maxsize=16)  # a gateway asks for every update
def _built(stages: tuple[str, ...]) -> Codec:
    from edge_runtime.codecs.pipeline import build_pipeline  # noqa: PLC0415 boards that send all as it is need no more

    return build_pipeline(stages)
