"""Laws of every codec: what is sent and what is carried is what was given, equal tasks give equal bytes."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.codecs import RESIDUAL, State, find_codec
from support.codecs import PIPELINES, Tree, copied, flat, shapes_of, tree

CARRYING = [stages for stages in PIPELINES if find_codec(stages).carries]
RESIDUALS = [stages for stages in CARRYING if not find_codec(stages).remembers]
MEMORIES = [stages for stages in CARRYING if find_codec(stages).remembers]
EXACT = [("dense",), ("fp32",), ("fp32", "rans"), ("rows",), ("rows", "rans"), ("topk 1", "rice"), ("svd 1",)]
# Of the largest value: half a step of each format, a whole one where it is drawn.
HALF_STEPS = {"fp16": 2.0**-11, "bf16": 2.0**-8, "int8": 0.5 / 127 + 1e-6, "qsgd 7": 1 / 7 + 1e-6, "sign 16": 1.0}


@pytest.mark.parametrize("stages", RESIDUALS, ids=" | ".join)
@given(seed=st.integers(0, 2**32), scale=st.sampled_from([1e-6, 1.0, 1e3]))
@settings(max_examples=25, deadline=None)
def test_what_is_sent_and_what_is_carried_add_up_to_what_was_given(
    stages: tuple[str, ...], seed: int, scale: float
) -> None:
    codec, state = find_codec(stages), State()
    for number in range(1, 4):
        given_ = tree(seed + number, scale)
        before = copied(state.get(RESIDUAL, {})) or {name: np.zeros_like(t) for name, t in given_.items()}
        metadata = {"task": "t", "round": str(number)}
        sent, told = codec.decode(codec.encode(copied(given_), metadata, state), shapes_of(given_))
        assert told == metadata
        assert sent.keys() == given_.keys()
        for name, tensor in given_.items():
            wanted = tensor.astype(np.float64) + before[name]
            # One rounding of float32 for the sum, one for what is left of it.
            bound = 2.0**-24 * (2 * np.abs(wanted) + np.abs(sent[name])).max()
            assert np.abs(sent[name].astype(np.float64) + state[RESIDUAL][name] - wanted).max() <= bound


@pytest.mark.parametrize("stages", MEMORIES, ids=" | ".join)
@given(seed=st.integers(0, 2**32), scale=st.sampled_from([1e-6, 1.0, 1e3]))
@settings(max_examples=25, deadline=None)
def test_what_is_remembered_is_the_sum_of_what_was_sent_and_nears_what_is_given(
    stages: tuple[str, ...], seed: int, scale: float
) -> None:
    codec, state, memory = find_codec(stages), State(), np.zeros_like(flat(tree(0)))
    given_ = tree(seed, scale)
    for _ in range(3):
        before = np.linalg.norm(flat(given_).astype(np.float64) - memory)
        sent, _ = codec.decode(codec.encode(copied(given_), {}, state), shapes_of(given_))
        memory += flat(sent)
        assert np.array_equal(flat(state["memory"]), memory)
        # A contraction of 1 - k / N; what float16 rounds away of tiny values is far below.
        after = np.linalg.norm(flat(given_).astype(np.float64) - memory)
        assert after <= np.sqrt(1 - 0.19) * before + 1e-6 * (1 + scale)


@pytest.mark.parametrize("stages", [s for s in PIPELINES if s not in CARRYING], ids=" | ".join)
def test_a_codec_that_carries_nothing_leaves_no_state(stages: tuple[str, ...]) -> None:
    state = State()
    find_codec(stages).encode(tree(1), {"round": "1"}, state)
    assert not state


@pytest.mark.parametrize("stages", EXACT, ids=" | ".join)
@given(seed=st.integers(0, 2**32), scale=st.sampled_from([0.0, 1e-40, 1.0, 1e30]))
@settings(max_examples=25, deadline=None)
def test_a_lossless_codec_gives_back_every_bit(stages: tuple[str, ...], seed: int, scale: float) -> None:
    given_ = tree(seed, scale)
    sent, _ = find_codec(stages).decode(find_codec(stages).encode(copied(given_), {}, {}), shapes_of(given_))
    assert sent.keys() == given_.keys()
    for name, tensor in given_.items():
        assert np.array_equal(sent[name], tensor)


@pytest.mark.parametrize("entropy", [(), ("rans",)], ids=["plain", "rans"])
@pytest.mark.parametrize("stage", HALF_STEPS)
def test_a_value_format_stays_within_half_a_step(stage: str, entropy: tuple[str, ...]) -> None:
    given_ = tree(5)
    codec = find_codec((stage, *entropy))
    sent, _ = codec.decode(codec.encode(copied(given_), {}, {}), shapes_of(given_))
    for name, tensor in given_.items():
        assert np.abs(sent[name] - tensor).max() <= HALF_STEPS[stage] * np.abs(tensor).max()


@pytest.mark.parametrize("stages", PIPELINES, ids=" | ".join)
def test_equal_tasks_give_equal_bytes(stages: tuple[str, ...]) -> None:
    codec = find_codec(stages)
    first = codec.encode(tree(1), {"round": "1", "task": "2"}, {})
    assert codec.encode(tree(1), {"task": "2", "round": "1"}, {}) == first


def test_stochastic_levels_are_drawn_from_the_task_and_right_on_average() -> None:
    codec, given_ = find_codec(("qsgd 3", "rans")), {"w": np.array([0.31, -0.77, 1.0], np.float32)}
    draws = [
        codec.decode(codec.encode(copied(given_), {"task": f"t{i}"}, {}), {"w": (3,)})[0]["w"] for i in range(2000)
    ]
    again = codec.decode(codec.encode(copied(given_), {"task": "t0"}, {}), {"w": (3,)})[0]["w"]
    assert np.array_equal(again, draws[0])
    assert np.abs(np.mean(draws, axis=0) - given_["w"]).max() <= 4 * (1 / 3) / 2 / np.sqrt(2000)


# Bytes a value that an encoding takes beside the update and the slots, which docs/job-file.md states.
BESIDE = {
    ("topk 0.01 ef", "fp16", "rice"): 0.5,
    ("dgc 0.01 0.9", "fp16", "rice"): 0.5,
    ("threshold 9 ef", "fp16", "rice"): 0.5,
    ("svd 0.9 ef", "fp16"): 6.0,
    ("powersgd 4", "fp16"): 6.0,
    ("int8",): 2.5,
    ("int8", "rans"): 11.0,
    ("rows",): 13.0,
}


@pytest.mark.parametrize("stages", BESIDE, ids=" | ".join)
def test_an_encoding_takes_no_more_memory_than_is_stated(stages: tuple[str, ...]) -> None:
    def update(seed: int) -> Tree:
        rng = np.random.default_rng(seed)
        low = rng.standard_normal((512, 4)) @ rng.standard_normal((4, 512))
        return {"w": low.astype(np.float32), "v": rng.standard_normal(50_000).astype(np.float32)}

    codec, state = find_codec(stages), State()
    codec.encode(update(1), {"round": "1"}, state)
    given_ = update(2)
    tracemalloc.start()
    try:
        codec.encode(given_, {"round": "2"}, state)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= BESIDE[stages] * flat(given_).size + 65_536
