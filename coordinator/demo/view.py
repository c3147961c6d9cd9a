"""The demo as it runs: a live table on a terminal, plain lines everywhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from rich.console import Console, RenderableType


SIDE_BY_SIDE_COLUMNS = 120  # a narrower terminal gets one table below the other


class PlainView:
    """One line an event that a reader of a log wants; holds nothing but the stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to put away."""

    def note(self, text: str) -> None:
        """Print a line."""
        print(text, file=self._stream, flush=True)

    def show(self, event: Mapping[str, Any]) -> None:
        """Print what this event means, if it means something to a reader."""
        line = describe(event)
        if line:
            self.note(line)


class LiveView:
    """A table of devices and one of rounds, redrawn in place; holds the last event of each device and round."""

    def __init__(self, rounds: int, console: Console | None = None) -> None:
        from rich.console import Console  # noqa: PLC0415 (only terminals pay for it)
        from rich.live import Live  # noqa: PLC0415

        self._console = console or Console()
        self._rounds_wanted = rounds
        self._devices: dict[str, dict[str, Any]] = {}
        self._rounds: list[Mapping[str, Any]] = []
        self._round = 0
        self._live = Live(self._tables(), console=self._console, refresh_per_second=8)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.update(self._tables(), refresh=True)
        self._live.stop()

    def note(self, text: str) -> None:
        """Print a line above the tables."""
        self._live.console.print(text, highlight=False)

    def show(self, event: Mapping[str, Any]) -> None:
        """Take an event into the tables."""
        kind = event["event"]
        if kind in {"device", "telemetry", "update"}:
            row = self._devices.setdefault(str(event["device"]), {})
            row.update(event)
            if kind == "update":
                row["updates"] = row.get("updates", 0) + 1
        elif kind == "round_started":
            self._round = int(event["round"])
        elif kind == "round_done":
            self._rounds.append(event)
        elif kind == "warning":
            self.note(str(describe(event)))
        self._live.update(self._tables())

    def _tables(self) -> RenderableType:
        from rich.console import Group  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415

        wide = self._console.width >= SIDE_BY_SIDE_COLUMNS
        devices = Table("device", "state", "examples", "updates", "train loss", "peak MB", title="devices")
        for name, row in sorted(self._devices.items()):
            devices.add_row(
                name,
                str(row.get("state", "online")),
                _text(row.get("examples"), "d"),
                _text(row.get("updates"), "d"),
                _text(row.get("loss"), ".3f"),
                _text(row["rss_peak_kb"] / 1024 if row.get("rss_peak_kb") else None, ".1f"),
            )
        rounds = Table(
            "round", "accuracy", "loss", "devices", "s", title=f"rounds ({self._round}/{self._rounds_wanted})"
        )
        for done in self._rounds[-12 if wide else -6 :]:
            rounds.add_row(
                str(done["round"]),
                f"{done['accuracy']:.4f}",
                f"{done['loss']:.4f}",
                str(done["devices"]),
                f"{done['seconds']:.2f}",
            )
        if not wide:
            return Group(devices, rounds)
        both = Table.grid(padding=(0, 3))
        both.add_row(devices, rounds)
        return both


def _text(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def describe(event: Mapping[str, Any]) -> str | None:
    """One line for an event of the coordinator, or None for those only a table shows."""
    kind = event["event"]
    if kind == "device":
        return f"device {event['device']} {event['state']} ({event.get('examples', 0)} examples)"
    if kind == "round_done":
        return (
            f"round {event['round']:3d}  accuracy {event['accuracy']:.4f}  loss {event['loss']:.4f}  "
            f"{event['devices']} devices  {event['bytes_up']:,} B up  {event['bytes_down']:,} B down  "
            f"{event['seconds']:.2f} s"
        )
    if kind == "warning":  # an error ends the demo, which says it last
        return f"warning: {event.get('message', event)}"
    return None
