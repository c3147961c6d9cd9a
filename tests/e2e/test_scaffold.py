"""Control variates and personal tensors with real clients: what devices keep outlives killed processes."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import pytest

from coordinator.broker import find_mosquitto
from coordinator.store import open_store
from edge_runtime.codecs import find_codec
from edge_runtime.plan import CONTROL
from edge_runtime.slots import SLOTS_NAME, Slots, own_controls, own_tensors
from edge_runtime.tensors import decode_tensors
from edge_runtime.wire.tasks import Carry
from support.fleet import Federation, digits_federation

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e

KIND = "embedded" if find_mosquitto() is None else "mosquitto"
ROUNDS = 5


def run_job(root: Path, *, killed: bool, **job: object) -> Federation:
    running = digits_federation(root, kind=KIND, rounds=ROUNDS, **job)
    try:
        running.start()
        if killed:
            running.until(lambda e: e["event"] == "round_started" and e["round"] == 3, "third round")
            running.kill_device("dev-1")
            running.kill_coordinator()
            running.start_device("dev-1")
            running.start_coordinator()
        running.until_done()
        return running
    finally:
        running.stop()


def kept(running: Federation, name: str) -> tuple[Slots, Carry]:
    """A device's slots, and what the journal says counted last."""
    with closing(open_store(running.root / "coordinator")) as store:
        return Slots(running.root / name / "state" / SLOTS_NAME), Carry(store.run(), *(store.last_counted(name) or ()))


@pytest.mark.parametrize("codec", [["dense"], ["int8"]], ids=" ".join)
def test_killed_processes_change_no_bit_of_scaffold_and_c_stays_the_mean(tmp_path: Path, codec: list[str]) -> None:
    settings = {"method": {"name": "scaffold"}, "codec": codec}
    whole = run_job(tmp_path / "whole", killed=False, **settings)
    broken = run_job(tmp_path / "broken", killed=True, **settings)
    finals = [(each.root / "coordinator" / "final.safetensors").read_bytes() for each in (whole, broken)]
    assert finals[0] == finals[1]
    with closing(open_store(broken.root / "coordinator")) as store:
        weights = decode_tensors(store.latest().weights)[0]
    own = [own_controls(*kept(broken, name), find_codec(codec))[0] for name in broken.names]
    controls = {name: array for name, array in weights.items() if name.startswith(CONTROL)}
    assert len(controls) == len(decode_tensors(finals[0])[0])
    for name, c in controls.items():
        mean = np.mean([each[name.removeprefix(CONTROL)] for each in own], axis=0)
        np.testing.assert_allclose(c, mean, atol=1e-5)
        assert np.abs(c).max() > 1e-4


def test_heads_of_their_own_outlive_killed_processes(tmp_path: Path) -> None:
    running = run_job(tmp_path, killed=True, personal=["fc2.*"])
    heads = [own_tensors(*kept(running, name)) for name in running.names]
    assert all(head.keys() == {"fc2.bias", "fc2.weight"} for head in heads)
    assert len({head["fc2.weight"].tobytes() for head in heads}) == len(running.names)
    sent = [event["loss"] for event in running.seen if event["event"] == "update" and event["round"] == ROUNDS]
    first = [event["loss"] for event in running.seen if event["event"] == "update" and event["round"] == 1]
    assert np.mean(sent) < 0.5 * np.mean(first)
