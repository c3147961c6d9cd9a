"""How a job stands, read from its journal beside whoever runs it."""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coordinator.journal import JournalError, is_held
from coordinator.store import Store, open_reader


@dataclass(frozen=True)
class JobStanding:
    """One job in a list.

    Attributes:
        name: Of the job.
        state: "queued" (no coordinator has been on it), "running", "paused", "waiting" (for a coordinator), "done",
            "failed" or "damaged".
        reason: Why it is done, failed or damaged.
        round: The round that is open, or else the next one; the last one where all are done.
        rounds: So many the job file asks for.
        version: The newest.
        accuracy: Of the last evaluation, if there was one.
        devices: That were seen on line last.
        directory: The state directory.
    """

    name: str
    state: str
    reason: str | None
    round: int
    rounds: int
    version: int
    accuracy: float | None
    devices: int
    directory: str


@dataclass(frozen=True)
class DeviceStanding:
    """One device of a job.

    Attributes:
        device: Its id.
        job: The job's name.
        presence: "online", "lost" or "stopped", as last seen.
        examples: As it announced.
        evicted: By whom it was taken out, if it was.
        unfit: Why it can take no part, if so.
        updates: Accepted.
        last_round: Of its last accepted update, if there was one.
        failures: Tasks that it did not do.
        last_failure: Why, the last time.
    """

    device: str
    job: str
    presence: str
    examples: int
    evicted: str | None
    unfit: str | None
    updates: int
    last_round: int | None
    failures: int
    last_failure: str | None


def job_standing(directory: Path, fault: str | None = None) -> JobStanding:
    """How the job of a state directory stands; "damaged" where that, or its place in the queue, cannot be read."""
    try:
        with closing(open_reader(directory)) as store:
            found = standing_of(store)
    except JournalError as error:
        fault = fault or str(error)
        found = JobStanding(directory.name, "damaged", fault, 0, 0, 0, None, 0, str(directory))
    return found if fault is None else replace(found, state="damaged", reason=fault)


def standing_of(store: Store) -> JobStanding:
    """How the job of an open journal stands."""
    said = {key: json.loads(text) for key, text in store.definition().items()}
    _, accuracy = store.last_accuracy() or (0, None)
    state, reason = _state(store)
    ((version, online),) = store.rows(
        "SELECT (SELECT max(version) FROM versions), (SELECT count(*) FROM devices WHERE presence = 'online')"
    )
    directory = str(store.directory)
    rounds = int(said["job.rounds"])
    present = min(store.present_round(), rounds)
    return JobStanding(said["job.name"], state, reason, present, rounds, version, accuracy, online, directory)


def _state(store: Store) -> tuple[str, str | None]:
    if (done := store.done()) is not None:
        return "done", done
    if (failed := store.failed()) is not None:
        return "failed", failed
    if store.paused():
        return "paused", None
    if is_held(store.directory):
        return "running", None
    return ("waiting", None) if store.epoch() > 0 else ("queued", None)


def device_standings(store: Store) -> tuple[DeviceStanding, ...]:
    """Every device that the job has seen or was told of, in ascending order."""
    job = json.loads(store.definition()["job.name"])
    query = """
SELECT device, coalesce(presence, 'unseen'), coalesce(examples, 0), evictions.reason, unfit,
  (SELECT count(*) FROM updates WHERE updates.device = names.device),
  (SELECT max(round) FROM updates WHERE updates.device = names.device),
  (SELECT count(*) FROM tasks WHERE tasks.device = names.device AND state = 'failed'),
  (SELECT reason FROM tasks WHERE tasks.device = names.device AND state = 'failed' ORDER BY round DESC LIMIT 1)
FROM (SELECT device FROM devices UNION SELECT device FROM evictions) AS names
  LEFT JOIN devices USING (device) LEFT JOIN evictions USING (device) ORDER BY device
"""
    return tuple(DeviceStanding(row[0], job, *row[1:]) for row in store.rows(query))


def rounds_after(store: Store, number: int) -> Iterator[dict[str, Any]]:
    """The evaluated rounds after one, as the view rounds_v1 has them."""
    names = [row[1] for row in store.rows("PRAGMA table_info(rounds_v1)")]
    for row in store.rows("SELECT * FROM rounds_v1 WHERE state = 'evaluated' AND round > ? ORDER BY round", (number,)):
        yield dict(zip(names, row, strict=True))


def requests_of(store: Store, newest: int) -> list[dict[str, Any]]:
    """The newest requests, oldest first."""
    names = ("request", "verb", "argument", "asked_by", "asked_at", "answered_at", "outcome", "message")
    rows = store.rows(f"SELECT {', '.join(names)} FROM requests ORDER BY request DESC LIMIT ?", (newest,))  # noqa: S608  names are constants
    return [dict(zip(names, row, strict=True)) for row in reversed(rows)]
