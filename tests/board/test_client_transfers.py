"""The client as a process: what a transfer takes of its memory, and how a killed one goes on."""

from __future__ import annotations

import hashlib
import signal
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edge_runtime.blob_file import BlobFile
from edge_runtime.tensors import encode_tensors
from edge_runtime.wire.chunks import CHUNK_BYTES
from edge_runtime.wire.events import DeviceStatus, Telemetry
from support.boards import ClientProcess, Compiled, Gateway, start_client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from coordinator.broker import RunningBroker

    Start = Callable[..., ClientProcess]

LARGE_BYTES = 24 << 20


@pytest.fixture
def gateway(any_broker: RunningBroker) -> Iterator[Gateway]:
    gateway = Gateway(any_broker.url)
    yield gateway
    gateway.link.close()


@pytest.fixture
def start(any_broker: RunningBroker, digits: Path, tmp_path: Path) -> Iterator[Start]:
    clients: list[ClientProcess] = []

    def run(device: str, *options: str) -> ClientProcess:
        clients.append(start_client(any_broker.url, device, digits, tmp_path / device, *options))
        return clients[-1]

    yield run
    for client in clients:
        client.process.kill()
        client.process.wait()


def weighed_down(model: Compiled, size_bytes: int) -> Compiled:
    """The same plan, and weights with a tensor beside them that no plan reads."""
    ballast = np.random.default_rng(1).integers(0, 1 << 31, size_bytes // 4, np.int32).view(np.float32)
    return Compiled(model.plan, {**model.weights, "ballast": ballast})


def measured(gateway: Gateway, device: str) -> dict[str, Any]:
    told = [event for event in gateway.events if isinstance(event, Telemetry) and event.device == device]
    return dict(told[-1].fields)


def trained(gateway: Gateway, device: str) -> bool:
    return any(update.device == device for update in gateway.updates) and any(
        isinstance(event, Telemetry) and event.device == device for event in gateway.events
    )


def test_large_weights_take_no_more_memory_than_small_ones(gateway: Gateway, start: Start, lenet: Compiled) -> None:
    peaks = {}
    for device, size_bytes in (("small", 2 * CHUNK_BYTES), ("large", LARGE_BYTES)):
        start(device)
        gateway.send(device, device, weighed_down(lenet, size_bytes))
        gateway.until(lambda device=device: trained(gateway, device), 60)
        peaks[device] = measured(gateway, device)["rss_peak_kb"]
    print(f"peak with 128 KiB of weights: {peaks['small']} kB, with 24 MiB: {peaks['large']} kB")
    # Two processes differ by a few hundred kB anyway; `edge-runtime bench wire` weighs a transfer within one.
    assert peaks["large"] - peaks["small"] <= LARGE_BYTES // 1024 / 24


def test_a_killed_download_goes_on_where_it_was(
    gateway: Gateway, start: Start, lenet: Compiled, tmp_path: Path
) -> None:
    heavy = weighed_down(lenet, LARGE_BYTES)
    weights = encode_tensors(heavy.weights)
    path = tmp_path / "a" / "weights" / hashlib.sha256(weights).hexdigest()
    partial = path.with_name(path.name + ".part")
    client = start("a")
    gateway.send("a", "t", heavy)
    gateway.until(partial.exists)
    before = 0
    while before < 16:  # looked at while it stands still, or a fast machine would be through meanwhile
        client.process.send_signal(signal.SIGCONT)
        gateway.step(0.01)
        client.process.send_signal(signal.SIGSTOP)
        before = held(partial, path, len(weights))
    client.process.kill()
    client.process.wait()
    gateway.until(lambda: [e.state for e in gateway.events if isinstance(e, DeviceStatus)][-1] == "lost")
    start("a")
    gateway.until(lambda: trained(gateway, "a"), 60)
    again = measured(gateway, "a")["bytes_down"] - len(lenet.plan)
    left = len(weights) - before * CHUNK_BYTES
    assert left <= again <= left + 0.05 * len(weights)
    assert path.read_bytes() == weights


def held(partial: Path, path: Path, size_bytes: int) -> int:
    """Chunks that a download has left."""
    copy = path.with_name("copy")
    partial.with_name("copy.part").write_bytes(partial.read_bytes())
    file = BlobFile(copy, size_bytes, lambda _: None, lambda error: pytest.fail(str(error)))
    count = sum(bits.bit_count() for bits in file.begin())
    file.close()
    return count


def test_an_update_is_sent_from_the_disk_and_after_a_kill_too(
    gateway: Gateway, start: Start, lenet: Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hear = gateway.session.received
    monkeypatch.setattr(gateway.session, "received", lambda *_, **__: [])  # no offer is answered
    client = start("a")
    gateway.send("a", "t", lenet)
    outbox = tmp_path / "a" / "outbox"
    gateway.until(outbox.exists)
    monkeypatch.setattr(gateway.session, "received", hear)
    client.process.kill()
    client.process.wait()
    start("a")
    gateway.until(lambda: gateway.updates)
    assert outbox.read_bytes().endswith(gateway.updates[0].data)
