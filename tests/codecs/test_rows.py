"""Rows that changed: all of them, to the bit, nothing else, in a number of bytes that can be told before."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.codecs import BadUpdate, find_codec
from edge_runtime.kernels import encode_indices
from edge_runtime.tensors import encode_tensors
from support.codecs import copied, payload_bytes

SHAPES = {"a.emb": (50, 3, 2), "b": (4,), "c.head": (20, 5), "d": (), "e.frozen": (1, 9)}


@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_rows_of_which_a_bit_is_set_are_sent_and_no_others(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    tensors = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    keys, values, begin = [], 0, 0
    for tensor in tensors.values():
        count, width = (len(tensor), tensor[0].size) if tensor.ndim > 1 else (1, tensor.size)
        for row in data.draw(st.sets(st.integers(0, count - 1), max_size=6)):
            tensor.reshape(count, width)[row] = rng.standard_normal(width)
            keys.append(begin + row)
            values += width
        begin += count
    update = find_codec(("rows",)).encode(copied(tensors), {}, {})
    assert payload_bytes(update) == 4 * values + len(encode_indices(np.array(sorted(keys), np.int32), begin))
    sent, _ = find_codec(("rows",)).decode(update, SHAPES)
    assert all(np.array_equal(sent[name], tensors[name]) for name in SHAPES)


def test_a_negative_zero_is_a_bit_that_is_kept() -> None:
    given_ = {"w": np.array([[0.0, -0.0], [0.0, 0.0]], np.float32)}
    sent, _ = find_codec(("rows",)).decode(find_codec(("rows",)).encode(copied(given_), {}, {}), {"w": (2, 2)})
    assert np.array_equal(np.signbit(sent["w"]), np.signbit(given_["w"]))


def test_rows_go_through_value_formats() -> None:
    given_ = {"w": np.zeros((100, 64), np.float32)}
    given_["w"][[3, 70]] = np.linspace(-1, 1, 64, dtype=np.float32)
    codec = find_codec(("rows", "int8 64"))
    data = codec.encode(copied(given_), {}, {})
    assert payload_bytes(data) == 2 * (64 + 4) + len(encode_indices(np.array([3, 70], np.int32), 100))
    assert np.abs(codec.decode(data, {"w": (100, 64)})[0]["w"] - given_["w"]).max() <= 0.5 / 127 + 1e-6


@pytest.mark.parametrize("keys", [b"", b"\xff", encode_indices(np.array([3], np.int32), 9)])
def test_rows_that_are_no_stream_or_not_there_are_refused(keys: bytes) -> None:
    data = encode_tensors({"value": np.ones(2, np.float32), "row": np.frombuffer(keys, np.uint8)})
    with pytest.raises(BadUpdate, match="'row' is no stream of coded gaps"):
        find_codec(("rows",)).decode(data, {"w": (2, 2)})
