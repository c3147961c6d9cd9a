"""The parent's end: children that run steps in turns, and why one of them cannot."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from support.data import REPOSITORY

BUILD = REPOSITORY / "build" / "peers"
HERE = Path(__file__).parent
INSTALL = "make bench-peers"
START_S = 120.0
ANSWER_S = 300.0
COMPILE_S = 600.0  # torch.compile, the first time; what it compiled is kept in build/peers
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}


class PeerUnavailable(Exception):
    """A peer is not installed, or cannot train this network; the message says which and what to do."""


@dataclass(frozen=True)
class Program:
    """How a peer is started: its command, the file whose absence means that it is not installed, and its patience."""

    name: str
    command: tuple[str, ...]
    needs: Path
    start_s: float = START_S


class Peer:
    """A running child of `channel.py`'s protocol."""

    def __init__(self, program: Program, log: Path) -> None:
        if not program.needs.exists():
            raise PeerUnavailable(f"{program.name} is not installed: {INSTALL}")
        self._program, self._log = program, log
        paths = [str(REPOSITORY), str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH", "")]
        cache = {"TORCHINDUCTOR_CACHE_DIR": str(BUILD / "inductor")}
        environment = {**os.environ, **ONE_THREAD, **cache, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                program.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                bufsize=0,
            )
        begin = time.monotonic()
        try:
            self.version = self._answer(program.start_s).removeprefix("ready ")
        except PeerUnavailable:
            self.stop()
            raise
        self.start_s = time.monotonic() - begin
        self.losses: list[float] = []

    def run(self, steps: int) -> float:
        """Processor seconds a step over `steps` steps."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"run {steps}\n".encode())
        used_s, loss = self._answer(ANSWER_S).split()
        self.losses.append(float(loss))
        return float(used_s) / steps

    def stop(self) -> None:
        """End the child and what it started: torch.compile starts compilers."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()

    def _answer(self, patience_s: float) -> str:
        assert self._process.stdout is not None
        until, line = time.monotonic() + patience_s, b""
        while not line.endswith(b"\n"):
            readable, _, _ = select.select([self._process.stdout], [], [], max(0.0, until - time.monotonic()))
            if not readable:
                raise PeerUnavailable(f"{self._program.name} did not answer within {patience_s:.0f} s")
            if not (part := os.read(self._process.stdout.fileno(), 4096)):
                raise PeerUnavailable(f"{self._program.name} ended: {_last_line(self._log)}")
            line += part
        return line.decode().strip()


def learned(losses: list[float]) -> bool:
    """Whether training on one batch lowered the loss: a peer that trains nothing is fast."""
    return statistics.fmean(losses[-3:]) < losses[0]


def programs(folder: Path, network: str, batch: int, lr: float, momentum: float) -> dict[str, Program]:
    """Ours and every peer, by name, for a network prepared in `folder`."""
    here, python, rate, pull = str(folder), sys.executable, str(lr), str(momentum)
    ort, mnn, dlib = (BUILD / name for name in ("ort/bin/python", "mnn/bin/python", "dlib_child"))

    def torch(mode: str, start_s: float = START_S) -> Program:
        command = (python, str(HERE / "torch_child.py"), here, network, mode, rate, pull)
        return Program(f"torch {mode}", command, Path(python), start_s)

    return {
        "ours": Program("ours", (python, str(HERE / "ours_child.py"), here), Path(python)),
        "torch nchw": torch("nchw"),
        "torch nhwc": torch("nhwc"),
        "torch.compile": torch("compile", COMPILE_S),
        "onnxruntime-training": Program(
            "onnxruntime-training", (str(ort), str(HERE / "ort_child.py"), here, rate), ort
        ),
        "MNN": Program("MNN", (str(mnn), str(HERE / "mnn_child.py"), here, network, rate, pull), mnn),
        "dlib": Program("dlib", (str(dlib), here, network, str(batch), rate, pull), dlib),
    }


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"{lines[-1].strip()[:200]} ({log})" if lines else f"no word of why ({log})"
