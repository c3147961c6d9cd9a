"""Codecs that send the largest values: which ones, what is carried, and their bytes."""

import numpy as np
import pytest

from edge_runtime.codecs import RESIDUAL, State, find_codec
from edge_runtime.errors import RemoteError
from edge_runtime.kernels import encode_indices
from edge_runtime.tensors import decode_tensors
from support.codecs import copied, flat, payload_bytes, shapes_of, tree


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


@pytest.mark.parametrize("stages", [("topk 0.1",), ("topk 0.1 ef", "rice"), ("ef21 0.1", "rice")], ids=" | ".join)
def test_control_variates_are_chosen_among_themselves(stages: tuple[str, ...]) -> None:
    weights, codec = tree(9, 1e-3), find_codec(stages)
    both = weights | {f"control/{name}": tensor for name, tensor in tree(10, 100.0).items()}
    sent, _ = codec.decode(codec.encode(copied(both), {}, {}), shapes_of(both))
    alone, _ = codec.decode(codec.encode(copied(weights), {}, {}), shapes_of(weights))
    assert np.count_nonzero(flat(sent)) == 2 * np.count_nonzero(flat(alone))
    for name, tensor in alone.items():
        assert np.array_equal(sent[name], tensor)


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


def test_a_threshold_sends_all_that_reach_it_and_carries_the_rest() -> None:
    codec, state = find_codec(("threshold 2 ef",)), State()
    first = {"w": np.array([2.0, -1.5, 0.5], np.float32), "b": np.array([-3.0], np.float32)}
    sent, _ = codec.decode(codec.encode(copied(first), {}, state), shapes_of(first))
    assert {name: tensor.tolist() for name, tensor in sent.items()} == {"b": [-3.0], "w": [2.0, 0.0, 0.0]}
    assert state[RESIDUAL]["w"].tolist() == [0.0, -1.5, 0.5]
    sent, _ = codec.decode(codec.encode(copied(first), {}, state), shapes_of(first))
    assert sent["w"].tolist() == [2.0, -3.0, 0.0]


def test_a_threshold_that_nothing_reaches_sends_no_value() -> None:
    given_ = tree(3)
    data = find_codec(("threshold 1e9", "int8", "rice", "rans")).encode(copied(given_), {}, {})
    assert payload_bytes(data) == 1  # the count of the coded gaps
    sent, _ = find_codec(("threshold 1e9", "int8", "rice", "rans")).decode(data, shapes_of(given_))
    assert not flat(sent).any()


def test_dgc_clips_an_update_to_its_norm_before_it_is_accumulated() -> None:
    codec, state = find_codec(("dgc 1 0.5 clip 2.5",)), State()
    given_ = {"a": np.array([3.0], np.float32), "b": np.array([4.0], np.float32)}
    sent, _ = codec.decode(codec.encode(copied(given_), {}, state), shapes_of(given_))
    assert (sent["a"].tolist(), sent["b"].tolist()) == ([1.5], [2.0])
    small = {"a": np.array([0.3], np.float32), "b": np.array([0.4], np.float32)}
    sent, _ = codec.decode(codec.encode(copied(small), {}, state), shapes_of(small))
    assert np.array_equal(sent["a"], small["a"])


def test_dgc_warms_up_from_a_large_share_to_its_own() -> None:
    codec, state = find_codec(("dgc 0.001 0.9 warmup 4",)), State()
    given_ = {"w": np.random.default_rng(0).standard_normal(100_000).astype(np.float32)}
    counts = []
    for number in range(1, 8):
        entries, _ = decode_tensors(codec.encode(copied(given_), {"round": str(number)}, state))
        counts.append(entries["value"].size)
    # The paper's 75, 93.75, 98.4, 99.6, 99.9 %: 0.001^(r / 5).
    assert counts == [25_119, 6_310, 1_585, 398, 100, 100, 100]


def test_dgc_of_all_values_is_the_update_without_momentum() -> None:
    """The mask of what was sent clears all momentum, so with nothing left out there is none."""
    codec, state = find_codec(("dgc 1 0.9",)), State()
    for number in range(3):
        given_ = tree(number)
        sent, _ = codec.decode(codec.encode(copied(given_), {}, state), shapes_of(given_))
        assert np.array_equal(flat(sent), flat(given_))


def test_a_stage_that_changes_with_the_rounds_needs_one() -> None:
    for stages in (("dgc 0.1 0.9 warmup 3",), ("svd 0.9 0.95 3",)):
        with pytest.raises(RemoteError, match="round is ''"):
            find_codec(stages).encode(tree(1), {"task": "t"}, {})


def test_without_feedback_topk_diverges_where_with_it_it_converges() -> None:
    """Beznosikov et al., 2020: three quadratics on which top-1 alone grows by 1 + 11 lr / 6 a step."""
    a = np.array([(-3, 2, 2), (2, -3, 2), (2, 2, -3)], np.float32)

    def run(stages: tuple[str, ...], steps: int) -> float:
        codec, states, x = find_codec(stages), [State(), State(), State()], np.ones(3, np.float32)
        for _ in range(steps):
            said = [
                codec.decode(codec.encode({"x": 0.01 * (2 * (row @ x) * row + x / 2)}, {}, state), {"x": (3,)})[0]["x"]
                for row, state in zip(a, states, strict=True)
            ]
            x = x - np.mean(said, axis=0, dtype=np.float32)
        return float(np.abs(x).max())

    assert run(("topk 0.3333",), 100) == pytest.approx((1 + 11 * 0.01 / 6) ** 100, rel=1e-4)
    assert run(("topk 0.3333 ef",), 3000) < 1e-3


def test_ef21_follows_the_path_worked_out_by_hand() -> None:
    """Two nodes with optima (4, 0) and (0, 3), top-1, step 0.1 from the origin; x after five steps."""
    codec, states = find_codec(("ef21 0.5",)), [State(), State()]
    optima = [np.array([4.0, 0.0], np.float32), np.array([0.0, 3.0], np.float32)]
    x, g, path = np.zeros(2), np.zeros(2), []
    for _ in range(6):
        for optimum, state in zip(optima, states, strict=True):
            data = codec.encode({"x": x.astype(np.float32) - optimum}, {}, state)
            g += codec.decode(data, {"x": (2,)})[0]["x"].astype(np.float64) / 2
        x = x - 0.1 * g
        path.append(x.tolist())
    wanted = [(0.2, 0.15), (0.38, 0.3), (0.56, 0.42), (0.704, 0.54), (0.848, 0.636)]
    assert np.abs(np.array(path[:5]) - wanted).max() <= 1e-6
    # And what is remembered of the gradients there.
    assert np.abs(states[0]["memory"]["x"] - (-3.152, 0.54)).max() <= 1e-6
    assert np.abs(states[1]["memory"]["x"] - (0.848, -2.46)).max() <= 1e-6
