"""What a finished demo has to say: the summary, report.json and the picture of the curves."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Round:
    """One finished round: accuracy and mean cross-entropy on held-out data, bytes over all devices, seconds."""

    number: int
    accuracy: float
    loss: float
    devices: int
    bytes_up: int
    bytes_down: int
    seconds: float


@dataclass(frozen=True)
class Board:
    """One device at the end: peak resident set, processor seconds spent importing, MQTT bytes in all."""

    name: str
    examples: int
    tasks: int
    rss_peak_mb: float
    import_s: float
    bytes_up: int
    bytes_down: int


@dataclass(frozen=True)
class Result:
    """A finished demo."""

    data: str
    model: str
    parameters: int
    broker: str
    rounds: list[Round]
    boards: list[Board]
    coordinator_peak_rss_mb: float
    wall_s: float
    model_sha256: str

    @property
    def accuracy(self) -> float:
        """Held-out accuracy of the final model."""
        return self.rounds[-1].accuracy

    def per_device_round(self, direction: str) -> int:
        """Mean MQTT bytes of one device in one round; everything it sent or received is counted."""
        total: int = sum(getattr(board, f"bytes_{direction}") for board in self.boards)
        return round(total / max(1, sum(board.tasks for board in self.boards)))


def last_line(result: Result) -> str:
    """The one-line summary for scripts, as JSON."""
    return json.dumps(
        {
            "accuracy": round(result.accuracy, 4),
            "rounds": len(result.rounds),
            "bytes_up_per_device_round": result.per_device_round("up"),
            "bytes_down_per_device_round": result.per_device_round("down"),
            "device_peak_rss_mb": [round(board.rss_peak_mb, 1) for board in result.boards],
            "device_import_s": [round(board.import_s, 3) for board in result.boards],
            "coordinator_peak_rss_mb": round(result.coordinator_peak_rss_mb, 1),
            "broker": result.broker,
            "wall_s": round(result.wall_s, 2),
            "model_sha256": result.model_sha256,
        }
    )


def summary(result: Result) -> str:
    """The summary for people."""
    boards = result.boards
    weights_bytes = 4 * result.parameters
    up, down = result.per_device_round("up"), result.per_device_round("down")
    peak = [board.rss_peak_mb for board in boards]
    imports = [board.import_s for board in boards]
    return "\n".join(
        [
            f"accuracy            {result.accuracy:.4f} on held-out {result.data} after {len(result.rounds)} rounds",
            f"model               {result.model}, {result.parameters:,} parameters, sha256 {result.model_sha256[:16]}",
            f"bytes/device/round  {up:,} up, {down:,} down (the weights alone are {weights_bytes:,})",
            f"device memory       {min(peak):.1f} to {max(peak):.1f} MB peak resident set, {len(boards)} processes",
            f"device import       {min(imports):.3f} to {max(imports):.3f} s of processor time",
            f"coordinator memory  {result.coordinator_peak_rss_mb:.1f} MB peak resident set",
            f"broker              {result.broker}",
            f"wall time           {result.wall_s:.1f} s",
        ]
    )


def write_report(result: Result, folder: Path) -> None:
    """Write report.json and curves.png into `folder`, which is made if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(asdict(result), indent=1) + "\n")
    _draw(result, folder / "curves.png")


def _draw(result: Result, path: Path) -> None:
    from matplotlib.figure import Figure  # noqa: PLC0415 (half a second to import, for a picture not always asked for)

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    numbers = [r.number for r in result.rounds]
    left.plot(numbers, [r.accuracy for r in result.rounds], marker="o", markersize=3)
    left.set(title=f"{result.data}: held-out accuracy", xlabel="round", ylabel="accuracy")
    for direction, values in (
        ("up", [r.bytes_up for r in result.rounds]),
        ("down", [r.bytes_down for r in result.rounds]),
    ):
        right.plot(numbers, [v / 1e6 for v in values], marker="o", markersize=3, label=direction)
    right.set(title="bytes a round, all devices", xlabel="round", ylabel="MB", ylim=(0, None))
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
