"""Where an unfinished job stands, read from its journal for the state machines."""

from coordinator.fleet import TIMES_KEPT, Device, Presence
from coordinator.round_records import Journalled, Outcome, Phase, Standing
from coordinator.views import Rows


def read_evicted(rows: Rows) -> frozenset[str]:
    """The devices that an operator took out of the job."""
    return frozenset(row[0] for row in rows("SELECT device FROM evictions"))


def read_paused(rows: Rows) -> bool:
    """Whether an operator wants no further round."""
    return bool(rows("SELECT paused FROM job")[0][0])


def read_journalled(rows: Rows) -> Journalled:
    """Where the job stands, for coordinator.rounds."""
    fleet, paused = _fleet(rows), read_paused(rows)
    found = rows("SELECT round, attempt, state, accuracy, wanted FROM rounds ORDER BY round DESC LIMIT 1")
    if not found:
        return Journalled(Phase.GATHERING, 1, 0, {}, fleet, paused=paused)
    ((number, attempt, state, accuracy, wanted),) = found
    outcomes = {"open": Outcome.PENDING, "done": Outcome.DELIVERED, "failed": Outcome.FAILED}
    # A device that was asked again counts with its last task.
    tasks = rows("SELECT device, state FROM tasks WHERE round = ? ORDER BY rowid", (number,))
    cohort = {device: outcomes[outcome] for device, outcome in tasks}
    phase = Phase.COLLECTING if state == "open" else Phase.JUDGING
    return Journalled(phase, number, attempt, cohort, fleet, accuracy, wanted, paused)


def read_standing(rows: Rows) -> Standing:
    """Where the job stands, for coordinator.buffered."""
    ((newest,),) = rows("SELECT max(version) FROM versions")
    judged = rows("SELECT accuracy FROM rounds WHERE round = ?", (newest - 1,))
    waiting = "SELECT round, count(*) FROM updates WHERE folded_in IS NULL GROUP BY round ORDER BY round"
    return Standing(
        newest=int(newest),
        accuracy=judged[0][0] if judged else None,
        waiting=dict(rows(waiting)),
        pending=dict(rows("SELECT device, round FROM tasks WHERE state = 'open' ORDER BY device")),
        fleet=_fleet(rows),
        paused=read_paused(rows),
    )


def _fleet(rows: Rows) -> dict[str, Device]:
    """Every device as last seen, with what its tasks came to."""
    counts = "SELECT device, count(*), sum(state = 'done') FROM tasks GROUP BY device"
    asked = {name: (int(count), int(done)) for name, count, done in rows(counts)}
    last = (
        "SELECT device, seconds FROM (SELECT device, seconds, tasks.rowid AS turn, row_number() OVER "
        "(PARTITION BY device ORDER BY tasks.rowid DESC) AS back FROM tasks WHERE seconds IS NOT NULL) "
        "WHERE back <= ? ORDER BY turn"
    )
    times: dict[str, tuple[float, ...]] = {}
    for name, seconds in rows(last, (TIMES_KEPT,)):
        times[name] = (*times.get(name, ()), float(seconds))
    evicted = read_evicted(rows)
    fleet = {}
    for name, last_seen, examples, unfit in rows("SELECT * FROM devices"):
        presence = Presence.STOPPED if name in evicted else Presence(last_seen)
        history = (*asked.get(name, (0, 0)), times.get(name, ()))
        fleet[name] = Device(name, presence, examples, None, unfit, *history)
    return fleet
