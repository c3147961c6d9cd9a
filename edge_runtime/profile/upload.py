"""What an update costs after training: the codec's time, its bytes, and the kernels it calls."""

from __future__ import annotations

import cProfile
import pstats
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.codecs import find_codec
from edge_runtime.plan import AVERAGE, ROLE_TRAINED, Plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.codecs import State

ROUNDS = 9
_KERNEL = re.compile(r"(?:edge_runtime\._core\.)(\w+)")


@dataclass(frozen=True)
class UploadCost:
    """A codec on random updates of a plan's trained tensors, normally distributed, carried over from one to the next.

    Attributes:
        stages: The codec's.
        values: In an update.
        nbytes: Of the last update, with the round as its only metadata.
        dense_bytes: Of the same in float32.
        median_s: Of an encoding.
        decode_s: Of a decoding, median.
        kernels: Seconds in each function of the compiled core during the last encoding, the longest first.
    """

    stages: tuple[str, ...]
    values: int
    nbytes: int
    dense_bytes: int
    median_s: float
    decode_s: float
    kernels: dict[str, float]


def measure_upload(plan: Plan, stages: Sequence[str]) -> UploadCost:
    """Encode some updates, and once more under Python's profiler, which sees the calls into the core.

    Raises:
        BadCodec: The stages make no codec.
    """
    codec = find_codec(stages)
    trained = plan.named(ROLE_TRAINED)
    shapes = {name: tensor.shape for name, tensor in trained.items() if not name.startswith(AVERAGE)}
    rng = np.random.default_rng(0)
    state: State = {}
    encode_s, decode_s, data = [], [], b""
    profiler = cProfile.Profile()
    for number in range(ROUNDS):
        metadata = {"round": str(number + 1)}
        update = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
        begun = time.perf_counter()
        data = (
            profiler.runcall(codec.encode, update, metadata, state)
            if number == ROUNDS - 1
            else codec.encode(update, metadata, state)
        )
        encoded = time.perf_counter()
        codec.decode(data, shapes)
        decode_s.append(time.perf_counter() - encoded)
        encode_s.append(encoded - begun)
    values = sum(int(np.prod(shape)) for shape in shapes.values())
    return UploadCost(
        codec.stages,
        values,
        len(data),
        4 * values,
        float(np.median(encode_s[:-1])),
        float(np.median(decode_s)),
        _kernels(profiler),
    )


def upload_json(cost: UploadCost) -> dict[str, Any]:
    """The cost as JSON values, times in seconds."""
    return {
        "codec": list(cost.stages),
        "values": cost.values,
        "bytes": cost.nbytes,
        "dense_bytes": cost.dense_bytes,
        "encode_s": cost.median_s,
        "decode_s": cost.decode_s,
        "kernels_s": cost.kernels,
    }


def upload_text(cost: UploadCost) -> str:
    """The cost as lines for people."""
    less = f"{cost.dense_bytes / cost.nbytes:.1f} times less than float32"
    lines = [
        f"upload through {', '.join(cost.stages)}: {cost.nbytes} bytes for {cost.values} values, {less}",
        f"{'encoding':<24}{'':6}{1e3 * cost.median_s:>11.3f}",
        f"{'decoding':<24}{'':6}{1e3 * cost.decode_s:>11.3f}",
    ]
    return "\n".join([*lines, *(f"  {name:<22}{'':6}{1e3 * took_s:>11.3f}" for name, took_s in cost.kernels.items())])


def _kernels(profiler: cProfile.Profile) -> dict[str, float]:
    stats: Any = pstats.Stats(profiler).stats  # type: ignore[attr-defined] # no type information for it
    found: dict[str, float] = {}
    for (_, _, label), (_, _, own_s, _, _) in stats.items():
        kernel = _KERNEL.search(label)
        if kernel is not None:
            found[kernel[1]] = found.get(kernel[1], 0.0) + own_s
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))
