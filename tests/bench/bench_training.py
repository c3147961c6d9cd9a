"""`edge-runtime bench training`: a training step, and what it takes to have one, beside the other programs that train.

T11-T17  a step (forward, backward, SGD with momentum) of seven networks: torch eager in two memory formats and
         compiled, onnxruntime-training, MNN and dlib
T18      a step of the last block, the frozen layers below it computed in it
T19      the same on features that were kept, beside torch's whole step
T22      temporaries of a step beside the tensors that torch saves: a ratio of bytes, the smaller the better
T23      the machine code that trains, stripped
T24      a fresh process: import and first step
T25      matrix products of the shapes that convolutions and classifiers make, through plans of one operation

One thread, float32. In T11-T17 every program is a process of its own. Blocks of all take turns, a time is the median
over the blocks of processor time a step, the spread of a ratio is that of the blocks. The bound of a ratio is the
peer's time over the multiply-adds at the peak rate of this machine (T24: over a process that imports numpy); that peak
is the best rate that any large product reached in the same run, ours or torch's. Our share of the bound counts direct
products, so that Winograd can exceed one. `make bench-peers` installs the peers; one that is absent, or cannot train a
network, says so in its row. The SGD of onnxruntime-training has no momentum: its step does less.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

import torch

from bench.bench_freeze import t18_rows, t19_rows
from bench.bench_memory import SAVED_TARGETS, saved_row
from bench.recording import machine, save
from bench.training_cold import cold_row, size_rows
from bench.training_products import peak_rate, product_row
from bench.training_steps import WORKS, rows_of
from edge_runtime import _core

if TYPE_CHECKING:
    from collections.abc import Callable

    Measure = Callable[[float], list[dict[str, Any]]]


def main(argv: list[str] | None = None) -> int:
    """Run the bench, print a table or one JSON object; a whole run is kept in tests/bench/results/."""
    measures = _measures()
    parser = argparse.ArgumentParser(
        prog="edge-runtime bench training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="ID", choices=list(measures), help=f"one row: {', '.join(measures)}")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    peak = peak_rate()
    rows: list[dict[str, Any]] = []
    for wanted, measure in measures.items():
        if options.only in (None, wanted):
            sys.stderr.write(f"{wanted} ...\n")
            rows += measure(peak)
    result = {
        "bench": "training",
        "machine": {**machine(), "isa": _core.info()["isa"], "peak_gflops": round(2e-9 * peak, 1)},
        "rows": rows,
    }
    if options.only is None:
        save(result)
    print(json.dumps(result) if options.json else _table(rows))
    return 0


def _measures() -> dict[str, Measure]:
    """Per row, what measures it, given the peak in multiply-adds a second."""
    steps: dict[str, Measure] = {work.row: (lambda peak, work=work: rows_of(work, peak)) for work in WORKS}
    return {
        **steps,
        "T18": t18_rows,
        "T19": t19_rows,
        "T22": lambda _: [saved_row(name) for name in SAVED_TARGETS],
        "T23": lambda _: size_rows(),
        "T24": lambda _: [cold_row()],
        "T25": lambda peak: [product_row(peak)],
    }


COLUMNS = (
    ("ours_s", 10),
    ("peer_s", 10),
    ("ratio", 8),
    ("spread", 14),
    ("bound", 8),
    ("share_of_bound", 7),
    ("target", 8),
)


def _table(rows: list[dict[str, Any]]) -> str:
    heads = ("ours us", "peer us", "ratio", "spread", "bound", "share", "target")
    lines = [f"{'row':5}" + "".join(f"{h:>{w}}" for h, (_, w) in zip(heads, COLUMNS, strict=True)) + "  work, peer"]
    for row in rows:
        cells = "".join(f"{_cell(row, key):>{width}}" for key, width in COLUMNS)
        lines.append(f"{row['id']:5}{cells}  {row['work']}, {row['peer']}{_remark(row)}")
        lines += [
            f"{'':15}{shape['m']:6}{shape['n']:6}{shape['k']:6} {shape['b']}{shape['ours_gflops']:8.1f} GFLOP/s, "
            f"torch {shape['torch_gflops']:6.1f}, ratio {shape['ratio']:.2f} of {shape['bound']:.2f}"
            for shape in row.get("shapes", [])
        ]
    return "\n".join(lines)


def _cell(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None:
        return "-"
    if key == "spread":
        return f"{value[0]:g}..{value[1]:g}"
    return f"{1e6 * value:.1f}" if key.endswith("_s") else f"{value:g}"


def _remark(row: dict[str, Any]) -> str:
    missed = "" if row.get("met", True) else " (missed)"
    said = row.get("install") or row.get("failed")
    for unit, scale, name in (("mb", 1.0, "MB"), ("bytes", 2.0**20, "MiB")):
        if f"peer_{unit}" in row:
            ours, theirs = row[f"ours_{unit}"] / scale, row[f"peer_{unit}"] / scale
            return f": {ours:.3g} {name}, peer {theirs:.4g} {name}{missed}"
    return f" ({said})" if said else missed


if __name__ == "__main__":
    sys.exit(main())
