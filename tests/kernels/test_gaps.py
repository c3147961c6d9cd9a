"""Index streams: their twin, their length against the entropy, and what happens to broken ones."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_runtime.kernels import StreamError, decode_indices, encode_indices, reference_coders

MOST = 2**31 - 1
Indices = NDArray[np.int32]


def drawn(n: int, density: float, seed: int = 1) -> Indices:
    return np.flatnonzero(np.random.default_rng(seed).random(n) < density).astype(np.int32)


def clustered(n: int, density: float) -> Indices:
    """Rows of 512 places, a tenth of which hold all the indices."""
    rng = np.random.default_rng(2)
    rows = rng.random(n // 512) < 0.1
    return np.flatnonzero((rng.random((n // 512, 512)) < 10 * density) & rows[:, None]).astype(np.int32)


def entropy_bits(density: float) -> float:
    """Of one gap of the geometric distribution."""
    return -(density * math.log2(density) + (1 - density) * math.log2(1 - density)) / density


CASES = {
    "none": (np.array([], np.int32), 10),
    "none of none": (np.array([], np.int32), 0),
    "one": (np.array([0], np.int32), 1),
    "the last": (np.array([MOST - 1], np.int32), MOST),
    "first and last": (np.array([0, MOST - 1], np.int32), MOST),
    "all": (np.arange(1000, dtype=np.int32), 1000),
    "every other": (np.arange(0, 1000, 2, dtype=np.int32), 1000),
    "a block less one": (drawn(2550, 0.1)[:255], 2550),
    "a block": (drawn(5000, 0.1)[:256], 5000),
    "a block and one": (drawn(5000, 0.1)[:257], 5000),
    "a run and one far away": (np.append(np.arange(300), 10**9).astype(np.int32), MOST),
    "long quotients": (np.append(np.arange(0, 254 * 3, 3), [4000, 60_000]).astype(np.int32), MOST),
    "wide gaps": (np.cumsum(np.full(400, 5_000_011)).astype(np.int32), MOST),
    "sparse": (drawn(200_000, 0.001), 200_000),
    "dense": (drawn(3000, 0.7), 3000),
    "in clusters": (clustered(512 * 64, 0.02), 512 * 64),
}


@pytest.mark.parametrize("name", CASES)
def test_streams_are_those_of_the_slow_twin(name: str) -> None:
    indices, n = CASES[name]
    stream = encode_indices(indices, n)
    assert stream == reference_coders.encode_indices(indices, n)
    np.testing.assert_array_equal(decode_indices(stream, n, len(indices)), indices)
    np.testing.assert_array_equal(reference_coders.decode_indices(stream, n), indices)


def test_streams_worked_out_by_hand() -> None:
    # Gaps 3, 0, 4: ten bits at b = 0, nine at b = 1, as raw. At b = 1: form 100000, gaps 01 1, 1 0 and 001 0, all of
    # them with the lowest bit first, and a zero up to two bytes.
    assert encode_indices(np.array([3, 4, 9], np.int32), 10) == bytes([3, 0b1_0_000001, 0b0_0_100_0_1_1])
    # Gaps 0, 0, 0, 20: b = 0 to 3 cost 29, 18, 17 and 18 bits. Form 010000, gaps 1 00 three times and 000001 00.
    assert encode_indices(np.array([0, 1, 2, 23], np.int32), 24) == bytes([4, 0b01_000010, 0b00_01_00_10, 0b0001_0000])


@given(st.sets(st.integers(0, 3000), max_size=900), st.sampled_from([1, 7, 700_001]))
def test_any_set_of_indices_comes_back(places: set[int], stretch: int) -> None:
    indices = np.array(sorted(places), np.int32) * np.int32(stretch)
    stream = encode_indices(indices, MOST)
    assert stream == reference_coders.encode_indices(indices, MOST)
    assert len(stream) <= 5 + 4 * len(indices)
    np.testing.assert_array_equal(decode_indices(memoryview(stream), MOST, len(indices)), indices)


@pytest.mark.parametrize("density", [0.1, 0.085, 0.07, 0.055, 0.04, 0.03, 0.02, 0.01, 0.003, 0.001, 3e-4, 1e-4])
def test_drawn_indices_cost_less_than_3_percent_above_their_entropy(density: float) -> None:
    n = 10**7
    indices = drawn(n, density)
    ideal = len(indices) * entropy_bits(density)
    assert 8 * len(encode_indices(indices, n)) <= 1.03 * ideal + 16


@pytest.mark.parametrize("density", [0.05, 0.01])
def test_indices_in_clusters_cost_at_most_a_sixth_above_the_entropy_of_rows_and_places(density: float) -> None:
    indices = clustered(10**7, density)
    rows, inside = 10**7 // 512, 10 * density
    ideal = rows * 0.1 * entropy_bits(0.1) + len(indices) * entropy_bits(inside)
    assert ideal < 8 * len(encode_indices(indices, 10**7)) < 7 / 6 * ideal


def test_ten_million_places_come_back() -> None:
    for indices in (drawn(10**7, 0.01), np.arange(10**7, dtype=np.int32)):
        np.testing.assert_array_equal(decode_indices(encode_indices(indices, 10**7), 10**7, 10**7), indices)


def test_writing_takes_the_stream_and_a_byte_for_256_indices() -> None:
    indices = drawn(10**7, 0.1)
    tracemalloc.start()
    stream = encode_indices(indices, 10**7)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes <= len(stream) + 4096  # the forms of blocks are not Python's, and 3.9 KB


BROKEN = {
    "Truncated": [b"", b"\x80", b"\x01", b"\x03", b"\x03\x00", b"\x01\x28", b"\x01\x1e\x00", bytes([1, 63, 0])],
    "BadCount": [b"\x80\x80\x80\x80\x80\x01", b"\x80\x80\x80\x80\x80", b"\x81\x00", b"\xff\xff\xff\xff\xff\xff"],
    "TooManyIndices": [b"\x15" + bytes(99), b"\xff\xff\xff\xff\x0f", b"\xff\xff\xff\xff\x7f"],
    "BadForm": [bytes([1, 31, 0])],
    "IndexOutOfRange": [
        bytes([1, 0b00_100101, 0b101]),
        bytes([1, 0, 0, 0b01_000000, 0b10100_001]),
        bytes([2, 63, *[255] * 8]),
    ],
    "TrailingBytes": [b"\x00\x00", encode_indices(np.array([7], np.int32), 20) + b"\x00"],
    "BadPadding": [bytes([1, 0b11_100000]), bytes([2, 0b11_100000])],
}


@pytest.mark.parametrize(("rule", "stream"), [(rule, stream) for rule in BROKEN for stream in BROKEN[rule]])
def test_a_broken_stream_is_refused_by_its_rule(rule: str, stream: bytes) -> None:
    with pytest.raises(StreamError) as refused:
        decode_indices(stream, 20, 20)
    assert refused.value.args[0] == rule
    assert len(refused.value.args[1]) > 20


def test_a_small_stream_cannot_ask_for_much_memory() -> None:
    tracemalloc.start()
    for claimed in (b"\xff\xff\xff\xff\x07", b"\xff\xff\xff\x7f"):
        with pytest.raises(StreamError, match="at most 1000 are expected"):
            decode_indices(claimed + bytes(1000), MOST, 1000)
        with pytest.raises(StreamError, match="too short for"):
            decode_indices(claimed + bytes(1000), MOST, MOST)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 10_000


@given(st.binary(max_size=200), st.sampled_from([0, 1, 300, MOST]))
def test_bytes_from_anywhere_are_indices_or_an_error(data: bytes, n: int) -> None:
    try:
        indices = decode_indices(data, n, 2000).astype(np.int64)
    except StreamError:
        return
    assert (np.diff(indices, prepend=-1) > 0).all()
    assert len(indices) == 0 or indices[-1] < n


@pytest.mark.parametrize(
    ("indices", "n", "message"),
    [
        ([3, 3], 10, r"indices\[1\] is 3 after 3"),
        ([3, 2], 10, r"indices\[1\] is 2 after 3"),
        ([-1], 10, r"indices\[0\] is -1"),
        ([3, 10], 10, r"within 0..9, but indices\[1\] is 10 after 3"),
        ([0], 0, r"indices\[0\] is 0"),
        ([], -1, "n must be in 0..2147483647 and max_count not negative, got -1"),
        ([], 2**31, "n must be in 0..2147483647 and max_count not negative, got 2147483648"),
    ],
)
def test_indices_that_cannot_be_are_refused(indices: list[int], n: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_indices(np.array(indices, np.int32), n)


def test_arrays_are_not_converted() -> None:
    with pytest.raises(TypeError, match="indices must be a C-contiguous int32 array of 1 dimension"):
        encode_indices(np.array([1, 2]), 10)  # type: ignore[arg-type]  # what is tested
