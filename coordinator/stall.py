"""What a coordinator says while its disk takes nothing: it is there, and every update may be offered again later.

Nothing that was acknowledged is lost, for only what is on the disk is acknowledged; what comes now stays with the
devices, whose outboxes hold it. The job itself is put away and made anew from the journal when there is room again.
"""

import shutil

from coordinator.store import Store, Version
from edge_runtime.wire.events import Command, GatewaySuperseded, Outcome
from edge_runtime.wire.gateway import GatewaySession
from edge_runtime.wire.intake import Refusal

RETRY_S = 30.0  # for devices; the disk is looked at every PROBE_S
PROBE_S = 2.0
# Beside two versions: what a round's tasks and small tables take.
ROOM_BYTES = 1 << 20


def stalled_session(store: Store, site: str, epoch: int, boot: str) -> GatewaySession:
    """A session that asks nothing of anybody and refuses every update for now, but for those that are durable."""
    refusal = Refusal(
        "GatewayFull", "the coordinator's disk takes nothing; the update is kept and offered again", RETRY_S
    )
    return GatewaySession(site, epoch, boot, already_done=store.accepted_digest, judge=lambda _device, _task: refusal)


def answers(outcomes: list[Outcome]) -> list[Command]:
    """What goes out of what a stalled session gave; births, wills and telemetry come again when the job goes on."""
    return [each for each in outcomes if isinstance(each, Command)]


def superseder(outcomes: list[Outcome]) -> GatewaySuperseded | None:
    """The coordinator that was on the site before, if it made itself known."""
    return next((each for each in outcomes if isinstance(each, GatewaySuperseded)), None)


def needed_bytes(newest: Version) -> int:
    """What the disk must have room for, so that a round can be taken and its version written."""
    return ROOM_BYTES + 2 * len(newest.weights)


def has_room(store: Store) -> bool:
    """Whether the disk takes a write, and a round's version will fit as well.

    Raises:
        JournalError: The disk does not take even a small write.
    """
    if shutil.disk_usage(store.directory).free < needed_bytes(store.latest()):
        return False
    store.keep_epoch(store.epoch())  # a limit on the file, or a disk that was mounted read-only, shows here
    return True
