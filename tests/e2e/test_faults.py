"""Faults on real processes with mosquitto: killed devices, a killed coordinator, a restarted broker."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from coordinator.broker import find_mosquitto
from coordinator.demo import fleet
from support.fleet import SITE, Federation, digits_federation

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed: apt-get install mosquitto"),
]

# A round is still running when the fault strikes, and rounds are left when the victim has come back; yet short enough
# for a test.
EPOCHS, ROUNDS = 150, 6


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    running = digits_federation(tmp_path, kind="mosquitto", rounds=ROUNDS, epochs=EPOCHS, grace_s=2.0)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def undisturbed_sha256(tmp_path_factory: pytest.TempPathFactory) -> str:
    running = digits_federation(tmp_path_factory.mktemp("calm"), kind="mosquitto", rounds=ROUNDS, epochs=EPOCHS)
    try:
        running.start()
        return str(running.until_done()["model_sha256"])
    finally:
        running.stop()


def test_a_round_completes_without_a_killed_device_and_the_device_rejoins(federation: Federation) -> None:
    federation.start()
    federation.until(lambda e: e["event"] == "round_started" and e["round"] == 2, "second round")
    federation.kill_device("dev-1")
    second = federation.until(lambda e: e["event"] == "round_done" and e["round"] == 2, "end of the second round")
    assert second["devices"] == 3
    federation.start_device("dev-1")
    federation.until(lambda e: e["event"] == "update" and e["device"] == "dev-1", "update of the restarted device")
    assert federation.until_done()["rounds"] == ROUNDS


def test_a_killed_coordinator_goes_on_from_its_journal_to_the_same_model(
    federation: Federation, undisturbed_sha256: str
) -> None:
    federation.start()
    federation.until(lambda e: e["event"] == "update" and e["round"] == 2, "first update of the second round")
    federation.kill_coordinator()
    before = len(federation.seen)
    federation.start_coordinator()
    assert federation.until_done()["model_sha256"] == undisturbed_sha256
    finished_after = [e["round"] for e in federation.seen[before:] if e["event"] == "round_done"]
    assert finished_after == list(range(2, ROUNDS + 1))


def test_a_job_survives_a_killed_and_restarted_broker(federation: Federation, undisturbed_sha256: str) -> None:
    federation.start()
    federation.until(lambda e: e["event"] == "update" and e["round"] == 2, "first update of the second round")
    federation.broker.kill()
    federation.broker.restart()
    assert federation.until_done()["model_sha256"] == undisturbed_sha256


def test_a_device_that_dies_while_the_broker_is_down_costs_the_grace_and_not_the_deadline(
    federation: Federation,
) -> None:
    """The broker comes back with the device's birth, out of its file, and nobody is left to send the will."""
    federation.start()
    federation.until(lambda e: e["event"] == "round_started" and e["round"] == 2, "second round")
    assert federation.broker.process is not None
    federation.broker.process.terminate()  # it writes its file
    federation.broker.process.wait()
    federation.kill_device("dev-1")
    federation.broker.restart()
    second = federation.until(lambda e: e["event"] == "round_done" and e["round"] == 2, "end of the second round")
    assert second["devices"] == 3
    assert federation.until_done()["rounds"] == ROUNDS
    assert all(e["seconds"] < 50.0 for e in federation.seen if e["event"] == "round_done")  # the deadline is 100 s


@pytest.mark.slow
def test_a_device_that_hangs_is_given_up_by_its_keepalive_and_takes_part_again_when_it_wakes(
    federation: Federation,
) -> None:
    """SIGSTOP leaves the connection open and nobody behind it, as a board does that lost its power or its network."""
    federation.start_coordinator()
    for name in federation.names[:-1]:
        federation.start_device(name)
    config = fleet.write_config(federation.names[-1], federation.root, federation.broker.url, SITE)
    config.write_text(config.read_text() + "keepalive_s = 5\n")
    with (config.parent / "client.log").open("ab") as log:
        command = [sys.executable, "-m", "edge_runtime", "client", "--config", str(config)]
        hanging = subprocess.Popen(command, cwd=config.parent, stdout=log, stderr=log)
    federation.devices[federation.names[-1]] = fleet.Device(federation.names[-1], config.parent, hanging)
    federation.until(lambda e: e["event"] == "round_started" and e["round"] == 2, "second round")
    hanging.send_signal(signal.SIGSTOP)
    second = federation.until(lambda e: e["event"] == "round_done" and e["round"] == 2, "end of the second round")
    hanging.send_signal(signal.SIGCONT)
    assert second["devices"] == 3
    assert 5.0 < second["seconds"] < 60.0  # keepalive, half as much again, and grace; far from the deadline
    federation.until(lambda e: e["event"] == "device" and e["state"] == "online", "return of the device")
    assert federation.until_done()["rounds"] == ROUNDS
