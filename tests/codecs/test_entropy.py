"""The entropy stage: what it costs against the entropy, when it is left out, and streams that nobody wrote."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_runtime.codecs import BadUpdate, find_codec
from edge_runtime.kernels import RansTables, quantize_qsgd, rans_encode
from edge_runtime.rng import derive_seed
from edge_runtime.tensors import decode_tensors, encode_tensors
from support.codecs import payload_bytes

STAGES = ("qsgd 5", "rans")


def normal(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


def coded(values: NDArray[np.float32], *stages: str) -> bytes:
    return find_codec(stages).encode({"w": values.copy()}, {}, {})


@pytest.mark.parametrize(("count", "state_bytes"), [(4095, 4), (4096, 32), (100_000, 32)])
def test_bytes_are_a_table_the_states_and_the_entropy(count: int, state_bytes: int) -> None:
    values = normal(count)
    symbols, scales = quantize_qsgd(values, 5, derive_seed(derive_seed("values", ""), 0), 256, norm="max")
    found = np.bincount(symbols.view(np.uint8), minlength=256)
    found = found[found > 0]
    entropy = float(-(found * np.log2(found / count)).sum()) / 8
    taken = payload_bytes(coded(values, *STAGES)) - scales.nbytes - 32 - 2 * found.size - state_bytes
    # The states at the end hold up to their own size of the message; counts are rounded to 65536 in all.
    assert -state_bytes <= taken - entropy <= 8 + 0.002 * entropy


@given(count=st.integers(0, 6000), seed=st.integers(0, 99), stage=st.sampled_from(["int8", "fp16", "bf16", "fp32"]))
@settings(max_examples=60, deadline=None)
def test_coded_and_plain_say_the_same_and_coded_is_never_larger(count: int, seed: int, stage: str) -> None:
    values = normal(count, seed)
    plain, small = coded(values, stage), coded(values, stage, "rans")
    assert payload_bytes(small) <= payload_bytes(plain)
    said, wanted = (
        find_codec(stages).decode(data, {"w": (count,)})[0]["w"]
        for stages, data in (((stage, "rans"), small), ((stage,), plain))
    )
    assert np.array_equal(said, wanted)


def test_the_stream_says_whether_it_is_coded() -> None:
    assert decode_tensors(coded(normal(10_000), *STAGES))[0].keys() == {"coded", "scale"}
    assert decode_tensors(coded(normal(20), *STAGES))[0].keys() == {"value", "scale"}  # a table takes 32 bytes alone


def refused(packed: NDArray[np.uint8], says: str, **more: NDArray[np.int8]) -> None:
    scale = np.ones(4, np.float32)
    data = encode_tensors({"coded": packed, "scale": scale, **more})
    with pytest.raises(BadUpdate, match=says):
        find_codec(STAGES).decode(data, {"w": (1000,)})


def test_streams_that_nobody_wrote_are_refused() -> None:
    entries, _ = decode_tensors(coded(normal(1000), *STAGES))
    good = entries["coded"]
    m = int(np.unpackbits(good[:32]).sum())
    changed = good.copy()
    changed[32:34] = 0
    refused(changed, "counts that are not 1")
    changed[32 : 32 + 2 * m] = 255
    refused(changed, "counts that are not 1")
    refused(good[:-1], "no rANS stream of 1000 values")
    refused(np.append(good, np.uint8(0)), "no rANS stream of 1000 values")
    refused(good[:40], "1000 values with 11 symbols take more")
    refused(np.zeros(64, np.uint8), "1000 values with 0 symbols take more")
    refused(np.zeros(0, np.uint8), "1000 values with 0 symbols take more")
    refused(good, "exclude one another", value=np.zeros(1000, np.int8))


@pytest.mark.parametrize("escaped", [2, 7, -1])
def test_a_symbol_that_is_escaped_is_refused(escaped: int) -> None:
    cdf = np.array([[0, 30_000, 65_000, 65_536]], np.int32)
    tables = RansTables(cdf, np.array([4], np.int32), np.zeros(1, np.int32))
    symbols = np.array([0, 1, escaped, 1], np.int32)  # the third is none of the two that are present
    stream = rans_encode(symbols, tables, np.zeros(4, np.int32), state_bits=32, ways=1)
    present = np.packbits(np.arange(256) < 2, bitorder="little")
    counts = np.array([30_000, 35_000], "<u2").view(np.uint8)
    packed = np.concatenate([present, counts, np.frombuffer(stream, np.uint8)])
    data = encode_tensors({"coded": packed, "scale": np.ones(1, np.float32)})
    with pytest.raises(BadUpdate, match="escaped symbols"):
        find_codec(STAGES).decode(data, {"w": (4,)})
