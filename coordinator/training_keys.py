"""The [training] section of a job file: its keys, what they must not contradict, and the record made of them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from coordinator.fields import Field, boolean, integer, number, numbers, one_of, tables, texts, with_defaults

MOST_STAGES = 1000
STAGE: Mapping[str, Field] = {
    "rounds": Field(integer(1, 1_000_000)),
    "trainable": Field(texts, required=False),
    "frozen": Field(texts, required=False),
    "lr": Field(number(0, 1000, above_low=True), required=False),
    "skip": Field(texts, required=False, default=[]),
}
MOST_BOARDS = 100
BOARD: Mapping[str, Field] = {
    "devices": Field(texts),
    "memory_mb": Field(integer(1, 4096)),
    "threads": Field(integer(1, 256), required=False, default=1),
}
TRAINING: Mapping[str, Field] = {
    "epochs": Field(integer(1, 10_000)),
    "batch": Field(integer(1, 65_536)),
    "lr": Field(number(0, 1000, above_low=True)),
    "optimizer": Field(one_of(("sgd", "adamw")), required=False, default="sgd"),
    "momentum": Field(number(0, 1, below_high=True), required=False, default=0.0),
    "nesterov": Field(boolean, required=False, default=False),
    "betas": Field(numbers(2, number(0, 1, below_high=True)), required=False, default=[0.9, 0.999]),
    "epsilon": Field(number(0, 1, above_low=True), required=False, default=1e-8),
    "weight_decay": Field(number(0, 10), required=False, default=0.0),
    "max_norm": Field(number(0, 1e6, above_low=True), required=False),
    "proximal": Field(number(0, 1e6), required=False, default=0.0),
    "ema": Field(number(0, 1, below_high=True), required=False),
    "trainable": Field(texts, required=False, default=["*"]),
    "frozen": Field(texts, required=False, default=[]),
    "personal": Field(texts, required=False, default=[]),
    "stages": Field(tables(STAGE, MOST_STAGES), required=False),
    "boards": Field(tables(BOARD, MOST_BOARDS), required=False),
    "cache": Field(one_of(("off", "memory", "disk")), required=False, default="disk"),
    "cache_mb": Field(integer(1, 1 << 20), required=False, default=256),
}
OF_ONE_OPTIMIZER = {"momentum": "sgd", "nesterov": "sgd", "betas": "adamw", "epsilon": "adamw"}


@dataclass(frozen=True)
class Stage:
    """Some rounds in a row: what is trained in them and what is not there yet (shell patterns), and at which rate."""

    rounds: int
    trainable: tuple[str, ...]
    frozen: tuple[str, ...]
    lr: float
    skip: tuple[str, ...] = ()


@dataclass(frozen=True)
class Board:
    """Devices (shell patterns over their ids) whose engine may take so much memory, with so many threads."""

    devices: tuple[str, ...]
    memory_mb: int
    threads: int


@dataclass(frozen=True)
class Training:
    """What a device does in a round.

    Attributes:
        epochs: Passes over the local data.
        batch: Examples a step.
        optimizer: "sgd" or "adamw"; the keys after it are those of torch.optim's class of that name.
        momentum: Of sgd; nesterov likewise.
        nesterov: Look ahead.
        betas: Of adamw; epsilon likewise.
        epsilon: Added to the root of the second moment.
        weight_decay: Of both, as torch has it.
        max_norm: All gradients together are scaled down to this norm; None for not.
        proximal: Weight of half the squared distance from what was received.
        ema: Decay of a moving average over a round's steps, which a device sends back for its weights; None for not.
        personal: Trained tensors (shell patterns) that stay on each device.
        stages: One for a job without stages.
        boards: Devices that train as much of the model as their memory allows; a device is of the first it matches,
            and one that matches none trains all.
        cache: Where devices may keep the features of frozen layers: "off", "memory" or "disk".
        cache_mb: The most these may take on a device.
    """

    epochs: int
    batch: int
    optimizer: str
    momentum: float
    nesterov: bool
    betas: tuple[float, float]
    epsilon: float
    weight_decay: float
    max_norm: float | None
    proximal: float
    ema: float | None
    personal: tuple[str, ...]
    stages: tuple[Stage, ...]
    boards: tuple[Board, ...]
    cache: str
    cache_mb: int


def contradictions(table: Mapping[str, Any], rounds: object) -> Iterator[tuple[str, str]]:
    """What no single key of the section shows; `rounds` is job.rounds, if the file has it."""
    optimizer = table.get("optimizer", "sgd")
    for key, owner in OF_ONE_OPTIMIZER.items():
        if key in table and optimizer in {"sgd", "adamw"} and optimizer != owner:
            yield f"training.{key}", f'belongs to optimizer = "{owner}"'
    stages = table.get("stages")
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        return
    counts = [stage.get("rounds") for stage in stages]
    if type(rounds) is int and all(type(count) is int for count in counts) and sum(counts) != rounds:
        yield "training.stages", f"have {sum(counts)} rounds together, job.rounds is {rounds}"


def make_training(table: Mapping[str, Any], rounds: int) -> Training:
    """The record of a checked section with its defaults."""
    whole = {"rounds": rounds}
    stages = [with_defaults(STAGE, stage) for stage in table["stages"] or [whole]]
    beta1, beta2 = table["betas"]
    return Training(
        epochs=table["epochs"],
        batch=table["batch"],
        optimizer=table["optimizer"],
        momentum=float(table["momentum"]),
        nesterov=table["nesterov"],
        betas=(float(beta1), float(beta2)),
        epsilon=float(table["epsilon"]),
        weight_decay=float(table["weight_decay"]),
        max_norm=None if table["max_norm"] is None else float(table["max_norm"]),
        proximal=float(table["proximal"]),
        ema=None if table["ema"] is None else float(table["ema"]),
        personal=tuple(table["personal"]),
        stages=tuple(_stage(stage, table) for stage in stages),
        boards=tuple(_board(with_defaults(BOARD, board)) for board in table["boards"] or ()),
        cache=table["cache"],
        cache_mb=table["cache_mb"],
    )


def _board(board: Mapping[str, Any]) -> Board:
    return Board(tuple(board["devices"]), board["memory_mb"], board["threads"])


def _stage(stage: Mapping[str, Any], table: Mapping[str, Any]) -> Stage:
    """A stage; what it leaves out is what the section says."""
    given = {key: table[key] if stage[key] is None else stage[key] for key in ("trainable", "frozen", "lr")}
    patterns = (tuple(given["trainable"]), tuple(given["frozen"]))
    return Stage(stage["rounds"], *patterns, float(given["lr"]), tuple(stage["skip"]))
