"""What this machine is and what this process has used of it."""

import ctypes
import os
import platform
from pathlib import Path
from typing import Any

from edge_runtime import __version__, _core

__all__ = ["describe_board", "memory_peak_kb", "return_free_memory"]


def describe_board() -> dict[str, Any]:
    """The machine in a few words: instruction set, architecture, cores, memory, version."""
    return {
        "version": __version__,
        "isa": _core.info()["isa"],
        "arch": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
    }


def memory_peak_kb() -> int:
    """The largest resident set of this process so far, in KiB.

    VmHWM, not ru_maxrss: Linux hands the latter's value down from the parent through fork and exec, so that a small
    child of a large process would report its parent's peak.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return int(status.partition("VmHWM:")[2].split()[0])


def return_free_memory() -> None:
    """Give the system the heap's free pages back, such as those of a fetched blob's chunks between blocks in use."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # other C libraries have no such call and need none
        trim(0)
