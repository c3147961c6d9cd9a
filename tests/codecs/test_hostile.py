"""Bytes that no encoder wrote: each is refused by a rule with a name, or decodes to the right shapes, never more."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_runtime.codecs import BadUpdate, find_codec
from edge_runtime.codecs.values import entry
from edge_runtime.errors import RemoteError
from edge_runtime.kernels import encode_indices
from edge_runtime.tensors import decode_tensors, encode_tensors
from support.codecs import PIPELINES, SHAPES, shapes_of, tree
from support.mutate import mutated


@pytest.mark.parametrize("stages", PIPELINES[1:], ids=" | ".join)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_bytes_that_no_encoder_wrote_are_refused_or_decoded_to_the_right_shapes(
    stages: tuple[str, ...], seed: int
) -> None:
    codec = find_codec(stages)
    hostile = mutated(codec.encode(tree(2), {"task": "t", "round": "1"}, {}), random.Random(seed))  # noqa: S311 nothing secret
    try:
        tensors, _ = codec.decode(hostile, SHAPES)
    except RemoteError:
        return
    assert {name: tensor.shape for name, tensor in tensors.items()} == SHAPES


@pytest.mark.parametrize("stages", PIPELINES[1:], ids=" | ".join)
def test_arrays_at_odd_addresses_decode_to_the_same_bits(stages: tuple[str, ...]) -> None:
    codec = find_codec(stages)
    data = codec.encode(tree(2), {"task": "t", "round": "1"}, {})
    expected, _ = codec.decode(data, SHAPES)
    size = int.from_bytes(data[:8], "little")
    odd = (size + 1).to_bytes(8, "little") + data[8 : 8 + size] + b" " + data[8 + size :]
    found, _ = codec.decode(odd, SHAPES)
    assert all(found[name].tobytes() == expected[name].tobytes() for name in SHAPES)


def test_an_entry_is_where_its_type_can_be_loaded_from() -> None:
    data = encode_tensors({"a": np.zeros(3, np.uint8), "b": np.arange(4, dtype=np.float32)})
    entries, _ = decode_tensors(data)
    assert not entries["b"].flags.aligned
    found = entry(entries, "b", "<f4", 4)
    assert found.flags.aligned
    assert found.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("stages", PIPELINES[1:], ids=" | ".join)
def test_entries_without_meaning_are_refused(stages: tuple[str, ...]) -> None:
    codec = find_codec(stages)
    entries, metadata = decode_tensors(codec.encode(tree(2), {"round": "1"}, {}))
    with pytest.raises(BadUpdate, match=r"entries .'surplus'. have no meaning"):
        codec.decode(encode_tensors({**entries, "surplus": np.zeros(1, np.float32)}, metadata), SHAPES)


@pytest.mark.parametrize("stages", [("topk 0.1",), ("topk 0.1", "rice"), ("dgc 0.1 0.9", "rice")], ids=" | ".join)
def test_more_places_than_the_share_are_refused_before_they_are_read(stages: tuple[str, ...]) -> None:
    count = 11  # of 95 values a tenth is 10
    places = np.arange(count, dtype=np.int32)
    side = np.frombuffer(encode_indices(places, 95), np.uint8) if "rice" in stages else places
    data = encode_tensors({"value": np.ones(count, np.float32), "place": side})
    with pytest.raises(BadUpdate, match="at most 10"):
        find_codec(stages).decode(data, SHAPES)


@pytest.mark.parametrize(
    "places",
    [np.array([3, 3], np.int32), np.array([4, 1], np.int32), np.array([-1, 2], np.int32), np.array([0, 95], np.int32)],
)
def test_places_out_of_order_or_range_are_refused(places: NDArray[np.int32]) -> None:
    data = encode_tensors({"value": np.ones(2, np.float32), "place": places}, {})
    with pytest.raises(BadUpdate, match=r"ascend within 0 \.\. 94"):
        find_codec(("topk 0.1",)).decode(data, shapes_of(tree(2)))


def test_an_update_of_other_tensors_is_refused() -> None:
    codec = find_codec(("fp16",))
    data = codec.encode(tree(2), {}, {})
    with pytest.raises(BadUpdate, match="'value' is float16"):
        codec.decode(data, {"w": (7,)})
