"""A pytest plugin that keeps every plan the tests run as a seed for the fuzzer: networks, and every use of each kernel.

`KEPT_PLANS=FOLDER PYTHONPATH=tests pytest -p support.keep_plans tests/engine`
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from edge_runtime import _core

MOST_BYTES = 64 << 10  # larger ones are broken further too slowly
FOLDER = Path(os.environ["KEPT_PLANS"])


class KeepingEngine(_core.Engine):
    """An engine that leaves a copy of its plan, by the name of its content."""

    def __init__(self, plan: bytes, threads: int = 1, isa: str = "auto") -> None:
        super().__init__(plan, threads, isa)
        if len(plan) <= MOST_BYTES:
            FOLDER.mkdir(parents=True, exist_ok=True)
            (FOLDER / hashlib.sha256(plan).hexdigest()[:16]).write_bytes(plan)


_core.Engine = KeepingEngine
