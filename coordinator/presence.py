"""What births, wills and goodbyes change in a fleet, for every schedule alike.

A birth that the broker has kept may be of a device that died with the broker: it counts as lost since now until the
device, which answers the coordinator's presence, has said so itself.
"""

from coordinator import fleet as fleets
from coordinator.fleet import Fleet
from coordinator.round_records import (
    Command,
    DeviceLost,
    DeviceOnline,
    DeviceRemembered,
    DeviceStopped,
    FleetUnknown,
    Warn,
)

PresenceEvent = DeviceOnline | DeviceRemembered | DeviceLost | DeviceStopped | FleetUnknown


def take_presence(fleet: Fleet, event: PresenceEvent, now_s: float) -> tuple[Fleet, tuple[Command, ...]]:
    """The fleet after the event, and a warning about a device that has no examples, once."""
    match event:
        case DeviceOnline(name, examples):
            known = fleet.get(name)
            told = examples > 0 or (known is not None and known.examples == 0)
            warnings = () if told else (Warn(f"device {name} has no examples and takes no part"),)
            return fleets.arrived(fleet, name, examples), warnings
        case DeviceRemembered(name, examples):
            return fleets.remembered(fleet, name, examples, now_s), ()
        case DeviceLost(name):
            return fleets.lost(fleet, name, now_s), ()
        case DeviceStopped(name):
            return fleets.stopped(fleet, name), ()
        case FleetUnknown():
            return fleets.all_lost(fleet, now_s), ()
