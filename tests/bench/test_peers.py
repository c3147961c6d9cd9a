"""The bench's children: they train, and one that cannot run says why."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
from bench.peers.process import (
    Peer,
    PeerUnavailable,
    Program,
    learned,
    programs,
)
from bench.timing import alternate
from bench.training_steps import LR, MOMENTUM, prepare

CHILD = """\
import sys
print("ready 1.0", flush=True)
for line in sys.stdin:
    print(float(line.split()[1]), 0.5, flush=True)
"""


def program(code: str, start_s: float = 30.0) -> Program:
    return Program("toy", (sys.executable, "-c", code), Path(sys.executable), start_s)


def test_our_child_and_torchs_train_the_same_network(tmp_path: Path) -> None:
    prepare("lenet5", tmp_path)
    offered = programs(tmp_path, "lenet5", 32, LR, MOMENTUM)
    peers = {name: Peer(offered[name], tmp_path / f"{name}.log") for name in ("ours", "torch nchw")}
    try:
        peers["ours"].run(1)  # as torch's child does before it is ready
        times = alternate({name: peer.run for name, peer in peers.items()}, blocks=3, block_s=0.01)
    finally:
        for peer in peers.values():
            peer.stop()
    ours, theirs = (peers[name].losses for name in peers)
    assert all(len(of_one) == 3 and min(of_one) > 0 for of_one in times.values())
    assert learned(ours)
    assert ours[1] == pytest.approx(theirs[0], rel=1e-5)  # the same four steps from the same start


def test_a_child_answers_in_seconds_a_step(tmp_path: Path) -> None:
    peer = Peer(program(CHILD), tmp_path / "log")
    assert (peer.run(4), peer.losses) == (1.0, [0.5])
    peer.stop()


def test_a_peer_that_is_not_installed_names_the_command_that_installs_it(tmp_path: Path) -> None:
    absent = Program("MNN", ("nothing",), tmp_path / "nothing")
    with pytest.raises(PeerUnavailable, match="MNN is not installed: make bench-peers"):
        Peer(absent, tmp_path / "log")


def test_a_peer_that_ends_says_its_last_word(tmp_path: Path) -> None:
    with pytest.raises(PeerUnavailable, match="toy ended: RuntimeError: no gradient for this"):
        Peer(program("raise RuntimeError('no gradient for this')"), tmp_path / "log")


def test_a_peer_that_never_answers_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(PeerUnavailable, match="toy did not answer within 1 s"):
        Peer(program("import time; time.sleep(60)", start_s=1.0), tmp_path / "log")


def test_a_loss_that_stays_is_no_training() -> None:
    assert not learned([2.3, 2.3, 2.3, 2.3])
    assert learned([2.3, 2.2, 2.1, 2.0])
