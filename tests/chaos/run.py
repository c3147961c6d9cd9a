"""One disturbed job from beginning to end, and whether it came out as the undisturbed one did."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from chaos.driver import Driver
from chaos.ledger import Wanted, accepted, device_log, differences, every_round, full_buffers, version_digests
from coordinator.broker import find_mosquitto
from support.fleet import digits_federation
from support.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from chaos.schedule import Strike

__all__ = ["BUFFERED", "CARRYING", "DOWNLOAD", "Outcome", "disturbed"]

# What devices carry from round to round must survive as well.
CARRYING = ["topk 0.1 ef", "fp16", "rice"]
DOWNLOAD = {"codec": ["topk 0.2", "fp16", "rice"]}
BUFFERED = {"name": "fedbuff", "buffer": 3}
# Longer than any fault and what it takes to get over it, so that every round waits for every device.
PATIENT = {"grace_s": 120.0, "deadline_s": 600.0}
# A round's weights, view and updates in the journal and its log come to 0.2 MB.
ROUND_MB = 0.4


@dataclass(frozen=True)
class Outcome:
    """What came of a job.

    Attributes:
        updates: How many were accepted.
        digests: SHA-256 of every version, the last one the final model.
        wrong: Where the journal and the devices' logs disagree.
        faults: How often each fault struck, the proxy's own on packets among them.
        ended: What ended by itself on a full disk and was started again.
        skipped: Faults this machine cannot make, with the reason.
    """

    seed: int
    seconds: float
    updates: int
    digests: tuple[str, ...]
    wrong: tuple[str, ...]
    faults: dict[str, int]
    ended: tuple[str, ...]
    skipped: dict[str, str]
    done: dict[str, Any] = field(default_factory=dict)


def disturbed(
    root: Path, seed: int, strikes: Sequence[Strike], *, devices: int = 4, rounds: int = 8, **job: object
) -> Outcome:
    """Run a job on real digits, synchronous if it has no `schedule`, while `strikes` come down on it.

    Args:
        root: A directory that is empty.
        seed: Of what the proxy draws.
        strikes: None for an undisturbed run.
        devices: Processes; all of them take part in every round.
        rounds: Of the job.
        job: Keys of the job file.

    Raises:
        AssertionError: The job did not come to its end.
    """
    kind = "embedded" if find_mosquitto() is None else "mosquitto"
    settings: dict[str, Any] = {"min_updates": devices, "rounds": rounds, **PATIENT, **job}
    federation = digits_federation(root, kind=kind, devices=devices, **settings)
    driver = Driver(federation, Proxy(federation.broker.url, seed, root / "faults.jsonl"), seed)
    began_s = time.monotonic()
    try:
        driver.prepare(journal_mb=round(rounds * ROUND_MB))
        done = driver.run(strikes)
        journal = root / "coordinator" / "journal.sqlite"
        rows = accepted(journal)
        logs = {name: device_log(root / name / "client.log") for name in federation.names}
        return Outcome(
            seed=seed,
            seconds=round(time.monotonic() - began_s, 1),
            digests=tuple(version_digests(journal)),
            updates=len(rows),
            wrong=tuple(differences(rows, logs, _wanted(rounds, federation.names, job.get("schedule")))),
            faults=dict(sorted(Counter(each.fault for each in driver.proxy.faults).items())),
            ended=tuple(driver.ended),
            skipped=driver.skipped,
            done=done,
        )
    finally:
        driver.close()


def _wanted(rounds: int, names: list[str], schedule: object) -> Wanted:
    match schedule:
        case None:
            return every_round(rounds, names)
        case {"name": "fedasync"}:
            return full_buffers(rounds, 1)
        case {"buffer": int(buffer)}:
            return full_buffers(rounds, buffer)
    raise ValueError(f"no rule says what a schedule like {schedule} must have folded")
