"""Break updates of every codec for some time: `python -m fuzz.codecs --seconds 3600`, with `tests` on PYTHONPATH.

Every input must give tensors of the right names and shapes or a RemoteError, within the memory and time below. The
first that does not is written to a file, and the exit code is 1. Equal seeds break equal inputs.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np

from coordinator.updates import read_update
from edge_runtime.codecs import DENSE, Codec, find_codec, with_exact
from edge_runtime.errors import RemoteError
from edge_runtime.kernels import Accumulator, Layout
from support.codecs import PIPELINES, SHAPES, Tree
from support.mutate import mutated

MODELS = (SHAPES, {"emb": (300, 16), "w": (24, 40)})
ADDRESS_SPACE_BYTES = 1 << 30  # beyond what the process has when it begins
BYTES_A_VALUE, BYTES_MORE = 64, 1 << 20
CPU_S = 2.0
LARGEST = 2.0**50  # far below what sums of a fold hold


class Broken(Exception):
    """An input broke a rule of decoders."""


def main(argv: list[str] | None = None) -> int:
    """Fuzz; prints one JSON object of what was tried and which rules refused it."""
    parser = argparse.ArgumentParser(prog="python -m fuzz.codecs", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("codec-crash.bin"))
    options = parser.parse_args(argv)
    limit_memory()
    rng, ends_s = random.Random(options.seed), time.monotonic() + options.seconds  # noqa: S311 nothing secret
    rules: Counter[str] = Counter()
    seeds = [(stages, shapes, _update(stages, shapes, rng)) for stages in PIPELINES for shapes in MODELS]
    tracemalloc.start()
    while time.monotonic() < ends_s:
        stages, shapes, valid = rng.choice(seeds)
        data = mutated(valid, rng)
        try:
            rules[check_one(stages, shapes, data)] += 1
        except Exception as error:  # noqa: BLE001 whatever it is, the input is kept
            options.out.write_bytes(data)
            print(json.dumps({"stages": stages, "shapes": shapes, "input": str(options.out), "error": repr(error)}))
            return 1
    print(json.dumps({"inputs": rules.total(), "outcomes": dict(rules.most_common())}))
    return 0


def check_one(stages: tuple[str, ...], shapes: dict[str, tuple[int, ...]], data: bytes) -> str:
    """Decode one input.

    Returns:
        "decoded", or the rule that refused it.

    Raises:
        Broken: It took too much, or gave something else than was asked for. ("dense" gives what it is
            given; whoever asks for an update checks its names.)
    """
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    begun_s = time.process_time()
    try:
        codec = find_codec(stages)
        tensors, _ = codec.decode(data, shapes)
        outcome = "decoded"
        if stages != DENSE.stages and {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()} != {
            name: (shape, np.dtype(np.float32)) for name, shape in shapes.items()
        }:
            raise Broken("other tensors than were asked for")
        if stages != DENSE.stages and all((np.abs(each) < LARGEST).all() for each in tensors.values()):
            _check_fold(codec, data, tensors)
    except RemoteError as error:
        outcome = error.rule
    took_s = time.process_time() - begun_s
    _, peak = tracemalloc.get_traced_memory()
    values = sum(int(np.prod(shape)) for shape in shapes.values())
    if peak - before > BYTES_A_VALUE * values + BYTES_MORE + 8 * len(data):
        raise Broken(f"{peak - before} bytes for {values} values and an input of {len(data)} bytes")
    if took_s > CPU_S:
        raise Broken(f"{took_s:.1f} s")
    return outcome


def _check_fold(codec: Codec, data: bytes, tensors: Tree) -> None:
    """What is decoded is what a fold takes."""
    layout = Layout({name: tensor.shape for name, tensor in tensors.items()})
    update, _ = read_update(data, codec, layout)
    sums = Accumulator(layout)
    sums.add(update, np.ones(len(layout.shapes)))
    for name, tensor in tensors.items():
        # Sums are multiples of 2**-64.
        if np.abs(sums.sum(name) - tensor.astype(np.float64)).max(initial=0) > 2.0**-63:
            raise Broken(f"a fold takes something else of {name}")


def _update(stages: tuple[str, ...], shapes: dict[str, tuple[int, ...]], rng: random.Random) -> bytes:
    numbers = np.random.default_rng(rng.randrange(2**32))
    tensors: Tree = {name: np.asarray(numbers.standard_normal(shape), np.float32) for name, shape in shapes.items()}
    if "w" in tensors:  # one that low rank makes smaller
        tensors["w"] = np.outer(*(numbers.standard_normal(size) for size in shapes["w"])).astype(np.float32)
    beside = sorted(rng.sample(range(len(shapes)), rng.randrange(len(shapes)))) if rng.random() < 0.3 else []
    return with_exact(find_codec(stages), shapes, beside).encode(tensors, {"task": "t", "round": "2"}, {})


def limit_memory() -> None:
    """What tracemalloc does not see, the compiled core's, ends in a MemoryError."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + ADDRESS_SPACE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    sys.exit(main())
