"""Whole jobs in memory through codecs of every kind: they learn as jobs without do, and in fewer bytes up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from edge_runtime.slots import Slots
from support.memory import MemorySite, finished, start_all
from support.tiny_job import JOB, make_site

if TYPE_CHECKING:
    from pathlib import Path

ROUNDS = 8
# And how many times fewer bytes an update has, its header of some 500 among them.
CODECS = {
    ("threshold 0.02 ef", "fp16", "rice"): 2.0,
    ("dgc 0.1 0.3 clip 5 warmup 2", "fp16", "rice", "rans"): 2.0,
    ("svd 0.9 0.95 4", "int8 32", "rans"): 2.0,
    ("svd 0.8 ef", "fp16"): 1.2,
    ("powersgd 4", "fp16"): 1.2,
    ("ef", "sign 64"): 4.0,
    ("ef", "qsgd 3", "rans"): 4.0,
    ("rows", "int8", "rans"): 2.0,
}


def run(root: Path, codec: tuple[str, ...], download: str = "") -> MemorySite:
    stages = ", ".join(f'"{stage}"' for stage in codec)
    text = JOB.replace("rounds = 2", f"rounds = {ROUNDS}") + f"[upload]\ncodec = [{stages}]\n{download}"
    site = make_site(root, text)
    for name, device in site.devices.items():
        device.slots = Slots(root / f"{name}.slots")
    start_all(site)
    finished(site)
    return site


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> MemorySite:
    return run(tmp_path_factory.mktemp("dense"), ("dense",))


@pytest.mark.parametrize("codec", CODECS, ids=" | ".join)
def test_a_job_learns_through_it_as_well_and_sends_less(
    codec: tuple[str, ...], dense: MemorySite, tmp_path: Path
) -> None:
    site = run(tmp_path, codec)
    assert site.seen("round_done")[-1]["accuracy"] >= dense.seen("round_done")[-1]["accuracy"] - 0.05
    assert len(site.seen("update")) == 3 * ROUNDS
    before, after = (sum(event["bytes"] for event in each.seen("update")) for each in (dense, site))
    assert before >= CODECS[codec] * after


@pytest.mark.parametrize("stages", [("int8",), ("topk 0.1 ef", "fp16", "rice")], ids=" | ".join)
def test_entropy_coding_changes_no_bit_of_what_is_learnt(tmp_path: Path, stages: tuple[str, ...]) -> None:
    plain, coded = (run(tmp_path / str(rans), (*stages, *rans)) for rans in ((), ("rans",)))
    finals = [site.seen("job_done")[0]["model_sha256"] for site in (plain, coded)]
    assert finals[0] == finals[1]
    before, after = (sum(event["bytes"] for event in site.seen("update")) for site in (plain, coded))
    assert after < before


def test_energy_rises_in_both_directions(tmp_path: Path, dense: MemorySite) -> None:
    both = '"svd 0.7 0.95 4", "fp16"'
    site = run(tmp_path, ("svd 0.7 0.95 4", "fp16"), f"[download]\ncodec = [{both}]\n")
    assert site.seen("round_done")[-1]["accuracy"] >= dense.seen("round_done")[-1]["accuracy"] - 0.05
    assert sum(event["bytes_down"] for event in site.seen("round_done")) < sum(
        event["bytes_down"] for event in dense.seen("round_done")
    )
