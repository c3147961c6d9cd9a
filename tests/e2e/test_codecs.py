"""Compressed uploads in whole jobs on real digits: how small they are, how well they learn, what the profile shows."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.broker import find_mosquitto
from support.fleet import Federation, digits_federation

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e

KIND = "embedded" if find_mosquitto() is None else "mosquitto"
ROUNDS = 12


def run_job(root: Path, codec: list[str]) -> tuple[dict[str, Any], list[int], Federation]:
    """A whole job; returns its last event, the bytes of every update, and the stopped federation."""
    running = digits_federation(root, kind=KIND, rounds=ROUNDS, epochs=2, codec=codec)
    try:
        running.start()
        done = running.until_done()
        return done, [event["bytes"] for event in running.seen if event["event"] == "update"], running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[int], Federation]:
    return run_job(tmp_path_factory.mktemp("dense"), ["dense"])


def test_a_twentieth_of_the_values_and_what_is_carried_learn_as_well(
    dense: tuple[dict[str, Any], list[int], Federation], tmp_path: Path
) -> None:
    done, sizes, federation = run_job(tmp_path, ["topk 0.05 ef", "fp16", "rice"])
    assert len(sizes) == len(dense[1]) == 4 * ROUNDS
    # 2 bytes a value, about 6 bits a place, and a header of some 400 bytes that a model this small feels.
    assert max(sizes) <= min(dense[1]) / 15
    assert done["accuracy"] >= dense[0]["accuracy"] - 0.02
    shown = subprocess.run(
        [sys.executable, "-m", "edge_runtime", "profile", str(federation.root / "dev-0" / "state"), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    upload = json.loads(shown.stdout)["upload"]
    assert upload["codec"] == ["topk 0.05 ef", "fp16", "rice"]
    assert {"top_k_residual", "to_float16", "encode_indices"} <= upload["kernels_s"].keys()


def test_a_byte_a_value_learns_as_well(dense: tuple[dict[str, Any], list[int], Federation], tmp_path: Path) -> None:
    done, sizes, _ = run_job(tmp_path, ["int8"])
    assert max(sizes) <= min(dense[1]) / 3.5
    assert done["accuracy"] >= dense[0]["accuracy"] - 0.01


def test_what_is_not_carried_is_missed(tmp_path: Path) -> None:
    """At one value in five hundred, a device that forgets the others learns visibly less."""
    carried, forgotten = (
        run_job(tmp_path / name, [stage, "fp16", "rice"])[0]["accuracy"]
        for name, stage in (("carried", "topk 0.002 ef"), ("forgotten", "topk 0.002"))
    )
    assert carried >= forgotten + 0.1


def test_factors_in_coarse_levels_learn_as_well(
    dense: tuple[dict[str, Any], list[int], Federation], tmp_path: Path
) -> None:
    done, sizes, _ = run_job(tmp_path, ["svd 0.98", "qsgd 15", "rans"])
    assert max(sizes) <= min(dense[1]) / 4
    assert done["accuracy"] >= dense[0]["accuracy"] - 0.02
