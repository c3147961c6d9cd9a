"""Devices and a gateway without a wire between them: real plans, tasks, slots, checks and folds."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coordinator.jobfile import load_job
from coordinator.program import Program, build_program, make_version
from coordinator.results import fold
from coordinator.store import JournalUpdate, Version
from coordinator.tasks import attempt_turn, make_task
from coordinator.updates import check_update
from edge_runtime.plan import Plan, read_plan
from edge_runtime.slots import Slots
from edge_runtime.task import run_task
from edge_runtime.tensors import decode_tensors
from edge_runtime.wire.tasks import Carry, Task, format_task, parse_task
from support.tiny_job import JOB, made_up, make_site

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.data import Dataset
    from edge_runtime.task import Update

RUN = "0123456789abcdef"
SHARDS = {"dev-a": made_up(0, 24), "dev-b": made_up(1, 8), "dev-c": made_up(2, 40)}


def program_of(tmp_path: Path, *, method: str = "scaffold", **training: object) -> Program:
    make_site(tmp_path)
    lines = {"epochs": 2, "batch": 8, "lr": 0.1, **training}
    codec = lines.pop("codec", None)
    job = JOB[: JOB.index("[method]")] + f'[method]\nname = "{method}"\n[training]\n'
    job += "".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items()) + JOB[JOB.index("[round]") :]
    job += f"[upload]\ncodec = {json.dumps(codec)}\n" if codec else ""
    path = tmp_path / "home" / "job.toml"
    path.write_text(job)
    return build_program(load_job(path))


@dataclass
class Federation:
    """Devices and a gateway without a wire between them: real tasks, slots, checks and folds."""

    program: Program
    directory: Path
    shards: dict[str, Dataset] = field(default_factory=lambda: dict(SHARDS))
    counted: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    latest: Version = field(init=False)

    def __post_init__(self) -> None:
        self.latest = make_version(1, self.program.weights, {})
        self.slots = {name: Slots(self.directory / name) for name in self.shards}

    def task(self, device: str, attempt: int = 1) -> Task:
        turn, carry = attempt_turn(self.latest.version, attempt), Carry(RUN, self.counted.get(device))
        return parse_task(format_task(make_task(self.program, self.latest, device, turn, carry)))

    def plans(self) -> dict[str, Plan]:
        return {file.sha256: read_plan(file.data) for file in self.program.stage(1).files}

    def train(self, device: str, attempt: int = 1) -> tuple[str, Update]:
        task, weights = self.task(device, attempt), decode_tensors(self.latest.weights)[0]
        update = run_task(
            task, self.plans(), weights, self.shards[device], slots=self.slots[device], warn=self.warnings.append
        )
        check_update(update.data, task, self.program.stage(1).layout, len(self.shards[device]))
        return task.task, update

    def round(self, *devices: str, refused: tuple[str, ...] = ()) -> None:
        """One round; updates of the refused do not count, and neither do first tries of theirs."""
        journal = []
        for device in devices or sorted(self.shards):
            name, update = self.train(device)
            if device in refused:
                continue
            number = self.latest.version
            row = (number, device, name, number, "uid", update.sha256, update.examples, update.loss, update.data)
            journal.append(JournalUpdate(*row))
            self.counted[device] = name
        self.latest = fold(self.program, journal, self.latest, lambda _: b"")
