"""The peak of a process that does nothing but train with one plan, as Linux counts it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

CHILD = """\
import json, sys
import numpy, paho.mqtt.client  # what a client has loaded
from edge_runtime import client, task
from edge_runtime.engine import Engine
from edge_runtime.plan import ROLE_BATCH, ROLE_FROZEN, ROLE_SCALAR, ROLE_TRAINED, read_plan

def status(key):
    line = next(line for line in open("/proc/self/status") if line.startswith(key))
    return 1024 * int(line.split()[1])

plan = read_plan(open(sys.argv[1], "rb").read())
idle = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak starts from here
engine = Engine(plan, threads=int(sys.argv[2]))
for role in (ROLE_TRAINED, ROLE_FROZEN, ROLE_SCALAR, ROLE_BATCH):
    for name in plan.named(role):
        engine.view(name)[...] = 0 if engine.view(name).dtype != numpy.float32 else 0.01
for _ in range(3):
    engine.step()
print(json.dumps({"idle_bytes": idle, "peak_bytes": status("VmHWM")}))
"""


@dataclass(frozen=True)
class Peak:
    """Resident bytes of a process: with everything imported, and at most while it trained."""

    idle_bytes: int
    peak_bytes: int

    @property
    def training_bytes(self) -> int:
        """What training added."""
        return self.peak_bytes - self.idle_bytes


def peak_of(plan: bytes, folder: Path, threads: int = 1) -> Peak:
    """Three steps of a plan in a process of their own."""
    path = folder / "measured.plan"
    path.write_bytes(plan)
    out = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), str(threads)], check=True, capture_output=True, text=True
    )
    return Peak(**json.loads(out.stdout))
