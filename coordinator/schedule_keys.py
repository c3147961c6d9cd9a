"""The [schedule] section of a job file: its keys, what they must not contradict, and the record made of them."""

from collections.abc import Iterator, Mapping
from typing import Any

from coordinator.fields import Field, integer, number, one_of, shown
from coordinator.round_records import SYNCHRONOUS, ScheduleRules
from coordinator.staleness import STALENESS

NAMES = ("sync", "tiers", "fedasync", "fedbuff")
SCHEDULE: Mapping[str, Field] = {
    "name": Field(one_of(NAMES)),
    "tiers": Field(integer(2, 100), required=False),
    "alpha": Field(number(0, 1, above_low=True), required=False, default=0.6),
    "staleness": Field(one_of(STALENESS), required=False, default="polynomial"),
    "a": Field(number(0, 1e6), required=False),
    "b": Field(number(0, 1e6), required=False, default=4.0),
    "buffer": Field(integer(1, 100_000), required=False),
    "concurrency": Field(integer(1, 100_000), required=False),
    "max_staleness": Field(integer(0, 1_000_000), required=False, default=100),
    "evaluate_every": Field(integer(1, 1_000_000), required=False, default=1),
}
OF_SCHEDULES: Mapping[str, tuple[str, ...]] = {
    "tiers": ("tiers",),
    "alpha": ("fedasync",),
    "staleness": ("fedasync", "fedbuff"),
    "a": ("fedasync", "fedbuff"),
    "b": ("fedasync", "fedbuff"),
    "buffer": ("fedbuff",),
    "concurrency": ("fedasync", "fedbuff"),
    "max_staleness": ("fedasync", "fedbuff"),
    "evaluate_every": ("fedasync", "fedbuff"),
}
OF_STALENESS: Mapping[str, tuple[str, ...]] = {"a": ("polynomial", "hinge"), "b": ("hinge",)}
# Xie et al. use a = 0.5 with the polynomial, a = 10 and b = 4 with the hinge.
DEFAULT_A: Mapping[str, float] = {"constant": 0.0, "polynomial": 0.5, "hinge": 10.0}
SYNC_ROUND_KEYS = ("fraction", "over_select", "select", "scale_work")  # of [round]: what only synchronous rounds have


def contradictions(table: Mapping[str, Any], rounds: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What no single key of the section shows; `rounds` is the [round] section."""
    name = table.get("name")
    if name not in NAMES:
        return
    for key, owners in OF_SCHEDULES.items():
        if key in table and name not in owners:
            yield f"schedule.{key}", f"belongs to name = {' or '.join(map(repr, owners))}, not to {shown(name)}"
    staleness = table.get("staleness", "polynomial")
    for key, owners in OF_STALENESS.items():
        if key in table and staleness in STALENESS and staleness not in owners:
            yield f"schedule.{key}", f"belongs to staleness = {' or '.join(map(repr, owners))}, not {shown(staleness)}"
    if name == "tiers" and "tiers" not in table:
        yield "schedule.tiers", "is missing; say into how many groups of like speed the devices are put"
    if name == "fedbuff" and "buffer" not in table:
        yield "schedule.buffer", "is missing; fedbuff needs to know how many updates make a version"
    for key in SYNC_ROUND_KEYS:
        if name in {"fedasync", "fedbuff"} and key in rounds:
            yield f"round.{key}", f"belongs to synchronous rounds, not to {name}"


def make_schedule(table: Mapping[str, Any]) -> ScheduleRules:
    """The record of a checked section with its defaults; a file without it has synchronous rounds."""
    name, staleness = table["name"], table["staleness"]
    if name in {None, "sync"}:
        return SYNCHRONOUS
    if name == "tiers":
        return ScheduleRules(name=name, tiers=table["tiers"])
    return ScheduleRules(
        name=name,
        alpha=float(table["alpha"]) if name == "fedasync" else 1.0,
        staleness=staleness,
        a=DEFAULT_A[staleness] if table["a"] is None else float(table["a"]),
        b=float(table["b"]),
        buffer=1 if name == "fedasync" else table["buffer"],
        concurrency=table["concurrency"],
        max_staleness=table["max_staleness"],
        evaluate_every=table["evaluate_every"],
    )
