"""What a fold takes of an update is what decoding it gives, for every codec, bit for bit; and as strict."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.updates import read_update
from edge_runtime.codecs import State, find_codec
from edge_runtime.errors import RemoteError
from edge_runtime.kernels import Accumulator, CodedUpdate, Layout
from support.codecs import PIPELINES, SHAPES, tree

METADATA = {"task": "t", "round": "3"}


def encoded(stages: tuple[str, ...], state: State | None = None) -> bytes:
    tensors = tree(5)
    tensors["fc.w"][1:3] = 0
    return find_codec(stages).encode(tensors, METADATA, {} if state is None else state)


def folded(update: CodedUpdate) -> dict[str, bytes]:
    sums = Accumulator(update.layout)
    sums.add(update, np.full(len(update.layout.shapes), 3.0))
    return {name: sums.sum(name).tobytes() for name in update.layout.shapes}


@pytest.mark.parametrize("stages", PIPELINES, ids=" ".join)
def test_pieces_say_what_decoding_says(stages: tuple[str, ...]) -> None:
    data, layout, codec = encoded(stages), Layout(SHAPES), find_codec(stages)
    update, metadata = read_update(data, codec, layout)
    tensors, decoded_metadata = codec.decode(data, SHAPES)
    assert metadata == decoded_metadata
    assert folded(update) == folded(CodedUpdate(layout.pieces(tensors), layout))
    assert update.peak == max(float(np.abs(tensor).max(initial=0)) for tensor in tensors.values())


@pytest.mark.parametrize("stages", PIPELINES, ids=" ".join)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_pieces_and_decoding_refuse_the_same_bytes(stages: tuple[str, ...], data: st.DataObject) -> None:
    bad = bytearray(encoded(stages))
    for _ in range(data.draw(st.integers(1, 3))):
        bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    layout, codec = Layout(SHAPES), find_codec(stages)
    with np.errstate(all="ignore"):
        try:
            tensors, _ = codec.decode(bytes(bad), SHAPES)
        except RemoteError:
            tensors = {}
        try:
            update, _ = read_update(bytes(bad), codec, layout)
        except RemoteError:
            assert stages == ("dense",) or not tensors
            return
    assert tensors.keys() == SHAPES.keys()
    if update.first_bad is None and update.peak < 1e20:
        assert folded(update) == folded(CodedUpdate(layout.pieces(tensors), layout))
    else:
        assert update.first_bad is None or not np.isfinite(tensors[update.first_bad]).all()


@pytest.mark.parametrize(("stages", "most"), [(("topk 0.1", "fp16"), 0.5), (("int8",), 0.1), (("rows",), 13.0)])
def test_what_a_fold_takes_is_not_much_larger_than_it_came(stages: tuple[str, ...], most: float) -> None:
    """In bytes for every value of the model, beside the update: at most its places, while they are joined."""
    codec, layout = find_codec(stages), Layout({"w": (1000, 500)})
    given_ = {"w": np.random.default_rng(1).standard_normal((1000, 500)).astype(np.float32)}
    data = codec.encode(given_, METADATA, {})
    tracemalloc.start()
    try:
        read_update(data, codec, layout)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= most * 500_000 + 65_536
