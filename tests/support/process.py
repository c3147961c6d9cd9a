"""What /proc says of a process."""

from __future__ import annotations

import os
from pathlib import Path


def peak_rss_kb(pid: int | str = "self") -> int:
    """Peak resident set (VmHWM) in KiB."""
    return _status(pid, "VmHWM")


def rss_kb(pid: int | str = "self") -> int:
    """Resident set now (VmRSS) in KiB."""
    return _status(pid, "VmRSS")


def cpu_s(pid: int) -> float:
    """Processor seconds so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _status(pid: int | str, key: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))
