"""Tensor files: laws, every rule, and the stock reader as an oracle."""

import json
import struct
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from edge_runtime import tensors as tf

DTYPES = [np.float16, np.float32, np.float64, np.int8, np.int16, np.int32, np.int64, np.uint8]
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)
TREES = st.dictionaries(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(lambda s: s != "__metadata__"),
    ARRAYS,
    max_size=5,
)
METADATA = st.dictionaries(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")))


def pack(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: object, first: object, last: object, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


@given(TREES, METADATA)
def test_decoding_gives_back_what_was_encoded(tree: dict[str, NDArray[Any]], metadata: dict[str, str]) -> None:
    tensors, read = tf.decode_tensors(tf.encode_tensors(tree, metadata))
    assert read == metadata
    assert tensors.keys() == tree.keys()
    for name, array in tree.items():
        assert tensors[name].dtype == array.dtype
        assert tensors[name].shape == array.shape
        assert tensors[name].tobytes() == array.tobytes()


@given(TREES)
def test_the_order_of_the_dictionary_does_not_change_the_bytes(tree: dict[str, NDArray[Any]]) -> None:
    backwards = dict(reversed(tree.items()))
    assert tf.encode_tensors(tree, {"b": "1", "a": "2"}) == tf.encode_tensors(backwards, {"a": "2", "b": "1"})


@given(TREES)
def test_the_stock_reader_reads_our_files(tree: dict[str, NDArray[Any]]) -> None:
    for name, array in safetensors.numpy.load(tf.encode_tensors(tree)).items():
        assert array.tobytes() == tree[name].tobytes()
        assert array.shape == tree[name].shape


@given(TREES)
def test_we_read_the_stock_writers_files(tree: dict[str, NDArray[Any]]) -> None:
    contiguous = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in tree.items()}
    tensors, _ = tf.decode_tensors(safetensors.numpy.save(contiguous))
    assert {name: array.tobytes() for name, array in tensors.items()} == {
        name: array.tobytes() for name, array in tree.items()
    }


def test_views_are_read_only_and_share_the_bytes() -> None:
    data = bytearray(tf.encode_tensors({"w": np.arange(4, dtype=np.float32)}))
    tensors, _ = tf.decode_tensors(data)
    assert np.shares_memory(tensors["w"], np.frombuffer(data, np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        tensors["w"][0] = 1


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"\0" * 7, tf.Truncated),
        (struct.pack("<Q", 9) + b"{}", tf.Truncated),
        (struct.pack("<Q", tf.MAX_HEADER_BYTES + 1), tf.HeaderTooLarge),
        (pack(b"[]"), tf.BadHeader),
        (pack(b" {}"), tf.BadHeader),
        (pack(b"{" + b'"a":' + b"[" * 100_000), tf.BadHeader),
        (pack(b'{"a":' + b"9" * 5000 + b"}"), tf.BadHeader),
        (pack(b'{"a":1,"a":2}'), tf.BadHeader),
        (pack(b'{"a":NaN}'), tf.BadHeader),
        (pack(b'{"\xff":1}'), tf.BadHeader),
        (pack({"a": 1}), tf.BadHeader),
        (pack({"a": {**entry([], 0, 4), "more": 1}}), tf.BadHeader),
        (pack({"__metadata__": {"a": 1}}), tf.BadMetadata),
        (pack({"__metadata__": []}), tf.BadMetadata),
        (pack({"a": entry([], 0, 4, "C64")}, b"0123"), tf.UnknownDtype),
        (pack({"a": entry([True], 0, 4)}, b"0123"), tf.BadShape),
        (pack({"a": entry([-1], 0, 4)}, b"0123"), tf.BadShape),
        (pack({"a": entry([1] * 9, 0, 4)}, b"0123"), tf.BadShape),
        (pack({"a": entry([0, 1 << 62, 1 << 62], 0, 0)}), tf.BadShape),
        (pack({"a": entry([1], 4, 0)}, b"0123"), tf.BadOffsets),
        (pack({"a": entry([1], 4, 8)}, b"01234567"), tf.BadOffsets),
        (pack({"a": entry([1], 0, 4)}), tf.BadOffsets),
        (pack({"a": entry([1], 0, 4)}, b"01234"), tf.BadOffsets),
        (pack({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, b"0123"), tf.BadOffsets),
        (pack({"a": entry([2], 0, 4)}, b"0123"), tf.SizeMismatch),
    ],
)
def test_every_broken_rule_has_its_error(data: bytes, rule: type[tf.TensorFileError]) -> None:
    with pytest.raises(rule) as caught:
        tf.decode_tensors(data)
    assert caught.value.rule == rule.__name__


def outcome(data: bytes) -> object:
    """What reading gives, to compare: the arrays' shapes and bytes with the metadata, or the rule that is broken."""
    try:
        tensors, metadata = tf.decode_tensors(data)
    except tf.TensorFileError as error:
        return error.rule, str(error)
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in tensors.items()}, metadata


FLOATS = st.dictionaries(
    st.text("abc", min_size=1, max_size=3), hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, min_side=0)), max_size=4
)


@given(FLOATS, METADATA)
def test_the_values_of_a_file_are_those_of_its_tensors_one_behind_the_other(
    tree: dict[str, NDArray[np.float32]], metadata: dict[str, str]
) -> None:
    shapes = {name: tree[name].shape for name in sorted(tree)}
    flat = tf.flat_values(tf.encode_tensors(tree, metadata), shapes)
    assert flat is not None
    assert flat[0].tobytes() == b"".join(tree[name].tobytes() for name in sorted(tree))
    assert flat[1] == metadata
    assert not flat[0].flags.writeable


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry([2], 0, 8)},
        {"a": entry([2], 0, 8), "b": entry([1], 8, 12), "c": entry([0], 12, 12)},
        {"a": entry([2], 0, 8), "c": entry([1], 8, 12)},
        {"a": entry([2, 1], 0, 8), "b": entry([1], 8, 12)},
        {"a": entry([2], 0, 8, "I32"), "b": entry([1], 8, 12)},
        {"b": entry([1], 0, 4), "a": entry([2], 4, 12)},
        {"a": entry([2], 4, 12), "b": entry([1], 12, 16)},
        {"a": entry([2], 0, 8), "b": entry([1], 4, 8)},
    ],
)
def test_a_file_of_other_tensors_or_with_others_between_has_no_values_of_these(header: dict[str, object]) -> None:
    assert tf.flat_values(pack(header, bytes(12)), {"a": (2,), "b": (1,)}) is None


TRICKY = ['},"', '"},"b":{"', "}", '\\"},"', "\ud7ff", "{", ""]


@given(
    st.dictionaries(st.sampled_from(TRICKY), st.sampled_from(TRICKY)),
    st.lists(st.tuples(st.integers(0, 400), st.sampled_from(b'{}[]",:\\\x00 19a')), max_size=2),
)
def test_a_header_whose_tensors_were_seen_before_is_read_as_any_other(
    metadata: dict[str, str], flips: list[tuple[int, int]]
) -> None:
    tree = {"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.int8)}
    tf.decode_tensors(tf.encode_tensors(tree, {"task": "another"}))
    data = bytearray(tf.encode_tensors(tree, metadata))
    for at, byte in flips:
        data[8 + at % (len(data) - 8)] = byte
    remembered = outcome(bytes(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf, "_MAX_REMEMBERED_BYTES", -1)
        assert remembered == outcome(bytes(data))


@pytest.mark.parametrize(
    "header",
    [
        b'{"__metadata__":{},"__metadata__":{}}',
        b'{"__metadata__":{"a":"1"},"a":{"dtype":"I8","shape":[0],"data_offsets":[0,0]},"__metadata__":{}}',
    ],
)
def test_metadata_that_stand_twice_are_refused(header: bytes) -> None:
    with pytest.raises(tf.BadHeader, match="twice"):
        tf.decode_tensors(pack(header))


def test_the_caps_hold_at_the_cap_and_one_above() -> None:
    data = tf.encode_tensors({str(i): np.zeros((), np.uint8) for i in range(5)})
    assert len(tf.decode_tensors(data, max_tensors=5)[0]) == 5
    with pytest.raises(tf.TooManyTensors):
        tf.decode_tensors(data, max_tensors=4)
    header_bytes = int.from_bytes(data[:8], "little")
    tf.decode_tensors(data, max_header_bytes=header_bytes)
    with pytest.raises(tf.HeaderTooLarge):
        tf.decode_tensors(data, max_header_bytes=header_bytes - 1)


def test_the_writer_refuses_what_the_reader_would_refuse() -> None:
    with pytest.raises(tf.UnknownDtype, match="complex"):
        tf.encode_tensors({"a": np.zeros(1, np.complex64)})
    with pytest.raises(tf.BadShape):
        tf.encode_tensors({"a": np.zeros((1,) * 9, np.float32)})
    with pytest.raises(tf.HeaderTooLarge):
        tf.encode_tensors({"a" * (1 << 20): np.zeros(1, np.float32)})


VALID = tf.encode_tensors(
    {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(2, np.float64)}, {"task": "t"}
)


@settings(max_examples=2000)
@given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes_give_arrays_or_a_tensor_file_error(flips: list[tuple[int, int]]) -> None:
    data = bytearray(VALID)
    for at, value in flips:
        data[at] = value
    try:
        tensors, _ = tf.decode_tensors(bytes(data))
    except tf.TensorFileError:
        return
    assert sum(array.nbytes for array in tensors.values()) <= len(VALID)


@given(data=st.binary(max_size=200), framed=st.booleans())
def test_garbage_gives_a_tensor_file_error(*, data: bytes, framed: bool) -> None:
    try:
        tf.decode_tensors(pack(data) if framed else data)
    except tf.TensorFileError:
        return
    assert data.strip(b" \t\r\n") == b"{}"
