"""When a job is over, for every schedule alike."""

from collections.abc import Collection

from coordinator.fleet import Fleet
from coordinator.round_records import Evaluated, Rules

# A failure that may pass makes a device unfit all the same when it comes so often.
PATIENCE = 5


def why_done(rules: Rules, judged: Evaluated) -> str | None:
    """Why a job is done with the version that was judged, if it is."""
    target = rules.target_accuracy
    if target is not None and judged.accuracy >= target:
        return f"accuracy {judged.accuracy:.4f} reaches the target {target:g}"
    return f"all {rules.rounds} rounds are done" if judged.round >= rules.rounds else None


def why_hopeless(fleet: Fleet, hopeful: Collection[str], needed: int) -> str | None:
    """Why a job can never get the updates it needs, if so.

    Args:
        fleet: The devices.
        hopeful: Those that can do a task, or have done theirs.
        needed: So many of them.
    """
    unfit = {name: device.unfit for name, device in fleet.items() if device.unfit is not None}
    if not unfit or len(hopeful) >= needed:
        return None
    reasons = "; ".join(f"{name}: {reason}" for name, reason in sorted(unfit.items()))
    told = f"{len(hopeful)} of {len(hopeful) + len(unfit)} devices can still do their tasks, {needed} are needed"
    return f"{told} ({reasons})"
