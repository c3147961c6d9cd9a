"""`edge-runtime bench fleet`: one coordinator and very many devices."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from bench.fleet_load import Load, run_load
from bench.recording import machine

LARGE_HIDDEN, SMALL_HIDDEN = 833, 33


def main(argv: list[str] | None = None) -> int:
    """Run the bench, print a table or one JSON object."""
    parser = argparse.ArgumentParser(prog="edge-runtime bench fleet", description=__doc__)
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="edge-bench-") as folder:
        hidden = SMALL_HIDDEN if options.small else LARGE_HIDDEN
        found = run_load(Load(options.devices, options.rounds, hidden), Path(folder))
    print(json.dumps({"bench": "fleet", "machine": machine(), "rows": [found]}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
