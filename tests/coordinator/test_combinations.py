"""Methods, schedules, codecs and training together: every pair of choices runs, or is refused by a rule with a name."""

from __future__ import annotations

import json
import random
from itertools import combinations, product
from typing import TYPE_CHECKING

import numpy as np
import pytest

from coordinator.jobfile import JobFileError, load_job
from coordinator.results import WEIGHTS_NAME
from edge_runtime.slots import Slots
from edge_runtime.tensors import decode_tensors
from support.memory import MemorySite, finished, start_all
from support.tiny_job import JOB, make_site

if TYPE_CHECKING:
    from pathlib import Path

# What a choice adds to the sections of a job file.
Lines = dict[str, str]
FACTORS: dict[str, dict[str, Lines]] = {
    "method": {
        "fedavg": {},
        "fedprox": {"method": "mu = 0.1"},
        "fedavgm": {},
        "fedadagrad": {},
        "fedadam": {},
        "fedyogi": {"method": "tau = 0.01"},
        "fednova": {},
        "scaffold": {},
        "ef21": {"method": "devices = 3"},
    },
    "schedule": {
        "sync": {},
        "tiers": {"schedule": 'name = "tiers"\ntiers = 2'},
        "fedasync": {"schedule": 'name = "fedasync"\nstaleness = "hinge"'},
        "fedbuff": {"schedule": 'name = "fedbuff"\nbuffer = 2\nmax_staleness = 1'},
    },
    "upload": {
        name: {"upload": f"codec = {json.dumps(name.split(' | '))}"} if name else {}
        for name in (
            "",
            "int8 | rans",
            "ef | sign 8",
            "qsgd 3 | rans",
            "topk 0.1 ef | fp16 | rice",
            "threshold 0.01 ef | int8 5 | rice | rans",
            "dgc 0.1 0.5 clip 1 warmup 2 | rice",
            "ef21 0.2 | fp16 | rice",
            "svd 0.8 0.95 2 | fp16",
            "svd 0.9 ef | qsgd 15",
            "powersgd 2",
            "rows | int8",
        )
    },
    "download": {
        name: {"download": f"codec = {json.dumps(name.split(' | '))}"} if name else {}
        for name in ("", "topk 0.2 | fp16 | rice", "int8 | rans", "svd 0.7 0.9 2", "rows", "sign 16", "qsgd 7")
    },
    "training": {
        "plain": {},
        "adamw": {"training": 'optimizer = "adamw"'},
        "clipped": {"training": "max_norm = 0.5\nweight_decay = 0.01"},
        "proximal": {"training": "proximal = 0.1"},
        "ema": {"training": "ema = 0.9"},
        "personal": {"training": 'personal = ["fc3.*"]'},
        "boards": {"training": 'boards = [{devices = ["dev-a"], memory_mb = 1}]'},
        "stages": {"training": 'stages = [{rounds = 1, trainable = ["fc3.*"]}, {rounds = 2, lr = 0.03}]'},
    },
    "round": {
        "plain": {},
        "fraction": {"round": "fraction = 0.7"},
        "over_select": {"round": "over_select = 0.5"},
        "select": {"round": 'fraction = 0.7\nselect = "weighted"'},
        "scale_work": {"round": "scale_work = true"},
    },
}
Choice = tuple[str, str]  # factor, name
Row = dict[str, str]
PLAIN: Row = {factor: next(iter(choices)) for factor, choices in FACTORS.items()}
CODECS_EF21 = ("", "ef21 0.2 | fp16 | rice")

# Which pairs are refused, and at which key.
REFUSED: dict[frozenset[Choice], str] = {
    **{
        frozenset({("method", method), ("training", "adamw")}): "training.optimizer"
        for method in ("fednova", "scaffold")
    },
    **{
        frozenset({("method", "scaffold"), ("training", key)}): f"training.{key}"
        for key in ("proximal", "ema", "personal")
    },
    **{
        frozenset({("method", method), ("schedule", name)}): "schedule.name"
        for method, name in product(("scaffold", "ef21"), ("tiers", "fedasync", "fedbuff"))
    },
    frozenset({("method", "scaffold"), ("upload", "dgc 0.1 0.5 clip 1 warmup 2 | rice")}): "upload.codec",
    frozenset({("method", "ef21"), ("training", "boards")}): "training.boards",
    **{
        frozenset({("method", method), ("upload", codec)}): "upload.codec"
        for method, codec in product(FACTORS["method"], FACTORS["upload"])
        if (method == "ef21" and codec not in CODECS_EF21) or (method != "ef21" and codec == CODECS_EF21[1])
    },
    # Which the method that such a codec needs is not for either.
    **{
        frozenset({("upload", CODECS_EF21[1]), other}): "upload.codec"
        for other in (("training", "boards"), *(("schedule", name) for name in ("tiers", "fedasync", "fedbuff")))
    },
    **{
        frozenset({("schedule", name), ("round", key)}): f"round.{key}"
        for name, key in product(("fedasync", "fedbuff"), ("fraction", "over_select", "select", "scale_work"))
    },
}


def job_of(row: Row) -> str:
    """The tiny job with these choices."""
    added: dict[str, list[str]] = {"schedule": [], "upload": [], "download": []}
    for factor, name in row.items():
        for section, lines in FACTORS[factor][name].items():
            added.setdefault(section, []).append(lines)
    sgd = row["training"] != "adamw"
    text = JOB.replace("rounds = 2", "rounds = 3").replace("fedavg", row["method"])
    text = text if sgd else text.replace("momentum = 0.9\n", "").replace("lr = 0.1", "lr = 0.01")
    for section, lines in added.items():
        whole = "\n".join((f"[{section}]", *lines, ""))
        text = text.replace(f"[{section}]\n", whole) if f"[{section}]\n" in text else text + (whole if lines else "")
    return text


def pairs_of(row: Row) -> set[frozenset[Choice]]:
    return {frozenset(pair) for pair in combinations(row.items(), 2)}


def covering() -> list[Row]:
    """Rows in which every pair that is not refused occurs, and none that is."""
    every = [(factor, name) for factor, choices in FACTORS.items() for name in choices]
    wanted = [pair for pair in map(frozenset, combinations(every, 2)) if len(dict(pair)) == 2 and pair not in REFUSED]
    missing, rows = set(wanted), []
    rng = random.Random(1)  # noqa: S311  a choice of tests, no secret
    for pair in wanted:
        if pair in missing:
            rows.append(_filled(dict(pair), missing, rng))
            missing -= pairs_of(rows[-1])
    return rows


def _filled(start: Row, missing: set[frozenset[Choice]], rng: random.Random) -> Row:
    row = dict(start)
    for factor in ("method", *rng.sample(sorted(FACTORS), len(FACTORS))):  # no other choice leaves a method none
        if factor in row:
            continue
        fitting = [name for name in FACTORS[factor] if not pairs_of({**row, factor: name}) & REFUSED.keys()]
        gains = {name: len(pairs_of({**row, factor: name}) & missing) for name in fitting}
        row[factor] = rng.choice([name for name in fitting if gains[name] == max(gains.values())])
    return {factor: row[factor] for factor in FACTORS}


def run(root: Path, row: Row, order: int = 0) -> MemorySite:
    site = make_site(root, job_of(row), order)
    for name, device in site.devices.items():
        device.slots = Slots(root / f"{name}.slots")
    start_all(site)
    finished(site)
    return site


@pytest.mark.parametrize(
    "pair", sorted(REFUSED, key=sorted), ids=lambda pair: ", ".join(f"{f} {n}" for f, n in sorted(pair))
)
def test_what_does_not_go_together_is_refused_where_it_is_said(tmp_path: Path, pair: frozenset[Choice]) -> None:
    (tmp_path / "held-out").mkdir()
    (tmp_path / "job.toml").write_text(job_of({**PLAIN, **dict(pair)}))
    with pytest.raises(JobFileError) as caught:
        load_job(tmp_path / "job.toml")
    assert REFUSED[pair] in {problem.where for problem in caught.value.problems}


@pytest.mark.parametrize("row", covering(), ids=lambda row: ", ".join(name for name in row.values() if name))
def test_what_goes_together_runs_to_the_end_with_sound_weights(tmp_path: Path, row: Row) -> None:
    site = run(tmp_path, row)
    assert len(site.seen("round_done")) == 3
    assert not site.seen("failed")
    # A buffer is full, or a round closed, while others train: the only updates that are not needed.
    assert all(
        "all the updates it needs" in event["message"] or "late" in event["message"] for event in site.seen("refused")
    )
    final = decode_tensors((site.state / WEIGHTS_NAME).read_bytes())[0]
    assert all(np.isfinite(array).all() for array in final.values())
    assert any(array.tobytes() != site.program.weights[name].tobytes() for name, array in final.items())
    if row["schedule"] == "sync" and row["round"] == "plain":
        again = run(tmp_path / "again", row, order=7)
        assert (again.state / WEIGHTS_NAME).read_bytes() == (site.state / WEIGHTS_NAME).read_bytes()
