"""Tensors beside a codec, as they are: running statistics."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.updates import read_update
from edge_runtime.codecs import RESIDUAL, BadUpdate, Codec, State, find_codec, with_exact
from edge_runtime.codecs.exact import BadExact
from edge_runtime.errors import RemoteError
from edge_runtime.kernels import CodedUpdate, Layout
from edge_runtime.tensors import decode_tensors, encode_tensors
from support.codecs import PIPELINES, SHAPES, copied, shapes_of, tree
from support.mutate import mutated

if TYPE_CHECKING:
    from numpy.typing import NDArray

CODED = PIPELINES[1:]
NAMES = sorted(SHAPES)
PLACES = (1, 4)
BESIDE = [NAMES[place] for place in PLACES]
METADATA = {"task": "t", "round": "1"}


def codec_of(stages: tuple[str, ...]) -> Codec:
    return with_exact(find_codec(stages), SHAPES, PLACES)


@pytest.mark.parametrize("stages", CODED, ids=" | ".join)
def test_they_come_to_the_bit_and_the_others_as_if_they_were_alone(stages: tuple[str, ...]) -> None:
    given_, state, alone_state = tree(3), State(), State()
    data = codec_of(stages).encode(copied(given_), METADATA, state)
    said, metadata = find_codec(stages).decode(data, SHAPES)
    others = {name: tensor for name, tensor in copied(given_).items() if name not in BESIDE}
    alone = find_codec(stages).decode(find_codec(stages).encode(others, METADATA, alone_state), shapes_of(others))[0]
    assert metadata == METADATA
    assert said.keys() == SHAPES.keys()
    for name, tensor in said.items():
        assert tensor.tobytes() == (given_[name] if name in BESIDE else alone[name]).tobytes()
    assert {slot: set(arrays) for slot, arrays in state.items()} == {
        slot: set(arrays) for slot, arrays in alone_state.items()
    }
    assert not set(BESIDE) & state.get(RESIDUAL, {}).keys()


@pytest.mark.parametrize("stages", CODED, ids=" | ".join)
def test_a_fold_takes_what_decoding_says(stages: tuple[str, ...]) -> None:
    data, layout = codec_of(stages).encode(tree(3), METADATA, {}), Layout(SHAPES)
    update, _ = read_update(data, find_codec(stages), layout)
    said = find_codec(stages).decode(data, SHAPES)[0]
    assert update.peak == CodedUpdate(layout.pieces(said), layout).peak == max(np.abs(t).max() for t in said.values())


def test_an_update_of_nothing_else_has_no_coded_part() -> None:
    codec, shapes = find_codec(("topk 0.1 ef", "rice")), {"mean": (3,), "var": (3,)}
    given_ = {name: np.arange(3, dtype=np.float32) for name in shapes}
    data = with_exact(codec, shapes, (0, 1)).encode(copied(given_), METADATA, {})
    assert codec.decode(data, shapes)[0].keys() == shapes.keys()
    assert read_update(data, codec, Layout(shapes))[0].peak == 2.0


def test_dense_updates_are_written_as_ever() -> None:
    assert codec_of(("dense",)) is find_codec(("dense",))


def test_places_beyond_the_update_are_refused() -> None:
    with pytest.raises(BadExact, match=r"\[9\] as they are; its update has 6"):
        with_exact(find_codec(("int8",)), SHAPES, (9,))


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("other", np.zeros(1, np.float32)),
        ("fc.b", np.zeros(3, np.float32)),
        ("fc.b", np.zeros(11, np.float64)),
        ("fc.b", np.zeros((11, 1), np.float32)),
    ],
)
def test_what_is_not_of_the_update_is_refused(name: str, array: NDArray[np.float32]) -> None:
    entries, metadata = decode_tensors(find_codec(("int8",)).encode(tree(2), METADATA, {}))
    data = encode_tensors({**entries, f"exact/{name}": array}, metadata)
    with pytest.raises(BadUpdate, match="no such tensor"):
        find_codec(("int8",)).decode(data, SHAPES)


@pytest.mark.parametrize("stages", CODED, ids=" | ".join)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_bytes_that_no_encoder_wrote_are_refused_or_of_the_right_shapes(stages: tuple[str, ...], seed: int) -> None:
    hostile = mutated(codec_of(stages).encode(tree(2), METADATA, {}), random.Random(seed))  # noqa: S311 nothing secret
    try:
        tensors, _ = find_codec(stages).decode(hostile, SHAPES)
    except RemoteError:
        return
    assert {name: tensor.shape for name, tensor in tensors.items()} == SHAPES
