"""What is written of a round when it is folded."""

from coordinator.program import Program
from coordinator.store import RoundFigures, Store, Version


def round_figures(program: Program, store: Store, version: Version, seconds: float) -> RoundFigures:
    """The figures of the round that started from a version, as the journal has its tasks and updates.

    Args:
        program: The job's.
        store: Its journal.
        version: Which the round has the number of.
        seconds: It took.
    """
    number = version.version
    asked, stage = store.asked(number), program.stage(number)
    plans = [sum(len(plan.data) for plan in stage.for_device(device).files) for device in asked]
    first = number - 1 in {stage.last_round for stage in program.stages}
    # A stage's plans are new to everybody in its first round.
    newcomers = len(plans) if first else store.newcomers(number)
    held = store.held(number)
    down = sum(version.sent.bytes_from(held.get(device)) for device in asked)
    return RoundFigures(
        devices=len(store.staleness(number)),
        cohort=len(asked),
        bytes_up=store.bytes_up(number),
        bytes_down=down + newcomers * sum(plans) // max(1, len(plans)),
        seconds=seconds,
    )
