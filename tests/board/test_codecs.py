"""Codecs: what they send and what they leave, their bytes to the byte, and hostile bytes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_runtime.codecs import RESIDUAL, BadCodec, BadUpdate, State, find_codec
from edge_runtime.errors import RemoteError
from edge_runtime.kernels import encode_indices
from edge_runtime.tensors import decode_tensors, encode_tensors

PIPELINES = [
    ("dense",),
    ("fp32",),
    ("fp16",),
    ("bf16",),
    ("int8",),
    ("int8 7",),
    ("topk 0.3",),
    ("topk 0.3", "rice"),
    ("topk 0.3 ef", "rice"),
    ("topk 0.3 ef", "fp16"),
    ("topk 0.3 ef", "fp16", "rice"),
    ("topk 0.3 ef", "bf16", "rice"),
    ("topk 0.3 ef", "int8 5", "rice"),
    ("topk 1", "fp16", "rice"),
    ("topk 0.3 ef", "qsgd 4 16"),
    ("topk 0.3 ef", "sign 8", "rice"),
    ("dgc 0.3 0", "fp16", "rice"),
    ("qsgd 7",),
    ("sign 16",),
]
# Relative to the largest value of a block, or to the value itself: half a step of each format.
ROUNDING = {"fp16": 2.0**-11, "bf16": 2.0**-8, "int8": 0.5 / 127 + 1e-6, "qsgd": 1 / 7 + 1e-6, "sign": 1.0}

Tree = dict[str, NDArray[np.float32]]


def tree(seed: int, scale: float = 1.0) -> Tree:
    rng = np.random.default_rng(seed)
    shapes = {"conv.w": (4, 3, 2), "a": (1,), "fc.w": (5, 11), "fc.b": (11,)}
    return {name: (scale * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}


def shapes_of(tensors: Tree) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def copied(tensors: Tree) -> Tree:
    return {name: tensor.copy() for name, tensor in tensors.items()}


def rounding(stages: tuple[str, ...]) -> float:
    names = [stage.split()[0] for stage in stages]
    return next((ROUNDING[name] for name in names if name in ROUNDING), 0.0)


@pytest.mark.parametrize("stages", PIPELINES, ids=" | ".join)
@given(seed=st.integers(0, 2**32), scale=st.sampled_from([1e-6, 1.0, 1e3]))
@settings(max_examples=25, deadline=None)
def test_what_is_sent_and_what_is_carried_add_up_to_what_was_given(
    stages: tuple[str, ...], seed: int, scale: float
) -> None:
    codec, state = find_codec(stages), State()
    for round_number in range(3):
        given_ = tree(seed + round_number, scale)
        before = copied(state.get(RESIDUAL, {})) or {name: np.zeros_like(t) for name, t in given_.items()}
        data = codec.encode(copied(given_), {"task": "t"}, state)
        sent, metadata = codec.decode(data, shapes_of(given_))
        assert metadata == {"task": "t"}
        assert sent.keys() == given_.keys()
        if codec.carries:
            for name, tensor in given_.items():
                wanted = tensor.astype(np.float64) + before[name]
                # One rounding of float32 for the sum, one for what the value format leaves.
                bound = 2.0**-23 * np.abs(wanted).max()
                assert np.abs(sent[name].astype(np.float64) + state[RESIDUAL][name] - wanted).max() <= bound
        else:
            assert not state


@pytest.mark.parametrize("stages", [s for s in PIPELINES if not s[0].startswith(("topk", "dgc"))], ids=" | ".join)
def test_a_dense_codec_stays_within_half_a_step(stages: tuple[str, ...]) -> None:
    given_ = tree(5)
    codec = find_codec(stages)
    sent, _ = codec.decode(codec.encode(copied(given_), {}, {}), shapes_of(given_))
    for name, tensor in given_.items():
        assert np.abs(sent[name] - tensor).max() <= rounding(stages) * np.abs(tensor).max()


@pytest.mark.parametrize("stages", [("topk 0.1",), ("topk 0.1", "rice"), ("topk 0.1 ef", "rice")], ids=" | ".join)
def test_topk_sends_the_largest_of_all_tensors_together(stages: tuple[str, ...]) -> None:
    given_ = tree(9)
    codec = find_codec(stages)
    sent, _ = codec.decode(codec.encode(copied(given_), {}, {}), shapes_of(given_))
    flat = np.concatenate([given_[name].reshape(-1) for name in sorted(given_)])
    largest = np.sort(np.argsort(-np.abs(flat), kind="stable")[: round(0.1 * flat.size)])
    wanted = np.zeros_like(flat)
    wanted[largest] = flat[largest]
    assert np.array_equal(np.concatenate([sent[name].reshape(-1) for name in sorted(sent)]), wanted)


def test_the_bytes_of_an_update_are_those_of_its_values_places_and_header() -> None:
    given_ = tree(3)
    metadata = {"task": "digits.1.dev-1"}
    flat = np.concatenate([given_[name].reshape(-1) for name in sorted(given_)])
    count = round(0.2 * flat.size)
    places = np.sort(np.argsort(-np.abs(flat), kind="stable")[:count]).astype(np.int32)
    data = find_codec(("topk 0.2", "fp16", "rice")).encode(given_, metadata, {})
    header = 8 + int.from_bytes(data[:8], "little")
    assert len(data) == header + 2 * count + len(encode_indices(places, flat.size))


def test_int8_takes_a_byte_a_value_and_four_a_block_of_each_tensor() -> None:
    given_ = tree(3)
    data = find_codec(("int8 16",)).encode(given_, {}, {})
    entries, _ = decode_tensors(data)
    assert entries["value"].nbytes == sum(t.size for t in given_.values())
    assert entries["scale"].nbytes == 4 * sum(-(-t.size // 16) for t in given_.values())


@pytest.mark.parametrize("stages", PIPELINES, ids=" | ".join)
def test_equal_tensors_give_equal_bytes(stages: tuple[str, ...]) -> None:
    codec = find_codec(stages)
    assert codec.encode(tree(1), {"b": "1", "a": "2"}, {}) == codec.encode(tree(1), {"a": "2", "b": "1"}, {})


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ((), "no stage"),
        (("topk",), "'topk' takes the share"),
        (("topk 0",), "'topk 0' takes the share"),
        (("topk 1.5",), "takes the share"),
        (("topk nan",), "takes the share"),
        (("topk 0.1 fe",), "takes the share"),
        (("fp16 3",), "'fp16 3' takes no argument"),
        (("int8 0",), "1 .. 65536"),
        (("int8 99999999999999",), "1 .. 65536"),
        (("rice",), "'rice' is unknown or out of place"),
        (("fp16", "topk 0.1"), "'topk 0.1' is unknown or out of place"),
        (("topk 0.1", "topk 0.1"), "out of place"),
        (("dgc 0.1",), "'dgc 0.1' takes the share"),
        (("dgc 0.1 1.0",), "takes the share"),
        (("dgc 0.1 0.9 ef",), "takes the share"),
        (("qsgd",), "takes a whole number in 1 .. 127"),
        (("qsgd 4 8 2",), "takes at most 2"),
        (("sign 12",), "multiple of 8"),
        (("gzip",), "'gzip' is unknown or out of place"),
        (("dense", "fp16"), "'dense' is unknown or out of place"),
        (("",), "'' is unknown or out of place"),
    ],
)
def test_a_codec_that_cannot_be_built_names_the_stage(stages: tuple[str, ...], says: str) -> None:
    with pytest.raises(BadCodec, match=says):
        find_codec(stages)


@pytest.mark.parametrize("stages", PIPELINES[1:], ids=" | ".join)
@given(st.data())
@settings(max_examples=60, deadline=None)
def test_bytes_that_no_encoder_wrote_are_refused_or_decoded_to_the_right_shapes(
    stages: tuple[str, ...], data: st.DataObject
) -> None:
    codec, shapes = find_codec(stages), shapes_of(tree(2))
    good = bytearray(codec.encode(tree(2), {"task": "t"}, {}))
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
    [np.array([3, 3], np.int32), np.array([4, 1], np.int32), np.array([-1, 2], np.int32), np.array([0, 91], np.int32)],
)
def test_places_out_of_order_or_range_are_refused(places: NDArray[np.int32]) -> None:
    data = encode_tensors({"value": np.ones(2, np.float32), "place": places}, {})
    with pytest.raises(BadUpdate, match=r"ascend within 0 \.\. 90"):
        find_codec(("topk 0.1",)).decode(data, shapes_of(tree(2)))


def test_an_update_of_other_tensors_is_refused() -> None:
    codec = find_codec(("fp16",))
    data = codec.encode(tree(2), {}, {})
    with pytest.raises(BadUpdate, match="'value' is float16"):
        codec.decode(data, {"w": (7,)})


def test_values_beyond_float16_are_cut_and_what_is_cut_is_carried() -> None:
    codec, state = find_codec(("topk 1 ef", "fp16")), State()
    sent, _ = codec.decode(codec.encode({"w": np.array([1e6, -1e5, 2.0], np.float32)}, {}, state), {"w": (3,)})
    assert sent["w"].tolist() == [65504.0, -65504.0, 2.0]
    assert state[RESIDUAL]["w"].tolist() == [1e6 - 65504, 65504 - 1e5, 0.0]


def test_dgc_carries_momentum_and_ends_it_where_a_value_is_sent() -> None:
    codec, state = find_codec(("dgc 0.25 0.5",)), State()
    first = {"w": np.array([8.0, 1.0, -2.0, 0.5], np.float32)}
    sent, _ = codec.decode(codec.encode(copied(first), {}, state), {"w": (4,)})
    assert sent["w"].tolist() == [8.0, 0.0, 0.0, 0.0]
    assert state["momentum"]["w"].tolist() == [0.0, 1.0, -2.0, 0.5]
    sent, _ = codec.decode(codec.encode(copied(first), {}, state), {"w": (4,)})
    # u = 0.5 u + g = (8, 1.5, -3, 0.75), v = (8, 2.5, -5, 1.25)
    assert sent["w"].tolist() == [8.0, 0.0, 0.0, 0.0]
    assert state[RESIDUAL]["w"].tolist() == [0.0, 2.5, -5.0, 1.25]


def test_stochastic_levels_are_drawn_from_the_task_and_right_on_average() -> None:
    codec, given_ = find_codec(("qsgd 3",)), {"w": np.array([0.31, -0.77, 1.0], np.float32)}
    draws = [
        codec.decode(codec.encode(copied(given_), {"task": f"t{i}"}, {}), {"w": (3,)})[0]["w"] for i in range(2000)
    ]
    again = codec.decode(codec.encode(copied(given_), {"task": "t0"}, {}), {"w": (3,)})[0]["w"]
    assert np.array_equal(again, draws[0])
    assert np.abs(np.mean(draws, axis=0) - given_["w"]).max() <= 4 * (1 / 3) / 2 / np.sqrt(2000)
