"""`edge-runtime demo`: real devices, a real broker and real data on one machine, in one command."""

from __future__ import annotations

import argparse
import importlib
import math
import os
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordinator.broker import BrokerError, RunningBroker, start_broker
from coordinator.broker.probe import without_password
from coordinator.demo import fleet
from coordinator.demo.datasets import Split, load_split
from coordinator.demo.partition import by_owner, dirichlet
from coordinator.demo.report import Board, Result, Round, last_line, summary, write_report
from coordinator.demo.view import LiveView, PlainView
from edge_runtime.data import DataError
from models.compiler import ModelError, weights_of
from models.zoo import MODELS, ZooError, default_model

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

DEFAULT_DEVICES = 4
MAX_DEVICES = 100_000
MIN_EXAMPLES = 16  # of a device, where there are enough; see _least_examples
SITE = "demo"


@dataclass(frozen=True)
class Recipe:
    """Local training settings that suit a kind of model; every one can be set on the command line."""

    rounds: int
    epochs: int
    batch: int
    lr: float
    momentum: float
    weight_decay: float


RECIPES = {
    "lenet": Recipe(rounds=15, epochs=2, batch=32, lr=0.03, momentum=0.9, weight_decay=1e-4),
    "cnn1d": Recipe(rounds=20, epochs=2, batch=32, lr=0.05, momentum=0.9, weight_decay=1e-4),
    "mlp": Recipe(rounds=20, epochs=1, batch=32, lr=0.02, momentum=0.9, weight_decay=1e-4),
}


def main(argv: list[str] | None = None) -> int:
    """Run the demo; returns 0 when the job is done, 2 for bad input, 3 when a process failed."""
    options = _parser().parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)  # else the devices and the broker would outlive the demo
    if options.report:
        importlib.import_module("matplotlib.figure")  # missing, it should be missed before the work, not after
    try:
        result = _run(options)
        if options.report:
            write_report(result, options.report)
    except (DataError, ModelError, ZooError, BrokerError, OSError) as error:
        print(f"edge-runtime demo: {error}", file=sys.stderr)
        return 2
    except fleet.ProcessDied as error:
        print(f"edge-runtime demo: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as stop:
        print("edge-runtime demo: stopped", file=sys.stderr)
        return 128 + (stop.args[0] if stop.args else signal.SIGINT)
    print(summary(result), file=sys.stderr if options.json else sys.stdout)
    if options.json:
        print(last_line(result), flush=True)
    return 0


def _interrupt(number: int, _frame: object) -> None:
    """Unwind as for Ctrl-C, so that every process started here is stopped."""
    raise KeyboardInterrupt(number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edge-runtime demo", description=__doc__)
    add = parser.add_argument
    add("--data", default="digits", help="digits, or the name of a folder under --data-dir (default: digits)")
    add("--data-dir", type=Path, default=_data_dir(), help="where data sets lie (default: EDGE_DATA_DIR)")
    add(
        "--devices", type=_up_to(MAX_DEVICES), help="device processes (default: 4, or one a natural client of the data)"
    )
    add("--rounds", type=_up_to(1_000_000), help="federated rounds (default: by model)")
    add("--model", help=f"{', '.join(MODELS)}, or the path of an ONNX file (default: by the data's shape)")
    add("--alpha", type=_above_zero(1e6), default=0.5, help="Dirichlet concentration of the label skew (default: 0.5)")
    add("--epochs", type=_up_to(10_000), help="local epochs a round (default: by model)")
    add("--batch", type=_up_to(65_536), help="batch size (default: by model)")
    add("--lr", type=_above_zero(1000), help="local learning rate (default: by model)")
    add(
        "--broker",
        help="mqtt://host:port, 'mosquitto' or 'embedded' (default: mosquitto if installed, else embedded)",
    )
    add(
        "--seed",
        type=_up_to(2**63 - 1, low=0),
        default=1,
        help="of the data split, the first weights and every batch (default: 1)",
    )
    add("--report", type=Path, metavar="DIR", help="write report.json and curves.png there")
    add("--work", type=Path, metavar="DIR", help="keep job, data shards, logs and the model there")
    add(
        "--json",
        action="store_true",
        help="last line on standard output is a JSON summary; the rest to standard error",
    )
    return parser


def _data_dir() -> Path | None:
    named = os.environ.get("EDGE_DATA_DIR")
    beside = Path("../shared/data")
    return Path(named) if named else beside if beside.is_dir() else None


def _up_to(high: int, *, low: int = 1) -> Callable[[str], int]:
    """A whole number in low .. high, the limits of the job file."""

    def whole_number(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is not in {low} .. {high}")
        return value

    return whole_number


def _above_zero(high: float) -> Callable[[str], float]:
    """A number above 0, at most `high`."""

    def number(text: str) -> float:
        value = float(text)
        if math.isnan(value) or not 0 < value <= high:
            raise argparse.ArgumentTypeError(f"{value} is not above 0 and at most {high:g}")
        return value

    return number


def _run(options: argparse.Namespace) -> Result:
    started_s = time.monotonic()
    if options.report:
        _usable("--report", options.report)
    split = load_split(options.data, options.data_dir, options.seed)
    shards = _shards(split, options)
    model_name, model = _model(options.model, split, options.seed)
    recipe = RECIPES.get(model_name, RECIPES["lenet"])
    with ExitStack() as stack:
        work = _work(options.work, stack)
        fleet.write_shards(split, shards, work)
        (work / "model.onnx").write_bytes(model)
        (work / "job.toml").write_text(_job(options, recipe, len(shards)))
        broker = stack.enter_context(_broker(options.broker, work / "broker"))
        rounds = options.rounds or recipe.rounds
        view: LiveView | PlainView = PlainView(sys.stderr if options.json else sys.stdout)
        if sys.stdout.isatty() and not options.json:
            view = LiveView(rounds)
        stack.enter_context(view)
        address = without_password(broker.url)
        view.note(
            f"{split.name}: {len(split.y_train)} examples on {len(shards)} devices, {broker.version} on {address}"
        )
        done, seen, boards = _watch(view, work, broker.url, {name: len(rows) for name, rows in shards.items()})
    return Result(
        data=split.name,
        model=model_name,
        parameters=sum(int(w.size) for w in weights_of(model).values()),
        broker=broker.version,
        rounds=seen,
        boards=boards,
        coordinator_peak_rss_mb=float(done["rss_peak_mb"]),
        wall_s=time.monotonic() - started_s,
        model_sha256=str(done["model_sha256"]),
    )


def _work(asked: Path | None, stack: ExitStack) -> Path:
    """The folder asked for, which must be new or empty, or a temporary one that goes when the demo ends."""
    if asked is None:
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-runtime-")))
    _usable("--work", asked)
    if any(asked.iterdir()):
        raise DataError(f"--work {asked} is not empty; a demo starts from nothing, so name a new folder")
    return asked.resolve()


def _usable(option: str, folder: Path) -> None:
    """Make a folder that results go to, before they exist and could be lost."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{option} {folder} cannot be made: {error.strerror}; name another folder") from None
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise DataError(f"{option} {folder} cannot be written to; name another folder")


def _broker(asked: str | None, folder: Path) -> RunningBroker:
    """The broker of choice: a URL, a kind by name, else mosquitto where installed and the embedded one elsewhere."""
    if asked == "mosquitto":
        return start_broker(None, folder, kind="mosquitto")
    if asked == "embedded":
        return start_broker(None, folder, kind="embedded")
    try:
        return start_broker(asked, folder)
    except ValueError as error:  # no URL of a broker
        raise BrokerError(f"--broker: {error}, or 'mosquitto' or 'embedded'") from None


def _shards(split: Split, options: argparse.Namespace) -> dict[str, NDArray[np.int64]]:
    if split.owner is not None:
        return by_owner(split.owner, options.devices)
    devices = options.devices or DEFAULT_DEVICES
    least = _least_examples(len(split.y_train), devices)
    dealt = dirichlet(split.y_train, devices, alpha=options.alpha, seed=options.seed, min_examples=least)
    return {f"dev-{i}": rows for i, rows in enumerate(dealt)}


def _least_examples(examples: int, devices: int) -> int:
    """16 a device, or a quarter of an equal share where a small set has fewer."""
    return max(1, min(MIN_EXAMPLES, examples // (4 * devices)))


def _model(name: str | None, split: Split, seed: int) -> tuple[str, bytes]:
    if name is not None and name not in MODELS:
        path = Path(name)
        if not path.is_file():
            raise ModelError(f"model {name!r} is neither a file nor one of {', '.join(MODELS)}")
        return path.stem, path.read_bytes()
    chosen = name or default_model(split.input_shape)
    return chosen, MODELS[chosen](split.input_shape, split.classes, seed)


def _job(options: argparse.Namespace, recipe: Recipe, devices: int) -> str:
    return f"""\
[job]
name = "demo"
seed = {options.seed}
rounds = {options.rounds or recipe.rounds}

[model]
onnx = "model.onnx"

[method]
name = "fedavg"

[training]
epochs = {options.epochs or recipe.epochs}
batch = {options.batch or recipe.batch}
lr = {options.lr or recipe.lr}
momentum = {recipe.momentum}
weight_decay = {recipe.weight_decay}

[round]
devices = {devices}
min_updates = {max(1, devices // 2)}
deadline_s = 600.0

[evaluate]
data = "{fleet.HELD_OUT}"
"""


def _watch(
    view: LiveView | PlainView, work: Path, url: str, examples: Mapping[str, int]
) -> tuple[Mapping[str, Any], list[Round], list[Board]]:
    """Start everything, show the events, and stop the devices when the job is done."""
    done: Mapping[str, Any] = {}
    rounds: list[Round] = []
    log = work / "coordinator.log"
    coordinator = fleet.start_coordinator(work / "job.toml", work / "coordinator", url, SITE, log)
    devices: list[fleet.Device] = []
    try:
        devices.extend(fleet.start_device(name, work, url, SITE) for name in examples)
        for event in fleet.events(coordinator, log, devices):
            view.show(event)
            if event["event"] == "round_done":
                rounds.append(_round(event))
            elif event["event"] == "job_done":
                done = event
    finally:
        fleet.stop([coordinator, *(device.process for device in devices)])
    if not done or not rounds:
        raise fleet.ProcessDied(f"the coordinator ended without finishing the job:\n{fleet.tail(log)}")
    return done, rounds, [_board(device, examples[device.name]) for device in devices]


def _round(event: Mapping[str, float]) -> Round:
    return Round(
        number=int(event["round"]),
        accuracy=event["accuracy"],
        loss=event["loss"],
        devices=int(event["devices"]),
        bytes_up=int(event["bytes_up"]),
        bytes_down=int(event["bytes_down"]),
        seconds=event["seconds"],
    )


def _board(device: fleet.Device, examples: int) -> Board:
    last = fleet.last_run(device.folder)
    return Board(
        name=device.name,
        examples=examples,
        tasks=int(last["tasks"]),
        rss_peak_mb=last["rss_peak_kb"] / 1024,
        import_s=last["import_s"],
        bytes_up=int(last["bytes_up"]),
        bytes_down=int(last["bytes_down"]),
    )
