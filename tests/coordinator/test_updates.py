"""Hostile and broken updates: each is refused by a rule with a name, and nothing else happens."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from coordinator.updates import Claims, check_update
from edge_runtime.errors import RemoteError
from edge_runtime.kernels import Accumulator, Layout
from edge_runtime.tensors import encode_tensors
from edge_runtime.wire.tasks import Phase, Task, Upload

TRAINED = {"fc.bias": (3,), "fc.weight": (3, 2)}
LAYOUT = Layout(TRAINED)
TASK = Task(
    task="digits.2.dev-1",
    job="digits",
    round=2,
    version=2,
    device="dev-1",
    phases=(Phase("a" * 64, 1, {"lr": 0.1}),),
    weights="b" * 64,
    blobs={"a" * 64: 1, "b" * 64: 1},
    classes=3,
    seed=1,
    upload=Upload(),
    deadline_s=60.0,
)
METADATA = {
    "task": "digits.2.dev-1",
    "job": "digits",
    "round": "2",
    "version": "2",
    "device": "dev-1",
    "examples": "100",
    "steps": "4",
    "loss": "1.25",
}


def tensors() -> dict[str, NDArray[np.float32]]:
    return {name: np.full(shape, 0.5, np.float32) for name, shape in TRAINED.items()}


def rule(data: bytes, announced: int = 100) -> str:
    with pytest.raises(RemoteError) as caught:
        check_update(data, TASK, LAYOUT, announced)
    return caught.value.rule


def test_a_good_update_passes_with_its_claims() -> None:
    data = encode_tensors(tensors(), METADATA)
    assert check_update(data, TASK, LAYOUT, 100)[0] == Claims(examples=100, steps=4, loss=1.25)


def backwards(update: dict[str, NDArray[np.float32]]) -> bytes:
    """The same tensors, the last one first, as no client of ours writes them."""
    header: dict[str, object] = {"__metadata__": METADATA}
    end = 0
    for name in sorted(update, reverse=True):
        end += update[name].nbytes
        offsets = [end - update[name].nbytes, end]
        header[name] = {"dtype": "F32", "shape": list(update[name].shape), "data_offsets": offsets}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join(update[name].tobytes() for name in sorted(update, reverse=True))
    return len(text).to_bytes(8, "little") + text + data


def test_tensors_in_another_order_are_the_same_update() -> None:
    update = {name: np.random.default_rng(1).normal(size=shape).astype(np.float32) for name, shape in TRAINED.items()}
    sums = []
    for data in (encode_tensors(update, METADATA), backwards(update)):
        accumulator = Accumulator(LAYOUT)
        accumulator.add(check_update(data, TASK, LAYOUT, 100)[1], np.full(len(TRAINED), 3.0))
        sums.append([accumulator.sum(name).tolist() for name in TRAINED])
    assert sums[0] == sums[1]


@pytest.mark.parametrize(
    ("key", "value", "broken"),
    [
        ("task", "digits.2.dev-2", "WrongTask"),
        ("job", "other", "WrongTask"),
        ("round", "1", "WrongTask"),
        ("version", "1", "WrongTask"),
        ("device", "dev-2", "WrongTask"),
        ("examples", "101", "TooManyExamples"),
        ("examples", "0", "BadCount"),
        ("examples", "-5", "BadCount"),
        ("examples", "1e9", "BadCount"),
        ("examples", "9999999999", "BadCount"),
        ("examples", "\u0663", "BadCount"),
        ("steps", "", "BadCount"),
        ("loss", "nan", "BadCount"),
        ("loss", "inf", "BadCount"),
        ("loss", "1e999", "BadCount"),
        ("loss", "1.2.3", "BadCount"),
        ("loss", "9" * 5000, "BadCount"),
    ],
)
def test_metadata_that_do_not_fit_the_task_are_refused(key: str, value: str, broken: str) -> None:
    assert rule(encode_tensors(tensors(), {**METADATA, key: value})) == broken


@pytest.mark.parametrize("key", sorted(METADATA))
def test_no_metadata_may_be_missing(key: str) -> None:
    rest = {name: value for name, value in METADATA.items() if name != key}
    assert rule(encode_tensors(tensors(), rest)) in {"WrongTask", "BadCount"}


@pytest.mark.parametrize(
    "change",
    [
        {"fc.bias": None},
        {"extra": np.zeros(1, np.float32)},
        {"fc.bias": np.zeros(4, np.float32)},
        {"fc.weight": np.zeros((2, 3), np.float32)},
        {"fc.bias": np.zeros(3, np.float64)},
        {"fc.bias": np.zeros(3, np.int32)},
    ],
)
def test_tensors_other_than_the_trained_ones_are_refused(change: dict[str, NDArray[np.float32] | None]) -> None:
    changed = {name: tensor for name, tensor in {**tensors(), **change}.items() if tensor is not None}
    assert rule(encode_tensors(changed, METADATA)) == "WrongTensors"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_single_value_that_is_not_finite_is_refused(value: float) -> None:
    bad = tensors()
    bad["fc.weight"][2, 1] = value
    assert rule(encode_tensors(bad, METADATA)) == "NonFinite"


def test_large_finite_values_are_finite() -> None:
    large = {name: np.full(shape, 3e18, np.float32) for name, shape in TRAINED.items()}
    assert check_update(encode_tensors(large, METADATA), TASK, LAYOUT, 100)[1].first_bad is None


def test_values_that_no_sum_can_hold_are_refused() -> None:
    huge = {name: np.full(shape, 3e38, np.float32) for name, shape in TRAINED.items()}
    assert rule(encode_tensors(huge, METADATA)) == "TooLarge"


def test_infinities_of_both_signs_do_not_cancel() -> None:
    bad = tensors()
    bad["fc.weight"][0, 0], bad["fc.weight"][2, 1] = np.inf, -np.inf
    assert rule(encode_tensors(bad, METADATA)) == "NonFinite"


@settings(deadline=None)
@given(st.data())
def test_mutated_bytes_give_an_update_or_a_named_rule(data: st.DataObject) -> None:
    good = bytearray(encode_tensors(tensors(), METADATA))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    mutated = bytes(good[: data.draw(st.integers(0, len(good)))])
    try:
        claims, _ = check_update(mutated, TASK, LAYOUT, 100)
    except RemoteError as error:
        assert error.rule  # noqa: PT017  both outcomes are right
    else:
        assert 1 <= claims.examples <= 100


def test_the_refusal_of_a_long_value_is_short() -> None:
    with pytest.raises(RemoteError) as caught:
        check_update(encode_tensors(tensors(), {**METADATA, "task": "x" * 9999}), TASK, LAYOUT, 100)
    assert len(str(caught.value)) < 300
    json.dumps(str(caught.value)).encode("ascii")
