"""T23 and T24: what must be installed to train a step, and how long a fresh process takes to its first one."""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.peers.process import BUILD, HERE, INSTALL, ONE_THREAD
from bench.training_steps import prepare
from edge_runtime import _core
from support.data import REPOSITORY

PAIRS = 5
MB = 1e6
SIZE_LIMIT_MB, COLD_LIMIT_S = 1.2, 0.05
COLD_TARGET = 20.0
# What trains in each peer's package, by the folder it is in, and the ratio asked for.
NATIVE = (
    ("torch", 600.0, "torch", "lib/*.so*"),
    ("onnxruntime-training, its CPU part", 20.0, "ort", "onnxruntime/capi/onnxruntime_pybind11_state*.so"),
    ("MNN", 4.8, "mnn", "_mnncengine*.so"),
)


def size_rows() -> list[dict[str, Any]]:
    """T23: megabytes of stripped machine code, ours and each peer's."""
    ours_mb = _stripped_bytes(Path(_core.__file__)) / MB
    rows = []
    for peer, target, owner, pattern in NATIVE:
        files = list(_packages(owner).glob(pattern))
        common = {
            "id": "T23",
            "work": "native code that trains, stripped",
            "peer": peer,
            "ours_s": None,
            "peer_s": None,
        }
        if not files:
            rows.append({**common, "ours_mb": round(ours_mb, 3), "ratio": None, "target": target, "install": INSTALL})
            continue
        peer_mb = sum(_stripped_bytes(f) for f in files if not f.is_symlink()) / MB
        rows.append(
            {
                **common,
                "ours_mb": round(ours_mb, 3),
                "peer_mb": round(peer_mb, 1),
                "ratio": round(peer_mb / ours_mb, 1),
                "target": target,
                "target_mb": SIZE_LIMIT_MB,
                "met": ours_mb <= SIZE_LIMIT_MB and peer_mb / ours_mb >= target,
            }
        )
    return rows


def cold_row() -> dict[str, Any]:
    """T24: processor seconds of a whole process that imports, loads LeNet-5, trains one step and ends."""
    folder = BUILD / "work" / "lenet5"
    folder.mkdir(parents=True, exist_ok=True)
    prepare("lenet5", folder)
    ours_command = [sys.executable, str(HERE / "ours_child.py"), str(folder)]
    torch_command = [sys.executable, str(HERE / "torch_child.py"), str(folder), "lenet5", "nchw", "0.001", "0.9"]
    pairs = [(_whole_process_s(ours_command), _whole_process_s(torch_command)) for _ in range(PAIRS)]
    bare_s = statistics.median(_whole_process_s([sys.executable, "-c", "import numpy"]) for _ in range(PAIRS))
    ours_s, peer_s = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
    ratios = [theirs / ours for ours, theirs in pairs]
    return {
        "id": "T24",
        "work": "lenet5: import and first step of a fresh process",
        "peer": f"torch nchw {metadata.version('torch')}",
        "ours_s": round(ours_s, 4),
        "peer_s": round(peer_s, 4),
        "ratio": round(peer_s / ours_s, 1),
        "target": COLD_TARGET,
        "target_s": COLD_LIMIT_S,
        "bound": round(peer_s / bare_s, 1),  # a process that only imports numpy
        "share_of_bound": round(bare_s / ours_s, 3),
        "met": peer_s / ours_s >= COLD_TARGET and ours_s <= COLD_LIMIT_S,
        "spread": [round(min(ratios), 1), round(max(ratios), 1)],
    }


def _packages(owner: str) -> Path:
    if owner == "torch":
        return Path(str(metadata.distribution("torch").locate_file("torch")))
    return BUILD / owner / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def _stripped_bytes(library: Path) -> int:
    strip = shutil.which("strip")
    if strip is None:
        raise FileNotFoundError("T23 measures stripped code: install binutils for `strip`")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / library.name
        subprocess.run([strip, "--strip-unneeded", "-o", str(copy), str(library)], check=True)
        return copy.stat().st_size


def _whole_process_s(command: list[str]) -> float:
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH", "")])
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        command,
        input=b"run 1\n",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **ONE_THREAD, "PYTHONPATH": paths.rstrip(os.pathsep)},
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
