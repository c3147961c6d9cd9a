"""`edge-runtime bench codecs`: what compressed traffic costs in accuracy, in whole jobs of real processes.

Two networks learn Fashion-MNIST on 8 devices with a skew of labels (Dirichlet 0.5), through mosquitto where it is
installed: LeNet-5 on all 60,000 pictures, and the 1.6-million-parameter CNN of federated averaging on 4,000. Every
codec runs with three seeds. An accuracy is the mean of the last three rounds, because single rounds of skewed devices
differ by a point; traffic is what the coordinator counted, both ways, plans and first weights included.

The peer is the same job with dense float32 both ways. Targets: top-k of 1 % with error feedback sends 100 times less
up and all traffic is 20 times less, within 2 points of dense at equal rounds and within 1 at twice the rounds; without
error feedback it is worse; SVD 10 times less within 1 point; int8 4 times within 0.3 (3.9 with its scales, if it is not
entropy coded).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.recording import machine, save
from coordinator.broker import find_mosquitto, start_broker
from coordinator.demo import fleet
from coordinator.demo.datasets import Split, load_split
from coordinator.demo.partition import dirichlet
from models.zoo import MODELS
from support.data import data_dir
from support.fleet import Federation, write_job
from support.networks import NETWORKS, export

DEVICES, ALPHA = 8, 0.5
SEEDS = (1, 2, 3)
ROUNDS = 30
DENSE, LAST = "dense", 3


@dataclass(frozen=True)
class Case:
    """A way to compress, and what is asked of it.

    Attributes:
        name: In the table and the JSON.
        up: Stages of the upload codec.
        down: Stages of the download codec; None: the default.
        rounds: How long the job runs.
        below: Most points of accuracy below dense, at ROUNDS rounds; None where none is asked.
        below_later: The same at the job's end, where it runs longer than dense.
        up_ratio: Least ratio of dense's bytes of an update to the codec's.
        total_ratio: Least ratio of all bytes, both ways, over ROUNDS rounds.
    """

    name: str
    up: tuple[str, ...]
    down: tuple[str, ...] | None = None
    rounds: int = ROUNDS
    below: float | None = None
    below_later: float | None = None
    up_ratio: float = 0.0
    total_ratio: float = 0.0


CASES = (
    Case(DENSE, ("dense",)),
    Case(
        "topk",
        ("topk 0.01 ef", "fp16", "rice"),
        ("topk 0.05", "fp16", "rice"),
        rounds=2 * ROUNDS,
        below=0.02,
        below_later=0.01,
        up_ratio=100,
        total_ratio=20,
    ),
    Case("topk, nothing carried", ("topk 0.01", "fp16", "rice")),
    Case("svd", (f"svd 0.95 0.98 {ROUNDS}", "qsgd 15", "rans"), below=0.01, up_ratio=10),
    Case("int8", ("int8",), below=0.003, up_ratio=3.9),
    Case("int8, entropy coded", ("int8", "rans"), below=0.003, up_ratio=4),
)


@dataclass(frozen=True)
class Work:
    """A network and how many of the pictures it learns from and is judged by."""

    network: str
    train: int
    judged: int


WORKS = (Work("lenet5", 60_000, 10_000), Work("fedavg_cnn", 4_000, 4_000))


@dataclass(frozen=True)
class Run:
    """One job: accuracy after ROUNDS rounds and at its end, median bytes of an update, all bytes of ROUNDS rounds."""

    accuracy: float
    later: float
    update_bytes: float
    total_bytes: int


def main(argv: list[str] | None = None) -> int:
    """Run the bench, print a table or one JSON object; a whole run is kept in tests/bench/results/."""
    parser = argparse.ArgumentParser(prog="edge-runtime bench codecs", description=__doc__)
    parser.add_argument("--only", metavar="NETWORK", choices=[work.network for work in WORKS])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    rows = [row for work in WORKS if options.only in {None, work.network} for row in _rows(work)]
    result = {"bench": "codecs", "machine": machine(), "rows": rows}
    if options.only is None:
        save(result)
    print(json.dumps(result) if options.json else "\n".join(_line(row) for row in rows))
    return 0


def _rows(work: Work) -> list[dict[str, Any]]:
    runs = {case.name: [_run(work, case, seed) for seed in SEEDS] for case in CASES}
    return [_row(work, case, runs[case.name], runs[DENSE]) for case in CASES]


def _run(work: Work, case: Case, seed: int) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        federation = _federation(work, case, seed, Path(folder))
        try:
            federation.start()
            federation.until_done()
            run = _figures(federation.seen)
        finally:
            federation.stop()
    sys.stderr.write(f"{work.network}, {case.name}, seed {seed}: {run}\n")
    sys.stderr.flush()
    return run


def _federation(work: Work, case: Case, seed: int, root: Path) -> Federation:
    found = data_dir()
    if found is None or not (found / "fashion-mnist").is_dir():
        raise FileNotFoundError("the networks learn from fashion-mnist: set EDGE_DATA_DIR to a folder that holds it")
    split = _first(load_split("fashion-mnist", found, seed=seed), work)
    shards = dirichlet(split.y_train, DEVICES, alpha=ALPHA, seed=seed, min_examples=16)
    names = [f"dev-{i}" for i in range(DEVICES)]
    fleet.write_shards(split, dict(zip(names, shards, strict=True)), root)
    (root / "model.onnx").write_bytes(_model(work.network, split, seed))
    download = {} if case.down is None else {"download": {"codec": list(case.down)}}
    job = {"name": "codecs", "seed": seed, "rounds": case.rounds, "devices": DEVICES, "codec": list(case.up)}
    write_job(root, **job, lr=0.03, **download)
    kind = "embedded" if find_mosquitto() is None else "mosquitto"
    return Federation(root, start_broker(None, root / "broker", kind=kind), names)


def _first(split: Split, work: Work) -> Split:
    return replace(
        split,
        x_train=split.x_train[: work.train],
        y_train=split.y_train[: work.train],
        x_test=split.x_test[: work.judged],
        y_test=split.y_test[: work.judged],
    )


def _model(network: str, split: Split, seed: int) -> bytes:
    if network == "lenet5":
        return MODELS["lenet"](split.input_shape, split.classes, seed)
    torch.manual_seed(seed)
    return export(NETWORKS[network].build(), NETWORKS[network])


def _figures(seen: list[dict[str, Any]]) -> Run:
    rounds = [event for event in seen if event["event"] == "round_done"]
    first = rounds[:ROUNDS]
    return Run(
        accuracy=_mean_of_last(first),
        later=_mean_of_last(rounds),
        update_bytes=statistics.median(event["bytes"] for event in seen if event["event"] == "update"),
        total_bytes=sum(event["bytes_up"] + event["bytes_down"] for event in first),
    )


def _mean_of_last(rounds: list[dict[str, Any]]) -> float:
    return statistics.fmean(event["accuracy"] for event in rounds[-LAST:])


def _row(work: Work, case: Case, runs: list[Run], dense: list[Run]) -> dict[str, Any]:
    def mean(of: list[Run], name: str) -> float:
        return statistics.fmean(getattr(run, name) for run in of)

    lost = mean(dense, "accuracy") - mean(runs, "accuracy")
    lost_later = mean(dense, "accuracy") - mean(runs, "later")
    up, total = (mean(dense, name) / mean(runs, name) for name in ("update_bytes", "total_bytes"))
    return {
        "id": f"{work.network}: {case.name}",
        "work": f"{work.network}, {work.train} pictures, {ROUNDS} rounds, mean of {len(SEEDS)} seeds",
        "peer": "the same job, dense float32 both ways",
        "codec": {"up": case.up, "down": case.down},
        "accuracy": round(mean(runs, "accuracy"), 4),
        "accuracy_later": round(mean(runs, "later"), 4) if case.rounds > ROUNDS else None,
        "seeds": [round(run.accuracy, 4) for run in runs],
        "update_bytes": round(mean(runs, "update_bytes")),
        "points_below_dense": round(100 * lost, 2),
        "points_below_dense_later": round(100 * lost_later, 2) if case.rounds > ROUNDS else None,
        "up_ratio": round(up, 1),
        "total_ratio": round(total, 1),
        "met": (case.below is None or lost <= case.below)
        and (case.below_later is None or lost_later <= case.below_later)
        and up >= case.up_ratio
        and total >= case.total_ratio,
    }


def _line(row: dict[str, Any]) -> str:
    later = "" if row["accuracy_later"] is None else f", later {row['accuracy_later']:.4f}"
    return (
        f"{row['id']:<36} accuracy {row['accuracy']:.4f} ({-row['points_below_dense']:+.2f} points){later}; "
        f"an update {row['update_bytes']} B, {row['up_ratio']}x less; all traffic {row['total_ratio']}x less; "
        f"{'met' if row['met'] else 'missed'}"
    )


if __name__ == "__main__":
    sys.exit(main())
