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
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
