"""A site in memory whose operator asks for things, as another process would."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from coordinator.control import attend
from coordinator.journal import JOURNAL_NAME
from coordinator.requests import Inbox
from coordinator.store import open_reader
from support.memory import MemorySite


class Operated(MemorySite):
    """A site whose coordinator looks for requests at every turn, as the shell does."""

    inbox: Inbox | None = None

    def renew(self) -> None:
        """Make the job anew from the journal, on the connection that it has."""
        assert self.job is not None
        self.job = type(self.job)(self.job._parts, "test", self.job.session.epoch, self.job.session.boot, self.now_s)
        self.send(self.job.connected(self.now_s))

    def _coordinator_turn(self) -> None:
        super()._coordinator_turn()
        if self.job is None or self.job.exit_code is not None:
            return
        store = self.job._parts.store
        if self.inbox is None or self.inbox._store is not store:
            self.inbox = Inbox(store)
        attended = attend(self.job, store, self.inbox, self.now_s)
        self.send(attended.commands)
        if attended.renew:
            self.renew()

    def ask(self, verb: str, argument: str = "") -> int:
        """Another process writes a request."""
        with closing(sqlite3.connect(self.state / JOURNAL_NAME, isolation_level=None)) as connection:
            row = (verb, argument, "ann@desk", "2026-11-20T10:00:00+00:00")
            statement = "INSERT INTO requests (verb, argument, asked_by, asked_at) VALUES (?, ?, ?, ?)"
            return int(connection.execute(statement, row).lastrowid or 0)

    def answer(self, number: int) -> tuple[str, str]:
        with closing(open_reader(self.state)) as store:
            ((outcome, message),) = store.rows("SELECT outcome, message FROM requests WHERE request = ?", (number,))
            return outcome, message
