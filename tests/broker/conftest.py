"""Brokers for the tests of this room."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
from typing import TYPE_CHECKING, Self

import pytest
from broker.raw_client import RawClient

from coordinator.broker import RunningBroker, find_mosquitto, start_broker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

KINDS = (
    "embedded",
    pytest.param(
        "mosquitto",
        marks=pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed: apt install mosquitto"),
    ),
)
_numbers = itertools.count()


@pytest.fixture(scope="session", params=KINDS)
def broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    """One broker of each kind for all tests of the behaviour both share."""
    with start_broker(None, tmp_path_factory.mktemp(request.param), kind=request.param) as running:
        yield running


@pytest.fixture
def port(broker: RunningBroker) -> int:
    return port_of(broker.url)


@pytest.fixture
def client(port: int) -> Iterator[Callable[[], RawClient]]:
    """Make clients that are connected by TCP and not logged in; closed after the test."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(RawClient(port))


@pytest.fixture
def name() -> str:
    """A prefix for topics and client ids that no other test uses: the broker outlives the test."""
    return f"t{next(_numbers)}"


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Callable[..., Embedded]]:
    """Start embedded brokers of one's own, with options of the command line."""
    with contextlib.ExitStack() as stack:
        yield lambda *options: stack.enter_context(Embedded(tmp_path / "stderr.log", options))


class Embedded:
    """An embedded broker process, its clients, and its log."""

    def __init__(self, log: Path, options: tuple[str, ...]) -> None:
        command = [sys.executable, "-m", "coordinator.broker.cli", "--port", "0", *options]
        self.log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=out)
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        assert line.startswith("listening mqtt://127.0.0.1:"), log.read_text()
        self.port = port_of(line.split()[1])
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self.process.terminate()
        assert self.process.wait(20) == 0, self.log.read_text()
        assert self.process.stdout is not None
        self.process.stdout.close()
        assert "Traceback" not in self.log.read_text()

    def client(self, client_id: str | None = None, *, receive_buffer_bytes: int | None = None) -> RawClient:
        """A client; logged in when an id is given."""
        client = self._stack.enter_context(RawClient(self.port, receive_buffer_bytes=receive_buffer_bytes))
        if client_id is not None:
            assert client.log_in(client_id).code == 0
        return client


def port_of(url: str) -> int:
    return int(url.rsplit(":", 1)[1])
