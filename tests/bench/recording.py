"""What every bench says of its machine, and where a whole run is kept."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from support.data import REPOSITORY


def machine() -> dict[str, Any]:
    """Processor, cores, Python and system."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}


def save(result: dict[str, Any]) -> None:
    """Write tests/bench/results/DAY-MACHINE-BENCH.json."""
    day = datetime.now(UTC).strftime("%Y-%m-%d")
    name = "".join(c if c.isalnum() else "-" for c in str(result["machine"]["cpu"]).lower())
    path = REPOSITORY / "tests" / "bench" / "results" / f"{day}-{name}-{result['bench']}.json"
    path.write_text(as_lines(result), encoding="utf-8")


def as_lines(result: dict[str, Any]) -> str:
    """A result as JSON with one line a row, and one a case of a row that has them, so that a change shows as lines."""
    head = "".join(f"{json.dumps(key)}: {json.dumps(value)},\n" for key, value in result.items() if key != "rows")
    return "{" + head + '"rows": [\n' + ",\n".join(_row(row) for row in result["rows"]) + "\n]}\n"


def _row(row: dict[str, Any]) -> str:
    if "cases" not in row:
        return json.dumps(row)
    short = json.dumps({key: value for key, value in row.items() if key != "cases"})
    cases = ",\n  ".join(json.dumps(case) for case in row["cases"])
    return f'{short[:-1]}, "cases": [\n  {cases}]}}'
