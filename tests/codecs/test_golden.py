"""The bytes of version 1 of every codec: kept as they were once written, and read to the bit for ever.

A form that must change is a new version with a directory of its own, and readers of the old one stay. `write_golden`
makes the files of a codec that is new.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_runtime.codecs import find_codec, with_exact
from edge_runtime.tensors import decode_tensors, encode_tensors
from support.codecs import PIPELINES, SHAPES, Tree

GOLDEN = Path(__file__).parents[1] / "golden" / "codecs" / "1"
METADATA = {"task": "digits.3.dev-1", "round": "3"}
# Whose numbers come out of long float sums, which differ between instruction sets; what they say does not.
SUMS = ("svd", "powersgd")


def update() -> Tree:
    """Numbers without a generator, alike on every machine: multiples of 1 / 64 between -2 and 2."""
    tensors = {}
    for number, (name, shape) in enumerate(SHAPES.items(), 1):
        count = int(np.prod(shape))
        tensors[name] = (((np.arange(count) * 7919 * number) % 257 - 128) / np.float32(64)).astype(np.float32)
        tensors[name] = tensors[name].reshape(shape)
    return tensors


def name_of(stages: tuple[str, ...]) -> str:
    return "+".join(stages).replace(" ", "_")


def write_golden(stages: tuple[str, ...]) -> None:
    """The update of a codec, and what it says as a tensor file."""
    data = find_codec(stages).encode(update(), METADATA, {})
    (GOLDEN / f"{name_of(stages)}.update").write_bytes(data)
    (GOLDEN / f"{name_of(stages)}.said").write_bytes(encode_tensors(find_codec(stages).decode(data, SHAPES)[0]))


@pytest.mark.parametrize("stages", PIPELINES, ids=" | ".join)
def test_bytes_of_version_1_say_what_they_said(stages: tuple[str, ...]) -> None:
    said, metadata = find_codec(stages).decode((GOLDEN / f"{name_of(stages)}.update").read_bytes(), SHAPES)
    assert metadata == METADATA
    wanted, _ = decode_tensors((GOLDEN / f"{name_of(stages)}.said").read_bytes())
    assert said.keys() == wanted.keys()
    assert all(np.array_equal(said[name].view(np.uint32), wanted[name].view(np.uint32)) for name in wanted)


@pytest.mark.parametrize("stages", [s for s in PIPELINES if not s[0].startswith(SUMS)], ids=" | ".join)
def test_an_update_is_written_as_in_version_1(stages: tuple[str, ...]) -> None:
    assert find_codec(stages).encode(update(), METADATA, {}) == (GOLDEN / f"{name_of(stages)}.update").read_bytes()


def test_tensors_beside_a_codec_are_written_and_read_as_in_version_1() -> None:
    codec, golden = find_codec(("topk 0.3 ef", "fp16", "rice")), GOLDEN / "topk_0.3_ef+fp16+rice.beside.update"
    assert with_exact(codec, SHAPES, (0, 4)).encode(update(), METADATA, {}) == golden.read_bytes()
    said, _ = codec.decode(golden.read_bytes(), SHAPES)
    assert all(np.array_equal(said[sorted(SHAPES)[place]], update()[sorted(SHAPES)[place]]) for place in (0, 4))
