"""A copy of a job's directory that is whole although the job goes on meanwhile."""

import secrets
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from coordinator.home import HELD_OUT, JOB_FILE, SUBMITTED, HomeError
from coordinator.journal import JOURNAL_NAME, connect_to_read, explained, sync_directory, write_file
from coordinator.results import GRAPH_NAME


def back_up(directory: Path, to: Path) -> None:
    """Copy a job: its journal as of one moment, its model, and in a home its job file and held-out data.

    The copy is a state directory, or a job's directory of a home: to restore it, put it in the other's place. It
    appears by a rename, so there is never half of one.

    Raises:
        HomeError: Something is there already.
        JournalError: The journal cannot be read or written.
        OSError: The copy cannot be written.
    """
    if to.exists():
        raise HomeError(f"{to} is there already; give a directory that is not")
    making = to.with_name(f".{to.name}-{secrets.token_hex(4)}")
    making.mkdir(parents=True)
    try:
        _copy_journal(directory / JOURNAL_NAME, making / JOURNAL_NAME)
        for name in (GRAPH_NAME, JOB_FILE, SUBMITTED):
            if (directory / name).is_file():
                write_file(making / name, (directory / name).read_bytes())
        if (directory / HELD_OUT).is_dir():
            (making / HELD_OUT).mkdir()
            for path in sorted((directory / HELD_OUT).iterdir()):
                write_file(making / HELD_OUT / path.name, path.read_bytes())
        making.rename(to)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
    sync_directory(to.parent)


def _copy_journal(path: Path, to: Path) -> None:
    with closing(connect_to_read(path)) as source, explained(to), closing(sqlite3.connect(to)) as copy:
        source.backup(copy)  # in one step: as of one moment, and writers do not wait for it
        copy.execute("PRAGMA journal_mode = WAL")
