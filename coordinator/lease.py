"""Who may write to a job's journal: one coordinator at a time, also where the lock of the directory does not reach.

The lock (`flock`) keeps out every other process of the same kernel and is free again the moment its holder dies. It
says nothing where a directory is mounted by several machines whose locks are their own. So a holder shows that it
lives: it writes a new number into the file `beat` every BEAT_S. Who finds the beat of another machine watches it for
WATCH_S of its own monotonic clock, before it touches the journal. A beat that changes is a coordinator that lives; one
that stands still was left by a machine that is gone, and the job is taken over. The holder's name is in the journal as
well (table `lease`), and every transaction begins by looking whether it is still there: a machine that slept meanwhile
finds another's name, and stops. Nobody compares hours of the day, or clocks of two machines.

A machine is one boot of one kernel, so after a power cut the watch is kept once. A copied directory has a beat that
stands still; there the site on the broker decides (epochs, docs/wire.md).
"""

import secrets
import socket
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from coordinator.journal import JournalInUse

BEAT_NAME = "beat"
BEAT_S = 5.0
WATCH_S = 3 * BEAT_S
LOOK_S = 0.2


@dataclass(frozen=True)
class Lease:
    """The right to write: a name drawn for one process, and the machine it runs on."""

    holder: str
    machine: str


def new_lease() -> Lease:
    """A lease for this process."""
    return Lease(secrets.token_hex(8), machine_of_this_boot())


def machine_of_this_boot() -> str:
    """The host's name and the random id that its kernel drew when it booted."""
    boot = secrets.token_hex(8)  # without /proc: never equal, and a beat of before is watched
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{socket.gethostname()} {boot}"


def wait_for_silence(
    directory: Path,
    lease: Lease,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Return once nobody on another machine can be at work on a state directory, whose lock is held already.

    Raises:
        JournalInUse: Somebody is.
    """
    first = _read_beat(directory)
    machine = first.partition("\n")[0]
    if machine in {"", lease.machine}:
        return  # none, or of a process of this machine, which had the lock and is dead
    until_s = clock() + WATCH_S
    while clock() < until_s:
        sleep(LOOK_S)
        now = _read_beat(directory)
        if now == "":
            return
        if now != first:
            raise JournalInUse(
                f"a coordinator on the machine {machine.split()[0]} works on {directory}; stop it there, "
                "or give this one another state directory"
            )


def take_lease(connection: sqlite3.Connection, lease: Lease) -> None:
    """Put this process's name into the journal, in the place of whoever was there."""
    row = (lease.holder, lease.machine)
    connection.execute("INSERT OR REPLACE INTO lease VALUES (1, ?, ?)", row)


def check_lease(connection: sqlite3.Connection, directory: Path, lease: Lease) -> None:
    """Inside a transaction: this process may still write.

    Raises:
        JournalInUse: Another coordinator has taken the job over.
    """
    found = connection.execute("SELECT holder, machine FROM lease").fetchone()
    if found is None or found[0] != lease.holder:
        other = "nobody" if found is None else f"a coordinator on {found[1].split()[0]}"
        raise JournalInUse(f"{directory} was taken over by {other}; this one stops, and has lost nothing")


def beat(directory: Path, lease: Lease) -> None:
    """Show that the holder lives. In place and not synced: it need not outlive a power cut, nor wear out a card.

    Raises:
        OSError: It cannot be written.
    """
    line = f"{lease.machine}\n{lease.holder} {secrets.token_hex(4)}\n"
    path = directory / BEAT_NAME
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(line.encode())  # all lines of a holder are equally long
        file.truncate()


def end_lease(directory: Path, lease: Lease) -> None:
    """The holder leaves: nobody has to watch for it. Another's beat is left alone."""
    if f"\n{lease.holder} " in _read_beat(directory):
        with suppress(OSError):  # a beat that stays costs the next machine its watch, no more
            (directory / BEAT_NAME).unlink(missing_ok=True)


def _read_beat(directory: Path) -> str:
    try:
        return (directory / BEAT_NAME).read_text(encoding="utf-8", errors="replace")[:512]
    except FileNotFoundError:
        return ""
