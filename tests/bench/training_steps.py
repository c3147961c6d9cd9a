"""T11-T17: a training step of each network, ours beside every peer that can train it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bench.peers.process import BUILD, INSTALL, Peer, PeerUnavailable, learned, programs
from bench.timing import alternate, judged
from models.compiler import compile_training, import_onnx, weights_of
from support.networks import NETWORKS, export

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from bench.peers.process import Program
    from models.compiler.training import Report

LR, MOMENTUM = 0.001, 0.9
TORCH = ("torch nchw", "torch nhwc", "torch.compile")


@dataclass(frozen=True)
class Work:
    """A row: its network, what is asked for against torch's best and against the other peers."""

    row: str
    network: str
    torch: float
    others: tuple[tuple[str, float], ...]

    def targets(self) -> dict[str, float]:
        """Per peer that is asked."""
        images = len(NETWORKS[self.network].shape) == 3
        return {name: self.torch for name in TORCH if images or name != "torch nhwc"} | dict(self.others)


WORKS = (
    Work("T11", "lenet5", 3.5, (("onnxruntime-training", 3.8), ("MNN", 6.0), ("dlib", 5.0))),
    Work("T12", "har_cnn", 2.1, (("onnxruntime-training", 2.4),)),
    Work("T13", "resnet8", 1.8, (("onnxruntime-training", 3.2), ("MNN", 2.1), ("dlib", 7.0))),
    Work("T14", "mobilenet_v2", 3.3, (("onnxruntime-training", 5.8),)),
    Work("T15", "r2plus1d_10", 2.2, (("onnxruntime-training", 11.0),)),
    Work("T16", "vit_tiny", 1.25, ()),
    Work("T17", "fedavg_cnn", 1.5, (("onnxruntime-training", 2.5),)),
)


def rows_of(work: Work, peak: float) -> list[dict[str, Any]]:
    """One row a peer; `peak` is in multiply-adds a second.

    Raises:
        PeerUnavailable: Our own step cannot be measured.
    """
    folder, batch = BUILD / "work" / work.network, NETWORKS[work.network].batch
    folder.mkdir(parents=True, exist_ok=True)
    report, targets = prepare(work.network, folder), work.targets()
    offered = programs(folder, work.network, batch, LR, MOMENTUM)
    with ExitStack() as stack:
        running, absent = _started({name: offered[name] for name in ("ours", *targets)}, folder, stack)
        times = alternate({name: peer.run for name, peer in running.items()})
    for name in [name for name, peer in running.items() if not learned(peer.losses)]:
        absent[name] = f"{running.pop(name).version} trained nothing: its loss did not fall"
    if "ours" in absent:
        raise PeerUnavailable(absent["ours"])
    common = {"id": work.row, "work": f"{work.network} step, batch {batch}"}
    floor_s = sum(report.multiply_adds) / peak
    return [
        {**common, **_row(name, target, running, times, floor_s), **_why(name, absent)}
        for name, target in targets.items()
    ]


def _started(wanted: Mapping[str, Program], folder: Path, stack: ExitStack) -> tuple[dict[str, Peer], dict[str, str]]:
    """The children that trained a first step, and why the others did not."""
    running, absent = {}, {}
    for name, program in wanted.items():
        try:
            peer = Peer(program, folder / f"{name}.log")
            stack.callback(peer.stop)
            peer.run(1)
        except PeerUnavailable as error:
            absent[name] = str(error)
        else:
            running[name] = peer
    return running, absent


def prepare(network: str, folder: Path) -> Report:
    """Write the network and one batch in the forms that the children read."""
    known = NETWORKS[network]
    torch.manual_seed(1)
    model = export(known.build(), known)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((known.batch, *known.shape)).astype(np.float32)
    y = rng.integers(0, known.classes, known.batch).astype(np.int32)
    compiled = compile_training(import_onnx(model, batch=known.batch), momentum=MOMENTUM)
    (folder / "model.onnx").write_bytes(model)
    (folder / "step.plan").write_bytes(compiled.plan)
    np.savez(folder / "weights.npz", lr=np.array(LR, np.float32), **weights_of(model))
    np.savez(folder / "batch.npz", x=x, y=y)
    (folder / "x.f32").write_bytes(x.tobytes())
    (folder / "y.i32").write_bytes(y.tobytes())
    return compiled.report


def _row(
    name: str, target: float, running: dict[str, Peer], times: dict[str, list[float]], floor_s: float
) -> dict[str, Any]:
    if name not in running:
        return {"peer": name, "peer_s": None, "ratio": None, "target": target}
    peer = running[name]
    return {
        "peer": f"{name} {peer.version}",
        **judged(times["ours"], times[name], target, floor_s),
        "start_s": round(peer.start_s, 1),
    }


def _why(name: str, absent: dict[str, str]) -> dict[str, str]:
    if name not in absent:
        return {}
    return {"install" if INSTALL in absent[name] else "failed": absent[name]}
