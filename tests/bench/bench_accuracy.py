"""`edge-runtime bench accuracy`: what a network learns from real pictures with us and with torch trained alike.

LeNet-5 on Fashion-MNIST must reach 0.90, and ResNet-8 on 12,000 pictures of CIFAR-10 must come within a point of torch:
the mean of three seeds, each with the same start, batches and learning rates for both. Ours is judged as a user would
run it, exported to ONNX and executed by ONNX Runtime.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from bench.recording import machine, save
from support.data import data_dir
from support.real_training import Recipe, cifar10, fashion_mnist, train_ours, train_torch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.real_training import Pictures

SEEDS = (1, 2, 3)


@dataclass(frozen=True)
class Work:
    """A network, its pictures, and what is asked: an accuracy, or most points below torch's."""

    row: str
    data: str
    read: Callable[[Path], Pictures]
    recipe: Recipe
    least: float | None = None
    below: float | None = None


WORKS = (
    Work("lenet5", "fashion-mnist", fashion_mnist, Recipe("lenet5", 8, 32, 0.02), least=0.90),
    Work("resnet8", "cifar10", cifar10, Recipe("resnet8", 8, 32, 0.1), below=0.01),
)


def main(argv: list[str] | None = None) -> int:
    """Run the bench, print a table or one JSON object; a whole run is kept in tests/bench/results/."""
    parser = argparse.ArgumentParser(prog="edge-runtime bench accuracy", description=__doc__)
    parser.add_argument("--only", metavar="ID", choices=[work.row for work in WORKS])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = [_row(work) for work in WORKS if options.only in {None, work.row}]
    result = {"bench": "accuracy", "machine": machine(), "rows": rows}
    if options.only is None:
        save(result)
    print(json.dumps(result) if options.json else "\n".join(_line(row) for row in rows))
    return 0


def _row(work: Work) -> dict[str, Any]:
    root = data_dir()
    if root is None or not (root / work.data).is_dir():
        raise FileNotFoundError(f"{work.row} learns from {work.data}: set EDGE_DATA_DIR to a folder that holds it")
    pictures = work.read(root / work.data)
    runs: dict[str, list[tuple[float, float]]] = {"ours": [], "torch": []}
    for seed in SEEDS:
        for who, train in (("ours", train_ours), ("torch", train_torch)):
            begin = time.process_time()
            runs[who].append((train(work.recipe, pictures, seed), time.process_time() - begin))
            sys.stderr.write(f"{work.row}, seed {seed}, {who}: {runs[who][-1][0]:.4f}\n")
    ours, theirs = (statistics.fmean(accuracy for accuracy, _ in runs[who]) for who in ("ours", "torch"))
    enough = work.least is None or ours >= work.least
    return {
        "id": work.row,
        "work": f"{work.row} on {work.data}, {work.recipe.epochs} epochs, mean of {len(SEEDS)} seeds",
        "peer": f"torch {torch.__version__}",
        "ours": round(ours, 4),
        "theirs": round(theirs, 4),
        "ours_s": round(statistics.median(s for _, s in runs["ours"]), 1),
        "peer_s": round(statistics.median(s for _, s in runs["torch"]), 1),
        "seeds": {who: [round(accuracy, 4) for accuracy, _ in figures] for who, figures in runs.items()},
        "met": enough and (work.below is None or ours >= theirs - work.below),
    }


def _line(row: dict[str, Any]) -> str:
    verdict = "met" if row["met"] else "missed"
    ours, theirs = f"{row['ours']:.4f} in {row['ours_s']} s", f"{row['theirs']:.4f} in {row['peer_s']} s"
    return f"{row['work']}: {ours}, {row['peer']} {theirs}, {verdict}"


if __name__ == "__main__":
    sys.exit(main())
