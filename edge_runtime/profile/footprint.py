"""The peak resident set of a process that trains a plan and does nothing else: a child of its own.

`python -m edge_runtime.profile.footprint PLAN THREADS ISA` is that child.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.board import memory_peak_kb
from edge_runtime.engine import Engine
from edge_runtime.errors import LocalError
from edge_runtime.plan import ROLE_BATCH, ROLE_FROZEN, ROLE_TRAINED, Plan, read_plan

STEPS = 2


class ChildFailed(LocalError):
    """The process that was to train the plan ended without an answer."""


@dataclass(frozen=True)
class Footprint:
    """Resident bytes.

    Attributes:
        idle_bytes: Peak of the child before it reads the plan: the interpreter, numpy, the engine's code.
        plan_bytes: What the plan asks for: its file, and an engine's arena, constants and scratch.
        measured_bytes: VmHWM of the child after two steps of training.
    """

    idle_bytes: int
    plan_bytes: int
    measured_bytes: int

    @property
    def predicted_bytes(self) -> int:
        """Idle and plan together."""
        return self.idle_bytes + self.plan_bytes


def measure_footprint(plan: Plan, threads: int, isa: str) -> Footprint:
    """Train the plan in a child and compare with what it promises.

    Raises:
        ChildFailed: Says how the child ended; killed by signal 9 is what a board without memory does.
    """
    with tempfile.NamedTemporaryFile(suffix=".plan") as file:
        file.write(plan.data)
        file.flush()
        command = [sys.executable, "-m", "edge_runtime.profile.footprint", file.name, str(threads), isa]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        why = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise ChildFailed(f"the process that measures memory failed: {why[0]}; is there enough memory for the plan?")
    said = json.loads(done.stdout)
    return Footprint(said["idle_kb"] << 10, len(plan.data) + plan.memory_bytes(threads), said["peak_kb"] << 10)


def _train(path: Path, threads: int, isa: str) -> None:
    engine = Engine(read_plan(path.read_bytes()), threads=threads, isa=isa)
    # Written in place: arrays made first would be counted too.
    for role in (ROLE_TRAINED, ROLE_FROZEN, ROLE_BATCH):
        for name, tensor in engine.plan.named(role).items():
            engine.view(name)[...] = 0.01 if tensor.dtype == "float32" else 0
    for _ in range(STEPS):
        engine.step()


if __name__ == "__main__":
    idle_kb = memory_peak_kb()
    _train(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    sys.stdout.write(json.dumps({"idle_kb": idle_kb, "peak_kb": memory_peak_kb()}))
