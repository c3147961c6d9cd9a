"""The weighted mean and the FedAvg step: laws and worked numbers."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from coordinator.aggregators import Contribution, normalised_mean, weighted_mean
from coordinator.server_steps import add_mean
from edge_runtime.kernels import CodedUpdate, Layout


def contribution(device: str, examples: int, **tensors: NDArray[np.float32]) -> Contribution:
    return Contribution(device, examples, tensors)


def vector(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def test_the_mean_weighs_by_examples() -> None:
    mean = weighted_mean([contribution("a", 1, w=vector(1.0, 2.0)), contribution("b", 3, w=vector(5.0, -2.0))])
    np.testing.assert_array_equal(mean["w"], np.array([4.0, -1.0]))  # (1 + 3*5)/4, (2 - 3*2)/4


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 10_000), st.integers(0, 2**32 - 1)), min_size=1, max_size=6), st.randoms())
def test_any_order_of_arrival_gives_the_same_bits(updates: list[tuple[int, int]], shuffle: object) -> None:
    made = [
        contribution(f"dev-{i}", examples, w=np.random.default_rng(seed).normal(size=7).astype(np.float32))
        for i, (examples, seed) in enumerate(updates)
    ]
    arrived = list(made)
    shuffle.shuffle(arrived)  # type: ignore[attr-defined]
    for aggregate in (weighted_mean, normalised_mean(0.9)):
        assert aggregate(arrived)["w"].tobytes() == aggregate(made)["w"].tobytes()


@settings(deadline=None)
@given(st.lists(st.integers(1, 2**29), min_size=1, max_size=5), st.integers(0, 2**32 - 1))
def test_the_mean_of_equal_updates_is_that_update(examples: list[int], seed: int) -> None:
    update = np.random.default_rng(seed).normal(size=11).astype(np.float32)
    mean = weighted_mean(contribution(f"d{i}", count, w=update) for i, count in enumerate(examples))
    np.testing.assert_array_equal(mean["w"].astype(np.float32), update)


def test_a_refused_update_leaves_the_fold_as_it_was() -> None:
    fold = weighted_mean.begin(())
    fold.add(contribution("a", 2, w=vector(1.0, -3.0)))
    with pytest.raises(ValueError, match="not finite"):
        fold.add(contribution("b", 5, w=vector(7.0, np.inf)))
    fold.add(contribution("b", 2, w=vector(3.0, 1.0)))
    np.testing.assert_array_equal(fold.mean()["w"], [2.0, -1.0])


def test_a_fold_takes_as_much_memory_for_many_devices_as_for_a_few() -> None:
    layout, rng = Layout({"w": (300, 200), "b": (300,)}), np.random.default_rng(4)
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in layout.shapes.items()}
    fold, held = weighted_mean.begin(()), []
    tracemalloc.start()
    for number in range(400):
        fold.add(Contribution(f"d{number}", 5, CodedUpdate(layout.pieces(tensors), layout)))
        held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert held[-1] - held[9] < 400 * 500  # names, and nothing of the 241 KB of an update
    assert fold.memory_bytes == 16 * 60_300


def test_unequal_parts_in_any_order_give_the_same_bits() -> None:
    rng = np.random.default_rng(3)
    made = [
        contribution(f"d{i}", 3 + i, **{name: rng.normal(size=5).astype(np.float32) for name in names})
        for i, names in enumerate(["ab", "abc", "c", "b", "abc", "ac"])
    ]
    once, again = weighted_mean(made), weighted_mean(reversed(made))
    assert {name: mean.tobytes() for name, mean in once.items()} == {n: mean.tobytes() for n, mean in again.items()}
    of_b = [each for each in made if "b" in each.tensors]
    expected = sum(each.examples * each.tensors["b"].astype(np.float64) for each in of_b)
    np.testing.assert_allclose(once["b"], expected / sum(each.examples for each in of_b), rtol=1e-14)


def test_a_tensor_is_averaged_over_the_updates_that_hold_it() -> None:
    mean = weighted_mean([contribution("a", 1, w=vector(2.0), head=vector(7.0)), contribution("b", 1, w=vector(4.0))])
    assert mean["w"] == 3.0
    assert mean["head"] == 7.0


@pytest.mark.parametrize(
    ("updates", "rule"),
    [
        ([], "no update"),
        ([contribution("a", 1, w=vector(1.0)), contribution("a", 1, w=vector(1.0))], "folded already"),
        ([contribution("a", 0, w=vector(1.0))], "0 examples"),
        ([contribution("a", 1, w=vector(1.0)), contribution("b", 1, w=vector(1.0, 2.0))], "shape"),
        ([contribution("a", 1, w=vector(1.0)), contribution("b", 1, v=vector(1.0), w=vector(1.0, 2.0))], "shape"),
        ([contribution("a", 1, w=vector(1.0)), contribution("b", 1, w=vector(np.nan))], "not finite"),
    ],
)
def test_updates_that_cannot_be_folded_are_refused(updates: list[Contribution], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        weighted_mean(updates)


def test_the_step_adds_the_mean_times_the_server_rate() -> None:
    weights, state = add_mean(0.5)({"w": vector(1.0, 2.0), "frozen": vector(9.0)}, {"w": np.array([2.0, -4.0])}, {}, ())
    np.testing.assert_array_equal(weights["w"], vector(2.0, 0.0))
    np.testing.assert_array_equal(weights["frozen"], vector(9.0))
    assert weights["w"].dtype == np.float32
    assert state == {}


@pytest.mark.parametrize("mean", [{"v": np.zeros(2)}, {"w": np.zeros(3)}])
def test_the_step_refuses_a_mean_of_another_model(mean: dict[str, NDArray[np.float64]]) -> None:
    with pytest.raises(ValueError, match="tensor"):
        add_mean(1.0)({"w": vector(1.0, 2.0)}, mean, {}, ())


def test_one_round_with_rate_one_is_the_average_of_the_trained_weights() -> None:
    rng = np.random.default_rng(5)
    start = rng.normal(size=20).astype(np.float32)
    trained = [(start + rng.normal(size=20) / 8).astype(np.float32) for _ in range(3)]
    examples = [7, 11, 13]
    deltas = [contribution(f"d{i}", n, w=w - start) for i, (n, w) in enumerate(zip(examples, trained, strict=True))]
    stepped, _ = add_mean(1.0)({"w": start}, weighted_mean(deltas), {}, ())
    average = sum(n / 31 * w.astype(np.float64) for n, w in zip(examples, trained, strict=True))
    np.testing.assert_allclose(stepped["w"], average, rtol=3e-7, atol=3e-7)
