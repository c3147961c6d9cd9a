"""`edge-runtime bench kernels`: the kernels outside plans beside what a user would call instead.

Ours and every peer take turns in one process, with one thread and with two; a time is the median over the turns of
processor time a call with one thread, and of the clock with two. A row is one peer over a grid of cases: geometric mean
and worst ratio, and our share of the bound, which is bytes moved over the bandwidth or multiply-adds over the rate that
this machine reaches in the same run.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

import torch

from bench import kernels_coders, kernels_fold, kernels_low_rank, kernels_selection, kernels_softmax
from bench.kernel_rows import Machine
from bench.recording import machine, save
from edge_runtime.kernels import info
from edge_runtime.profile.peak import measure_peak

if TYPE_CHECKING:
    from collections.abc import Callable

    Measure = Callable[[Machine], list[dict[str, Any]]]

# Row -> what measures it; the modules are bench/kernels_*.py, one a kernel.
MEASURES: dict[str, Measure] = {
    **kernels_selection.MEASURES,
    **kernels_softmax.MEASURES,
    **kernels_low_rank.MEASURES,
    **kernels_coders.MEASURES,
    **kernels_fold.MEASURES,
}


def main(argv: list[str] | None = None) -> int:
    """Run the bench, print a table or one JSON object; a whole run is kept in tests/bench/results/."""
    parser = argparse.ArgumentParser(
        prog="edge-runtime bench kernels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="ID", choices=list(MEASURES), help=f"one row: {', '.join(MEASURES)}")
    parser.add_argument("--threads", type=int, choices=(1, 2), help="one thread or two; both where not said")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    for threads in (1, 2) if options.threads is None else (options.threads,):
        rows += _measure(threads, options.only)
    result = {"bench": "kernels", "machine": {**machine(), "isa": info()["isa"]}, "rows": rows}
    if options.only is None and options.threads is None:
        save(result)
    print(json.dumps(result) if options.json else table(rows))
    return 0


def _measure(threads: int, only: str | None) -> list[dict[str, Any]]:
    torch.set_num_threads(threads)
    here = Machine(threads, measure_peak(threads, info()["isa"]))
    rows: list[dict[str, Any]] = []
    for wanted, measure in MEASURES.items():
        if only in (None, wanted):
            sys.stderr.write(f"{wanted}, {threads} thread(s) ...\n")
            rows += [{**row, "threads": threads} for row in measure(here)]
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for people: one line a row, one indented line a case."""
    lines = []
    for row in rows:
        missed = "" if row["met"] else "  MISSED"
        lines.append(
            f"{row['id']:4} {row['threads']} thread(s)  {row['work']}, {row['peer']}: "
            f"geometric mean {row['ratio']:g}x, worst {row['worst']:g}x, "
            f"{100 * row['share_of_bound']:.0f} % of the bound{missed}"
        )
        lines += [_case(case) for case in row["cases"]]
    return "\n".join(lines)


def _case(case: dict[str, Any]) -> str:
    target = "-" if case["target"] is None else f"{case['target']:g}x"
    extra = "".join(f", {name} {value:.4g}" for name, value in case.get("errors", {}).items())
    return (
        f"       {case['case']:28} ours {1e6 * case['ours_s']:10.1f} us, peer {1e6 * case['peer_s']:10.1f} us, "
        f"ratio {case['ratio']:7.2f} ({case['spread'][0]:g}..{case['spread'][1]:g}), target {target}, "
        f"bound {case['bound']:g}x{extra}"
    )


if __name__ == "__main__":
    sys.exit(main())
