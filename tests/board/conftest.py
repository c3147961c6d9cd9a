"""Brokers, links and plans for the tests of the board."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.broker import RunningBroker, find_mosquitto, start_broker
from coordinator.speaker import GatewaySpeaker
from edge_runtime.link import Link
from edge_runtime.paho_speaker import PahoSpeaker
from support.boards import Compiled, compile_model

KINDS = (
    "embedded",
    pytest.param(
        "mosquitto",
        marks=pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed: apt install mosquitto"),
    ),
)


@pytest.fixture(params=KINDS)
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunningBroker]:
    """A broker of one's own, of each kind, that may be killed and started again."""
    with start_broker(None, tmp_path / "broker", kind=request.param) as running:
        yield running


@pytest.fixture
def any_broker(tmp_path: Path) -> Iterator[RunningBroker]:
    """A broker of whatever kind this machine has."""
    with start_broker(None, tmp_path / "broker") as running:
        yield running


@pytest.fixture(params=(PahoSpeaker, GatewaySpeaker))
def links(request: pytest.FixtureRequest) -> Iterator[Callable[..., Link]]:
    """Make links that are closed after the test, as boards have them and as gateways have them."""
    made: list[Link] = []

    def make(url: str, client_id: str, **options: Any) -> Link:
        made.append(Link(url, client_id, speak=request.param, **options))
        return made[-1]

    yield make
    for link in made:
        link.close(0.2)


@pytest.fixture(scope="session")
def lenet() -> Compiled:
    """The zoo's network for (1, 8, 8) images in batches of 8, compiled."""
    return compile_model("lenet", (1, 8, 8), batch=8)


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """A data directory with 20 random images of 10 classes."""
    rng = np.random.default_rng(5)
    folder = tmp_path / "data"
    folder.mkdir()
    x = rng.integers(0, 256, (20, 8, 8), dtype=np.uint8)
    np.savez(folder / "train.npz", x=x, y=np.arange(20) % 10)
    return folder
