"""What is to be profiled: a plan file, a model, or what a device trains; each becomes a plan, with data or without."""

from __future__ import annotations

import contextlib
import importlib
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.client_config import read_config
from edge_runtime.data import Dataset, load_dataset
from edge_runtime.errors import LocalError
from edge_runtime.kept import read_kept
from edge_runtime.plan import ROLE_BATCH, ROLE_TRAINED, Plan, read_plan
from edge_runtime.slots import SLOTS_NAME
from edge_runtime.state_directory import kept_plans

if TYPE_CHECKING:
    from collections.abc import Sequence

MODEL_SUFFIX = ".onnx"


class NothingToProfile(LocalError):
    """The argument is none of the things that can be profiled."""


class NotCompiled(LocalError):
    """The model could not be made into a plan."""


@dataclass(frozen=True)
class Source:
    """A plan, local data to feed it (None: random numbers), where it came from in words, and a device's last codec."""

    plan: Plan
    dataset: Dataset | None
    origin: str
    threads: int = 1
    codec: tuple[str, ...] | None = None


def open_source(target: Path, data: Path | None, build_flags: Sequence[str]) -> Source:
    """Find the plan behind a path.

    Args:
        target: A plan file; an ONNX model, which is compiled first (gateway only); a client's configuration (.toml), or
            its state directory: the plan it trained last.
        data: A directory of examples; None for the configuration's, or random numbers.
        build_flags: Flags of `edge-runtime plan build`, for a model.

    Raises:
        NothingToProfile: The path is none of these.
        NotCompiled: The compiler refused the model; it has said why.
        PlanError, ConfigError, DataError, OSError: What is there cannot be read.
    """
    if build_flags and target.suffix != MODEL_SUFFIX:
        raise NothingToProfile(f"{' '.join(build_flags)}: flags of `plan build` go with a model, {target} is none")
    dataset = None if data is None else load_dataset(data)
    if target.suffix == MODEL_SUFFIX:
        return Source(read_plan(_compile(target, build_flags)), dataset, f"model {target}")
    if target.suffix == ".toml":
        config = read_config(target, {})
        plan = _trained_last(config.state)
        # What trains above a frozen prefix takes features, which no data set holds.
        if dataset is None and set(plan.named(ROLE_BATCH)) == {"x", "y"}:
            dataset = load_dataset(config.data)
        return Source(plan, dataset, f"client {config.device}", config.threads, _codec_of(config.state))
    if target.is_dir():
        return Source(_trained_last(target), dataset, f"state directory {target}", codec=_codec_of(target))
    return Source(read_plan(target.read_bytes()), dataset, f"plan {target}")


def _codec_of(state: Path) -> tuple[str, ...] | None:
    """The codec of a device's last update, if it carries something over."""
    kept = read_kept(state / SLOTS_NAME)
    return None if kept is None else kept.stages


def _trained_last(state: Path) -> Plan:
    """The plan that was used last, of those that train anything: a frozen prefix has a plan too."""
    for plan in map(read_plan, kept_plans(state)):
        if plan.named(ROLE_TRAINED):
            return plan
    raise NothingToProfile(
        f"{state} holds no plan of a device: give a plan, a model, or the state directory of a client that has been "
        "sent a task"
    )


def _compile(model: Path, flags: Sequence[str]) -> bytes:
    """What `edge-runtime plan build` makes of the model; its report goes to stderr.

    The compiler is found by name: a board has none, and nothing here may import it.
    """
    compiler = importlib.import_module("models.compiler.cli")
    with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stdout(sys.stderr):
        plan = Path(directory) / "model.plan"
        if compiler.main(["build", str(model), "--output", str(plan), *flags]) != 0:
            raise NotCompiled(f"{model} was not compiled; the line above says why")
        return plan.read_bytes()
