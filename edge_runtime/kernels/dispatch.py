"""Which kernels run on this machine, and why."""

from __future__ import annotations

import os
import platform
from typing import TypedDict

from edge_runtime import _core
from edge_runtime.kernels import cuda

__all__ = ["KernelInfo", "info"]

# Slowest first, as `_core.info()` lists them.
BUILT = {"x86_64": ("portable", "avx2", "avx512"), "aarch64": ("neon",), "armv7l": ("portable", "neon")}


class KernelInfo(TypedDict):
    """What `info` says."""

    isa: str  # the instruction set of isa="auto"
    why: str
    available: list[str]  # slowest first; each can be forced: Workspace(isa=...), or EDGE_ISA in the environment
    unavailable: list[str]  # built, but not runnable on this processor
    compiler: str
    cuda: cuda.CudaInfo


def info() -> KernelInfo:
    """Say which instruction set kernels use here, why, and which others could be forced.

    Returns:
        The choice of `isa="auto"`, its reason, what runs here, what does not, the compiler, and CUDA.

    Raises:
        ValueError: EDGE_ISA asks for an instruction set that cannot run here.
    """
    core = _core.info()
    forced = os.environ.get("EDGE_ISA", "auto") not in ("", "auto")
    built = BUILT.get(platform.machine(), ("portable",))
    return {
        "isa": core["isa"],
        "why": f"EDGE_ISA={core['isa']} is set" if forced else "the fastest that this processor runs",
        "available": core["available"],
        "unavailable": [isa for isa in built if isa not in core["available"]],
        "compiler": core["compiler"],
        "cuda": cuda.info(),
    }
