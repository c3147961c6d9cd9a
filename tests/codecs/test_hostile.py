"""Bytes that no encoder wrote: each is refused by a rule with a name, or decodes to the right shapes, never more."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_runtime.codecs import BadUpdate, find_codec
from edge_runtime.errors import RemoteError
from edge_runtime.tensors import encode_tensors
from support.codecs import PIPELINES, shapes_of, tree


@pytest.mark.parametrize("stages", PIPELINES[1:], ids=" | ".join)
@given(st.data())
@settings(max_examples=60, deadline=None)
def test_bytes_that_no_encoder_wrote_are_refused_or_decoded_to_the_right_shapes(
    stages: tuple[str, ...], data: st.DataObject
) -> None:
    codec, shapes = find_codec(stages), shapes_of(tree(2))
    good = bytearray(codec.encode(tree(2), {"task": "t", "round": "1"}, {}))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(good)))
    for hostile in (bytes(good), bytes(good[:cut])):
        try:
            tensors, _ = codec.decode(hostile, shapes)
        except RemoteError:
            continue
        assert {name: tensor.shape for name, tensor in tensors.items()} == shapes


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
