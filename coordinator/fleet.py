"""The devices a job knows: who is there, who is coming back, who can take part.

All functions are pure: a fleet goes in, a fleet comes out. Times are seconds of one monotonic clock.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from itertools import pairwise
from statistics import median

from coordinator.table import put
from edge_runtime.rng import derive_seed

# How many of a device's last task times are remembered: enough for a median that one bad transfer does not move.
TIMES_KEPT = 5
# However slow a device is, it does so much of the work: what it has learnt would not be worth its download otherwise.
LEAST_SHARE = 0.1


class Presence(Enum):
    """What the broker last said of a device."""

    ONLINE = "online"
    LOST = "lost"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Device:
    """One device.

    Attributes:
        name: Its id in the topics.
        presence: Online, lost (its last will came) or stopped (it said goodbye).
        examples: As its last birth announced; 0 takes no part.
        lost_since_s: When it was lost; None unless it is.
        unfit: Why it can take no further part in this job; None while it can.
        asked: How many tasks it was sent in this job.
        delivered: How many of them it answered with an update that was accepted.
        times_s: Seconds from task to accepted update of the last of these, as for the whole work, oldest first, at most
            TIMES_KEPT.
    """

    name: str
    presence: Presence
    examples: int
    lost_since_s: float | None = None
    unfit: str | None = None
    asked: int = 0
    delivered: int = 0
    times_s: tuple[float, ...] = ()


Fleet = Mapping[str, Device]


def arrived(fleet: Fleet, name: str, examples: int) -> Fleet:
    """The device is online, with so many examples."""
    known = fleet.get(name, Device(name, Presence.STOPPED, examples))
    return put(fleet, name, replace(known, presence=Presence.ONLINE, examples=examples, lost_since_s=None))


def remembered(fleet: Fleet, name: str, examples: int, now_s: float) -> Fleet:
    """The broker says that the device is online; until it says so itself it counts as lost since now_s."""
    known = fleet.get(name, Device(name, Presence.STOPPED, examples))
    if known.presence is Presence.ONLINE:
        return fleet
    return put(fleet, name, replace(known, presence=Presence.LOST, examples=examples, lost_since_s=now_s))


def lost(fleet: Fleet, name: str, now_s: float) -> Fleet:
    """The device was lost at now_s; one that is lost or stopped already stays as it is."""
    known = fleet.get(name)
    if known is None or known.presence is not Presence.ONLINE:
        return fleet
    return put(fleet, name, replace(known, presence=Presence.LOST, lost_since_s=now_s))


def all_lost(fleet: Fleet, now_s: float) -> Fleet:
    """Nothing is known of the online devices any more: until their births come they count as lost since now_s."""
    return {
        name: replace(known, presence=Presence.LOST, lost_since_s=now_s) if known.presence is Presence.ONLINE else known
        for name, known in fleet.items()
    }


def stopped(fleet: Fleet, name: str) -> Fleet:
    """The device said goodbye; nobody waits for it."""
    known = fleet.get(name)
    if known is None:
        return fleet
    return put(fleet, name, replace(known, presence=Presence.STOPPED, lost_since_s=None))


def condemned(fleet: Fleet, name: str, reason: str) -> Fleet:
    """The device failed a task and takes no further part in this job."""
    known = fleet.get(name, Device(name, Presence.STOPPED, examples=0))
    return put(fleet, name, replace(known, unfit=reason))


def was_asked(fleet: Fleet, names: Iterable[str]) -> Fleet:
    """The devices were sent a task each."""
    for name in names:
        fleet = put(fleet, name, replace(fleet[name], asked=fleet[name].asked + 1))
    return fleet


def answered(fleet: Fleet, name: str, seconds: float | None) -> Fleet:
    """The device's update was accepted, so many seconds after its task was sent, where that is known."""
    known = fleet[name]
    times_s = known.times_s if seconds is None else (*known.times_s, seconds)[-TIMES_KEPT:]
    return put(fleet, name, replace(known, delivered=known.delivered + 1, times_s=times_s))


def task_seconds(device: Device) -> float | None:
    """The median of the device's last task times; None where none is known."""
    return median(device.times_s) if device.times_s else None


def takes_part(device: Device) -> bool:
    """Whether the device could be asked, were it online."""
    return device.unfit is None and device.examples > 0


def fit(fleet: Fleet) -> tuple[str, ...]:
    """The devices that could be asked, were they online."""
    return tuple(name for name, device in fleet.items() if takes_part(device))


def is_ready(device: Device) -> bool:
    """Whether the device can be asked now."""
    return device.presence is Presence.ONLINE and takes_part(device)


def ready(fleet: Fleet) -> tuple[str, ...]:
    """The devices that a round can ask now, in ascending order of their ids."""
    return tuple(sorted(name for name, device in fleet.items() if is_ready(device)))


def awaited(device: Device, now_s: float, grace_s: float) -> bool:
    """Whether a round waits for this device: it is online, or was lost less than grace_s ago."""
    if device.presence is Presence.LOST and device.lost_since_s is not None:
        return now_s - device.lost_since_s < grace_s
    return device.presence is Presence.ONLINE


def returning(fleet: Fleet, now_s: float, grace_s: float) -> bool:
    """Whether a device that could take part was lost less than grace_s ago."""
    return any(
        device.presence is Presence.LOST and takes_part(device) and awaited(device, now_s, grace_s)
        for device in fleet.values()
    )


def draw(
    names: Iterable[str], *, count: int, seed: int, number: int, weights: Mapping[str, float] | None = None
) -> tuple[str, ...]:
    """At most so many of the devices, by lot, in ascending order.

    Every device is ranked by a hash of (seed, number, its id), so the choice does not depend on who else is there
    beyond the number asked, and a restart chooses the same devices again.

    Args:
        names: To choose from.
        count: How many.
        seed: The job's.
        number: Of this draw.
        weights: A device with twice the weight of another is drawn first twice as often; by default all are equal. Rank
            is -log(u) / weight with the hash for u (P. Efraimidis, P. Spirakis: Weighted Random Sampling with a
            Reservoir, 2006).
    """

    def rank(name: str) -> tuple[float, str]:
        # From a hash below 2^63, such that equal weights rank by the hash itself.
        u = derive_seed("cohort", seed, number, name) / 2.0**63
        return -math.log1p(-min(u, 1.0 - 2.0**-53)) / (1.0 if weights is None else weights[name]), name

    return tuple(sorted(sorted(names, key=rank)[:count]))


def share_of(count: int, fraction: float, least: int) -> int:
    """How many of so many devices a round wants: ceil(fraction * count), at least `least`, if there are."""
    return min(count, max(least, math.ceil(fraction * count)))


def selection_weights(fleet: Fleet, names: Iterable[str]) -> dict[str, float]:
    """How readily each device is drawn: its availability, times how fast it is where others are faster.

    Availability is (delivered + 1) / (asked + 1), so a newcomer counts as reliable; speed is the median task time of
    all over the device's own, at most 1. Both are of what the journal has.
    """
    times = {name: seconds for name in names if (seconds := task_seconds(fleet[name])) is not None}
    usual = median(times.values()) if times else 1.0
    return {
        name: (fleet[name].delivered + 1) / (fleet[name].asked + 1) * min(1.0, usual / times.get(name, usual))
        for name in names
    }


def tiers_of(fleet: Fleet, names: Iterable[str], count: int, least: int) -> tuple[tuple[str, ...], ...]:
    """Devices in groups of like speed, the fastest first, each in ascending order.

    Args:
        fleet: Which knows their task times.
        names: To be grouped; those whose time is not known yet are one group, and then the only one, if they are enough
            for a round: to be measured.
        count: Of groups, equal in size to one device.
        least: Of devices in a group; where there are too few devices for that, there are fewer groups.
    """
    times = {name: task_seconds(fleet[name]) for name in names}
    unmeasured = sorted(name for name, seconds in times.items() if seconds is None)
    measured = sorted((seconds, name) for name, seconds in times.items() if seconds is not None)
    if len(unmeasured) >= least or not measured:
        return (tuple(unmeasured),)
    ordered = [name for _, name in measured] + unmeasured
    groups = max(1, min(count, len(ordered) // least))
    ends = [len(ordered) * number // groups for number in range(groups + 1)]
    return tuple(tuple(sorted(ordered[begin:end])) for begin, end in pairwise(ends))


def work_share(fleet: Fleet, name: str) -> float:
    """The share of the whole work that a device does in about the time that the middle one takes for all of it.

    In [LEAST_SHARE, 1]; 1 while its time is not known.
    """
    own = task_seconds(fleet[name])
    times = [seconds for device in fleet.values() if (seconds := task_seconds(device)) is not None]
    return 1.0 if own is None else min(1.0, max(LEAST_SHARE, median(times) / own))
