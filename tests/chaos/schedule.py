"""Which fault strikes whom, when and for how long: drawn from a seed before anything runs."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from support.mqtt_harm import Odds
from support.proxy import Shape

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["ALL", "BROKER", "COORDINATOR", "KINDS", "Kind", "Strike", "draw"]

COORDINATOR, BROKER = "coordinator", "broker"
DAY_S = 86_400
MEAN_PAUSE_S = 1.6
HARMFUL = Odds(duplicate=0.08, late=0.08, drop=0.04, truncate=0.03, corrupt=0.03, garble=0.01)
# What every link does all the time in a run with faults of packets; a strike makes it worse for a while.
UNRELIABLE = Odds(duplicate=0.02, late=0.02, drop=0.01, truncate=0.01, corrupt=0.01, garble=0.003)
SLOW = Shape(rate_bytes_s=150_000.0, delay_s=0.05, jitter_s=0.05)


@dataclass(frozen=True)
class Kind:
    """A kind of fault: how often it is drawn, whom it may strike, and how long it may last."""

    weight: float
    victims: tuple[str, ...]
    lasts_s: tuple[float, float]


@dataclass(frozen=True)
class Strike:
    """One fault of a schedule: `at_s` after the start, for `lasts_s`; `number` seeds what else the fault draws."""

    at_s: float
    kind: str
    victim: str
    lasts_s: float
    number: int


DEVICE = "device"
KINDS: dict[str, Kind] = {
    "kill": Kind(5.0, (DEVICE, DEVICE, COORDINATOR, BROKER), (0.0, 1.5)),
    "reset": Kind(1.5, (DEVICE, COORDINATOR), (0.0, 0.0)),
    "close": Kind(1.0, (DEVICE, COORDINATOR), (0.0, 0.0)),
    "stall": Kind(1.5, (DEVICE, COORDINATOR), (0.5, 6.0)),
    "partition": Kind(1.0, ("half",), (2.0, 8.0)),
    "blackhole": Kind(0.7, (DEVICE,), (0.0, 0.0)),
    "slow": Kind(1.5, (DEVICE, COORDINATOR), (2.0, 6.0)),
    "packets": Kind(3.0, (DEVICE, COORDINATOR), (2.0, 6.0)),
    "disk full": Kind(1.5, (DEVICE, COORDINATOR), (0.5, 4.0)),
    "clock": Kind(1.5, (DEVICE, COORDINATOR), (1.0, 6.0)),  # mosquitto reads the monotonic clock
}
ALL = tuple(KINDS)


def draw(
    seed: int, seconds: float, devices: Sequence[str], kinds: Sequence[str] = ALL, mean_pause_s: float = MEAN_PAUSE_S
) -> tuple[Strike, ...]:
    """Draw a schedule: Poisson arrivals, no two faults of one victim at a time.

    Args:
        seed: Equal seeds give equal schedules.
        seconds: No fault begins later.
        devices: Ids that may be struck.
        kinds: Rows of KINDS to draw from.
        mean_pause_s: Between the beginnings of two faults.

    Returns:
        The faults in the order they begin.
    """
    chance = random.Random(f"chaos/{seed}")  # noqa: S311  a schedule, not a secret
    rows: Mapping[str, Kind] = {name: KINDS[name] for name in kinds}
    free_at_s: dict[str, float] = {}
    strikes: list[Strike] = []
    at_s = 0.0
    while (at_s := at_s + chance.expovariate(1.0 / mean_pause_s)) < seconds:
        (kind,) = chance.choices(list(rows), [row.weight for row in rows.values()])
        victim = chance.choice(rows[kind].victims)
        victim = chance.choice(list(devices)) if victim == DEVICE else victim
        lasts_s = chance.uniform(*rows[kind].lasts_s)
        if at_s < free_at_s.get(victim, 0.0):
            continue
        free_at_s[victim] = at_s + lasts_s + 0.5
        strikes.append(Strike(round(at_s, 3), kind, victim, round(lasts_s, 3), len(strikes)))
    return tuple(strikes)
