"""`make chaos SEEDS=20 SECONDS=600`: one long disturbed job a seed, some at a time; a line a seed in the bench results.

Exit code 0 where every job ended at the undisturbed one's bits and every update counted once, else 1; what a failed
seed left behind stays below --keep.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.recording import machine, save

from chaos.run import BUFFERED, CARRYING, DOWNLOAD, Outcome, disturbed
from chaos.schedule import ALL, draw
from coordinator.broker import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable

# A round takes longer than this while faults come down and less without, so that the job outlasts its faults.
SECONDS_A_ROUND = 2.0
EPOCHS = 10
SCHEDULES = {"fedbuff": BUFFERED, "fedasync": {"name": "fedasync"}}


def main(argv: list[str] | None = None) -> int:
    """Run the seeds, print a line for each as it ends, and write the results where --save says so."""
    options = _parser().parse_args(argv)
    names = [f"dev-{number}" for number in range(options.devices)]
    rounds = options.rounds or max(4, round(options.seconds / SECONDS_A_ROUND))
    job: dict[str, Any] = {"devices": options.devices, "rounds": rounds, "epochs": EPOCHS, "codec": CARRYING}
    job["download"] = DOWNLOAD
    job |= {"schedule": SCHEDULES[options.schedule]} if options.schedule != "sync" else {}
    options.keep.mkdir(parents=True, exist_ok=True)
    calm = None if "schedule" in job else disturbed(_fresh(options.keep / "calm"), 0, (), **job)
    if calm is not None:
        _say({"undisturbed": calm.digests[-1], "seconds": calm.seconds, "wrong": calm.wrong})

    def one(seed: int) -> dict[str, Any]:
        root = _fresh(options.keep / f"seed-{seed}")
        row = _row(seed, calm, lambda: disturbed(root, seed, draw(seed, options.seconds, names, options.kinds), **job))
        if row["passed"]:
            shutil.rmtree(root)
        return row

    seeds = range(options.first_seed, options.first_seed + options.seeds)
    with ThreadPoolExecutor(options.slots) as slots:
        rows = [_say(each.result()) for each in as_completed([slots.submit(one, seed) for seed in seeds])]
    rows.sort(key=lambda row: int(row["seed"]))
    passed = sum(row["passed"] for row in rows)
    _say({"passed": passed, "of": len(rows)})
    if options.save:
        fixed = {"seconds_of_faults": options.seconds, "slots": options.slots, **job}
        save({"bench": f"chaos-{options.schedule}", "machine": machine(), "job": fixed, "passed": passed, "rows": rows})
    return 0 if passed == len(rows) and not (calm and calm.wrong) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "chaos", description="Disturb whole jobs and compare them with the undisturbed one."
    )
    add = parser.add_argument
    add("--seeds", type=int, default=20, help="how many")
    add("--first-seed", type=int, default=1)
    add("--seconds", type=float, default=600.0, help="for how long faults strike")
    add("--rounds", type=int, help=f"of every job; by default one for {SECONDS_A_ROUND:g} s, as long as faults last")
    add("--slots", type=int, default=2, help="jobs at a time")
    add("--devices", type=int, default=4)
    add(
        "--schedule",
        choices=("sync", *SCHEDULES),
        default="sync",
        help="buffered ones are judged by their ledger alone",
    )
    add("--kinds", nargs="+", choices=ALL, default=ALL, metavar="KIND", help=f"of {', '.join(ALL)}")
    add("--keep", type=Path, default=Path("build/chaos"), help="where jobs run; failed ones are kept")
    add("--save", action="store_true", help="write tests/bench/results/DAY-MACHINE-chaos-SCHEDULE.json")
    return parser


def _row(seed: int, calm: Outcome | None, run: Callable[[], Outcome]) -> dict[str, Any]:
    began_s = time.monotonic()
    try:
        outcome = run()
    except (AssertionError, BrokerError, OSError) as error:  # the job did not end; the other seeds still can
        return {
            "seed": seed,
            "passed": False,
            "seconds": round(time.monotonic() - began_s, 1),
            "why": f"{type(error).__name__}: {error}".splitlines()[0],
        }
    same = calm is None or outcome.digests == calm.digests
    return {
        "seed": seed,
        "passed": same and not outcome.wrong,
        "seconds": outcome.seconds,
        "same_bits": None if calm is None else same,
        "updates": outcome.updates,
        "wrong": outcome.wrong,
        "faults": outcome.faults,
        "ended_on_a_full_disk": dict(Counter(outcome.ended)),
        "skipped": outcome.skipped,
    }


def _fresh(directory: Path) -> Path:
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    return directory.resolve()


def _say(row: dict[str, Any]) -> dict[str, Any]:
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()
    return row


if __name__ == "__main__":
    sys.exit(main())
