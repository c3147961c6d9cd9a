"""The child's end of a bench: answers on standard output, one line for each line on standard input.

First `ready VERSION`; then, to `run N`, the processor seconds of N training steps and the loss after them. Imported by
scripts that run in other environments, so it needs nothing but Python.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Channel:
    """Standard output kept for answers: what a library prints goes to standard error."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def serve(self, version: str, step: Callable[[], None], loss: Callable[[], float]) -> None:
        """Answer until standard input ends."""
        self._say(f"ready {version}")
        for line in sys.stdin:
            count = int(line.removeprefix("run "))
            begin = time.process_time()
            for _ in range(count):
                step()
            used_s = time.process_time() - begin
            self._say(f"{used_s:.9f} {loss():.6g}")

    def _say(self, line: str) -> None:
        self._out.write(line + "\n")
        self._out.flush()
