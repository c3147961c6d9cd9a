"""`edge-runtime bench fleet`: what a coordinator takes and what it costs, in real processes on one machine.

T30  a whole job: 4 clients, 5 rounds, a convolutional network of 105,866 parameters on digits; the peer is Flower
T31  many devices, every one the real wire session on its own MQTT connection, through mosquitto with our configuration:
     updates of 10 KB and of 250 KB a second, journalled, acknowledged and folded, and the coordinator's peak memory

A round's updates are all offered at once. Rates are those of the windows from a round's first offer to its last `done`;
processor time is the coordinator's, the broker's and the drivers' in the same windows: together they say what a machine
of so many cores can do, and `updates_a_coordinator_core_s` what a coordinator with a core to itself takes. The bound is
mosquitto alone, moving the same bytes from as many sessions in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.fleet_bound import run_bound
from bench.fleet_job import job_row
from bench.fleet_load import Load, run_load
from bench.recording import as_lines, machine, save

# Units of the hidden layer: updates of 10 KB and of 250 KB.
SMALL, LARGE = 33, 833
FEW = 100
UPDATES_A_S, PEAK_MB = 5000.0, 200.0
# By what a peak may grow from 100 devices to 1,000 and count as flat, and for every 1,000 more: names, tasks and places
# in the line take 2 to 4 KB a device.
FLAT, FLAT_A_THOUSAND = 1.10, 0.04


def main(argv: list[str] | None = None) -> int:
    """Run the bench, print a table or one JSON object; a whole run is kept in tests/bench/results/."""
    parser = argparse.ArgumentParser(prog="edge-runtime bench fleet", description=__doc__)
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["T30", "T31"])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the rows there too")
    options = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    load_average = round(os.getloadavg()[0], 1)  # other work takes from rates, and from caches
    with tempfile.TemporaryDirectory(prefix="edge-bench-") as folder:
        root = Path(folder)
        if options.only != "T31":
            rows.append(job_row(root / "job"))
        if options.only != "T30":
            rows += _loads(options.devices, options.rounds, root)
    result = {"bench": "fleet", "machine": machine(), "load_average_before": load_average, "rows": rows}
    if options.only is None:
        save(result)
    if options.output is not None:
        options.output.write_text(as_lines(result), encoding="utf-8")
    print(json.dumps(result) if options.json else _table(rows))
    return 0


def _loads(devices: int, rounds: int, root: Path) -> list[dict[str, Any]]:
    few = run_load(Load(min(FEW, devices), rounds, LARGE), root / "few")
    small = _bounded(Load(devices, rounds, SMALL), root / "small")
    large = _bounded(Load(devices, rounds, LARGE), root / "large")
    grown = large["coordinator_peak_mb"] / few["coordinator_peak_mb"]
    allowed = FLAT + FLAT_A_THOUSAND * max(0, devices - 1000) / 1000
    flat = large["coordinator_peak_mb"] <= PEAK_MB and grown <= allowed
    return [
        {
            "id": "T31",
            "work": "10 KB updates",
            **small,
            "target": UPDATES_A_S,
            "met": small["updates_a_s"] >= UPDATES_A_S,
        },
        {"id": "T31", "work": "250 KB updates, few devices", **few},
        {"id": "T31", "work": "250 KB updates", **large, "target_mb": PEAK_MB, "grown": round(grown, 2), "met": flat},
    ]


def _bounded(load: Load, root: Path) -> dict[str, Any]:
    found = run_load(load, root)
    return found | run_bound(load.devices, found["update_bytes"], found["updates"], root / "bound")


def _table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        lines.append(f"{row['id']} {row['work']}")
        lines += [f"    {key:<28} {value}" for key, value in row.items() if key not in {"id", "work", "cases"}]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
