"""What is written of a round when it is folded."""

from coordinator.program import Program
from coordinator.store import RoundFigures, Store, Version
from coordinator.views import held

# Devices of a round, how many tasks each had, and whether they are its first since a round.
_ASKED = """
SELECT device, count(*), NOT EXISTS
  (SELECT 1 FROM tasks WHERE device = now.device AND round >= ? AND round < now.round)
FROM tasks AS now WHERE round = ? GROUP BY device
"""


def round_figures(program: Program, store: Store, version: Version, seconds: float) -> RoundFigures:
    """The figures of the round that started from a version, as the journal has its tasks and updates.

    A device fetches a blob once, however many tasks name it: a version's weights or deltas with its first task of the
    version, a stage's plans with its first of the stage.

    Args:
        program: The job's.
        store: Its journal.
        version: Which the round has the number of.
        seconds: It took.
    """
    number = version.version
    stage = program.stage(number)
    asked = store.rows(_ASKED, (program.first_round(number), number))
    holds = held(store.rows, number)
    plans = sum(len(plan.data) for device, _, new in asked if new for plan in stage.for_device(device).files)
    ((updates, bytes_up),) = store.rows(
        "SELECT count(*), coalesce(sum(bytes), 0) FROM updates WHERE round = ?", (number,)
    )
    return RoundFigures(
        devices=updates,
        cohort=sum(tasks for _, tasks, _ in asked),
        bytes_up=bytes_up,
        bytes_down=plans + sum(version.sent.bytes_from(holds.get(device)) for device, _, _ in asked),
        seconds=seconds,
    )
