"""Random numbers of the engine: the twin's, the same bits everywhere, and distributed as promised."""

from __future__ import annotations

import numpy as np
import pytest
from opcase import F32, ISAS, Case, arrays_of, compute, name_of, twin

from edge_runtime.rng import hash64

UNIFORM, NORMAL = 0, 1
SIZE = 1 << 18


def case(shape: tuple[int, ...], distribution: int, *, seed: float = 5.0, step: float = 3.0, stream: int = 7) -> Case:
    scalars = np.array(seed, F32), np.array(step, F32)
    return Case("random", scalars, ((shape, F32),), (distribution, stream))


def numbers(distribution: int, **key: float) -> np.ndarray:
    made = case((SIZE,), distribution, **key)  # type: ignore[arg-type]
    return np.asarray(compute(made, arrays_of(made), ISAS[-1], 1)[0], np.float64)


CASES = [case(s, d) for d in (UNIFORM, NORMAL) for s in ((), (1,), (15,), (17, 3), (2, 3, 500))]


@pytest.mark.parametrize("each", CASES, ids=name_of)
def test_numbers_are_the_twins_and_the_same_bits_on_every_isa_and_thread_count(each: Case) -> None:
    inputs = arrays_of(each)
    (want,) = twin(each, inputs)
    found = [compute(each, inputs, isa, threads)[0] for isa in ISAS for threads in (1, 3)]
    np.testing.assert_allclose(found[0], want, rtol=0, atol=0 if each.attrs[0] == UNIFORM else 2e-6)
    assert {array.tobytes() for array in found} == {found[0].tobytes()}


def test_the_hash_is_the_boards_own() -> None:
    (made,) = compute(CASES[2], arrays_of(CASES[2]), ISAS[0], 1)
    seed, step = (int(np.array(x, F32).view(np.uint32)) for x in (5.0, 3.0))
    np.testing.assert_array_equal(
        made, (hash64(seed, 7, step, np.arange(15, dtype=np.uint64)) >> np.uint64(40)) * 2.0**-24
    )


@pytest.mark.parametrize("key", [{"seed": 6.0}, {"step": 4.0}, {"stream": 8}])
@pytest.mark.parametrize("distribution", [UNIFORM, NORMAL])
def test_another_seed_step_or_stream_gives_independent_numbers(distribution: int, key: dict[str, float]) -> None:
    a, b = numbers(distribution), numbers(distribution, **key)
    assert (a == b).mean() < 1e-4
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(SIZE)


def test_uniform_numbers_fill_the_unit_interval_evenly() -> None:
    """Moments and a chi-square over 256 bins within four standard deviations; neighbours do not correlate."""
    u = numbers(UNIFORM)
    assert u.min() >= 0.0
    assert u.max() < 1.0
    assert abs(u.mean() - 0.5) < 4 * np.sqrt(1 / 12 / SIZE)
    counts = np.histogram(u, 256, (0, 1))[0]
    chi = float(((counts - SIZE / 256) ** 2 / (SIZE / 256)).sum())
    assert abs(chi - 255) < 4 * np.sqrt(2 * 255)
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 4 / np.sqrt(SIZE)


def test_normal_numbers_have_the_moments_and_quantiles_of_the_normal_distribution() -> None:
    z = numbers(NORMAL)
    deviations = {1: 1.0, 2: np.sqrt(2.0), 3: np.sqrt(15.0), 4: np.sqrt(96.0)}
    for power, moment in {1: 0.0, 2: 1.0, 3: 0.0, 4: 3.0}.items():
        assert abs((z**power).mean() - moment) < 4 * deviations[power] / np.sqrt(SIZE)
    for limit, share in {-2.0: 0.0227501, -1.0: 0.1586553, 0.0: 0.5, 0.5: 0.6914625, 1.5: 0.9331928}.items():
        assert abs((z < limit).mean() - share) < 4 * np.sqrt(share * (1 - share) / SIZE)
    assert np.abs(z).max() < 5.9
