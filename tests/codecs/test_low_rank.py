"""Codecs that send factors: how much energy is kept, at which rank, in how many bytes, and the same bits everywhere."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_runtime.codecs import RESIDUAL, BadUpdate, State, find_codec
from edge_runtime.kernels import as_matrix, power_step
from edge_runtime.tensors import decode_tensors, encode_tensors
from support.codecs import copied, payload_bytes, shapes_of, tree

Floats = NDArray[np.float32]


def with_spectrum(shape: tuple[int, int], values: list[float], seed: int = 0) -> Floats:
    """A matrix of these singular values and random singular vectors."""
    rng = np.random.default_rng(seed)
    u, _ = np.linalg.qr(rng.standard_normal((shape[0], len(values))))
    v, _ = np.linalg.qr(rng.standard_normal((shape[1], len(values))))
    return ((u * values) @ v.T).astype(np.float32)


@given(
    energy=st.sampled_from([0.3, 0.9, 0.99]),
    decay=st.floats(0.3, 1.0),
    rows=st.integers(1, 40),
    columns=st.integers(1, 60),
)
@settings(max_examples=60, deadline=None)
def test_svd_keeps_the_energy_with_the_fewest_values_or_sends_the_matrix(
    energy: float, decay: float, rows: int, columns: int
) -> None:
    matrix = with_spectrum((rows, columns), [decay**k for k in range(min(rows, columns))])
    data = find_codec((f"svd {energy}",)).encode({"w": matrix.copy()}, {}, {})
    said = find_codec((f"svd {energy}",)).decode(data, {"w": matrix.shape})[0]["w"]
    whole = float(np.square(matrix, dtype=np.float64).sum())
    lost = float(np.square(matrix.astype(np.float64) - said).sum())
    assert lost <= (1 - energy) * whole + 1e-5 * whole
    (rank,) = decode_tensors(data)[0]["rank"].tolist()
    s2 = np.square(np.linalg.svd(matrix.astype(np.float64), compute_uv=False))
    least = int(np.searchsorted(np.cumsum(s2) / s2.sum(), energy - 1e-6)) + 1
    if rank == -1:
        assert np.array_equal(said, matrix)
        assert min(rows, columns) == 1 or (least + 1) * (rows + columns + 1) >= rows * columns
    else:
        # The products stop within 2 % of the best error of their rank, which may cost one rank more.
        assert least <= rank <= least + 1
    assert payload_bytes(data) == 4 + 4 * (rows * columns if rank == -1 else rank * (rows + columns))


def test_a_flat_spectrum_is_sent_as_it_is() -> None:
    """The released code of FedKD sends nothing of it."""
    given_ = {"w": np.eye(20, dtype=np.float32)}
    data = find_codec(("svd 0.98",)).encode(copied(given_), {}, {})
    assert np.array_equal(find_codec(("svd 0.98",)).decode(data, {"w": (20, 20)})[0]["w"], given_["w"])


def test_the_energy_rises_with_the_rounds() -> None:
    matrix = with_spectrum((60, 60), [0.8**k for k in range(60)])
    codec, ranks = find_codec(("svd 0.5 0.99 4",)), []
    for number in range(1, 8):
        entries, _ = decode_tensors(codec.encode({"w": matrix.copy()}, {"round": str(number)}, {}))
        ranks += entries["rank"].tolist()
    energies = [0.5, 0.6225, 0.745, 0.8675, 0.99, 0.99, 0.99]
    captured = 1 - np.cumprod(np.full(60, 0.64))
    assert ranks == [int(np.searchsorted(captured, energy)) + 1 for energy in energies]


@pytest.mark.parametrize("rank", [1, 2, 1000])
def test_powersgd_sends_a_closed_form_of_bytes(rank: int) -> None:
    given_ = tree(1)
    data = find_codec((f"powersgd {rank}", "fp16")).encode(copied(given_), {}, {})
    values = 0
    for tensor in given_.values():
        m, n = as_matrix(tensor.shape) or (1, 1)
        factors = min(rank, m, n) * (m + n)
        values += factors if factors + min(rank, m, n) < m * n else tensor.size
    assert payload_bytes(data) == 2 * values


def test_powersgd_nears_the_best_approximation_of_a_matrix_that_stays() -> None:
    """The curve of a warm start: 512 x 512, singular values 1 / i, rank 4; the error over the least possible."""
    s = [1 / i for i in range(1, 257)]
    matrix = with_spectrum((256, 256), s)
    best = np.sqrt(sum(value**2 for value in s[4:]))
    q, errors = np.zeros((256, 4), np.float32), []
    codec, state = find_codec(("powersgd 4",)), State()
    for _ in range(8):
        sent, _ = codec.decode(codec.encode({"w": matrix.copy()}, {}, state), {"w": matrix.shape})
        p, q = power_step(matrix, q, seed=0)
        errors.append(float(np.linalg.norm(matrix - p @ q.T)) / best)
        state[RESIDUAL]["w"][...] = 0  # as if every update began anew: the start alone is carried
        assert np.linalg.norm(sent["w"] - p @ q.T) <= 1e-5
    assert errors[0] > 1.05
    assert errors[-1] < 1.001
    assert all(later <= earlier + 1e-6 for earlier, later in pairwise(errors))


def test_powersgd_with_feedback_sends_all_of_an_update_that_stays() -> None:
    codec, state = find_codec(("powersgd 2",)), State()
    matrix = with_spectrum((12, 20), [1.0] * 12)
    total = np.zeros_like(matrix, np.float64)
    for _ in range(200):
        total += codec.decode(codec.encode({"w": matrix.copy()}, {}, state), {"w": matrix.shape})[0]["w"]
    assert np.linalg.norm(total / 200 - matrix) <= 0.05 * np.linalg.norm(matrix)


def test_products_are_added_one_after_the_other_so_that_every_machine_has_the_same_bits() -> None:
    rng = np.random.default_rng(0)
    m, n, r = 37, 1000, 5
    left, right = (rng.standard_normal((r, k)).astype(np.float32) for k in (m, n))
    value = np.concatenate([left.reshape(-1), right.reshape(-1)])
    data = encode_tensors({"value": value, "rank": np.array([r], np.int32)})
    said = find_codec(("svd 0.9",)).decode(data, {"w": (m, 4, 250)})[0]["w"].reshape(m, n)
    for i, j in ((0, 0), (36, 999), (17, 500)):
        total = np.float32(0)
        for k in range(r):
            total = np.float32(total + np.float32(left[k, i] * right[k, j]))
        assert said[i, j] == total


@pytest.mark.parametrize("rank", [0, -2, 19, 2**31 - 1])
def test_a_rank_that_saves_nothing_is_refused(rank: int) -> None:
    data = encode_tensors({"value": np.ones(80, np.float32), "rank": np.array([rank], np.int32)})
    with pytest.raises(BadUpdate, match=r"'rank' of tensor 'w' is .*must be -1 or in 1 \.\. 18"):
        find_codec(("svd 0.9",)).decode(data, {"w": (40, 37)})


def test_factors_that_overflow_give_infinity_for_the_caller_to_refuse() -> None:
    data = encode_tensors({"value": np.full(80, 1e30, np.float32), "rank": np.array([1], np.int32)})
    said = find_codec(("svd 0.9",)).decode(data, {"w": (40, 40)})[0]["w"]
    assert np.isinf(said).all()


def test_zeros_stay_zeros() -> None:
    given_ = {name: np.zeros_like(tensor) for name, tensor in tree(0).items()}
    for stages in (("svd 0.9", "fp16"), ("powersgd 2",)):
        codec = find_codec(stages)
        sent, _ = codec.decode(codec.encode(copied(given_), {}, {}), shapes_of(given_))
        assert not any(tensor.any() for tensor in sent.values())
