"""A short run of every fault there is: the job ends at the undisturbed run's bits, and every update counts once.

`make chaos` makes long ones, of many seeds.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from chaos.run import BUFFERED, CARRYING, DOWNLOAD, Outcome, disturbed
from chaos.schedule import draw

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SEEDS = [int(seed) for seed in os.environ.get("EDGE_CHAOS_SEEDS", "1").split(",")]
SECONDS = 20.0
NAMES = [f"dev-{number}" for number in range(4)]
JOB = {"rounds": 6, "epochs": 20, "codec": CARRYING, "download": DOWNLOAD}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return disturbed(tmp_path_factory.mktemp("calm"), 0, (), **JOB)


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_strikes_the_model_has_the_same_bits_and_every_update_counts_once(
    tmp_path: Path, undisturbed: Outcome, seed: int
) -> None:
    strikes = draw(seed, SECONDS, NAMES)
    outcome = disturbed(tmp_path, seed, strikes, **JOB)
    print(outcome)
    assert strikes
    assert outcome.wrong == ()
    assert outcome.digests == undisturbed.digests
    assert outcome.done["model_sha256"] == undisturbed.digests[-1]


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_strikes_an_asynchronous_job_folds_every_accepted_update_once(tmp_path: Path, seed: int) -> None:
    strikes = draw(seed, SECONDS, NAMES)
    outcome = disturbed(tmp_path, seed, strikes, **{**JOB, "rounds": 10, "schedule": BUFFERED})
    print(outcome)
    assert strikes
    assert outcome.wrong == ()
    assert outcome.updates >= 10 * BUFFERED["buffer"]
    assert outcome.done["model_sha256"] == outcome.digests[-1]
