"""Reading and writing SQLite: every write is a transaction, or a part of a batch's, by who holds the lease."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from coordinator.journal import explained
from coordinator.lease import Lease, check_lease


class Write(Protocol):
    """Runs one statement of a transaction and returns how many rows it has changed."""

    def __call__(self, statement: str, values: tuple[Any, ...] = (), /) -> int: ...  # noqa: D102  the class says it


class Transactions:
    """An open connection; `last_commit_s` is how long the last commit took, its fsync included."""

    def __init__(self, connection: sqlite3.Connection, path: Path, lease: Lease | None) -> None:
        self._connection = connection
        self._path = path
        self._lease = lease
        self._batched = False
        self.last_commit_s = 0.0

    @property
    def directory(self) -> Path:
        """The state directory."""
        return self._path.parent

    def transaction(self) -> AbstractContextManager[Write]:
        """Everything that is written inside is written together, or not at all."""
        return self._writing()

    def rows(self, query: str, values: tuple[Any, ...] = ()) -> list[Any]:
        """What a query finds; inside a transaction also what that has written."""
        return self._all(query, values)

    def foreign_changes(self) -> int:
        """A number that differs from the last one when another process has written to the journal since."""
        return int(self._one("PRAGMA data_version")[0])

    def _one(self, query: str, values: tuple[Any, ...] = ()) -> Any:
        with explained(self._path):
            return self._connection.execute(query, values).fetchone()

    def _all(self, query: str, values: tuple[Any, ...] = ()) -> list[Any]:
        with explained(self._path):
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Make one transaction of all that is written inside, with one fsync at its end; reads inside see it already.

        Nothing that follows from what is written may leave this process before the end. When the batch fails, all of
        it is undone, whatever has been made of it in memory.
        """
        with explained(self._path):
            self._batched = True
            try:
                yield
                if self._connection.in_transaction:
                    self._commit()
            finally:
                self._batched = False
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    @contextmanager
    def _writing(self) -> Iterator[Write]:
        """One transaction, or a part of the batch's."""
        with explained(self._path):
            begins = not self._connection.in_transaction
            if begins:
                self._connection.execute("BEGIN IMMEDIATE")
            try:
                if begins and self._lease is not None:  # nobody else can write until this transaction ends
                    check_lease(self._connection, self.directory, self._lease)
                yield lambda statement, values=(): self._connection.execute(statement, values).rowcount
                if not self._batched:
                    self._commit()
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _commit(self) -> None:
        began_s = time.perf_counter()
        self._connection.execute("COMMIT")
        self.last_commit_s = time.perf_counter() - began_s
