"""What this machine can do at most, measured with the engine's own kernels: one product, and copies of four sizes."""

from __future__ import annotations

import hashlib
import math
import struct
import time
from dataclasses import dataclass

from edge_runtime import _core

SIDE = 384  # of the square matrices: three of them are 1.7 MB, and a product takes a slow board some 50 ms
COPIES_BYTES = (64 << 10, 1 << 20, 8 << 20, 32 << 20)  # read and written together
SECONDS = 0.1  # for each measurement, after at least three runs

_GEMM, _COPY, _ABSENT = 1, 19, 0xFFFFFFFF
_BATCH, _OUTPUT, _FLOAT32 = 4, 6, 1


@dataclass(frozen=True)
class Peak:
    """The fastest runs seen.

    Attributes:
        multiply_adds_per_s: Of a square product of side SIDE.
        copies: (bytes read and written, bytes a second) of a copy, ascending.
    """

    multiply_adds_per_s: float
    copies: tuple[tuple[int, float], ...]

    def bytes_per_s(self, nbytes: int) -> float:
        """The speed of the copy whose size is nearest in ratio: what fits into a cache is faster."""
        return min(self.copies, key=lambda copy: abs(math.log(max(nbytes, 1) / copy[0])))[1]

    def seconds(self, multiply_adds: int, nbytes: int) -> float:
        """The least time for so much work: that of the scarcer of the two (arXiv 0902.2187's roofline)."""
        return max(multiply_adds / self.multiply_adds_per_s, nbytes / self.bytes_per_s(nbytes))


def measure_peak(threads: int, isa: str) -> Peak:
    """Run the product and the copies; takes about a second, and 36 MB for a moment."""
    square = (SIDE, SIDE)
    product_s = _fastest_s(_plan(_GEMM, [square, square, None], square, (0, 0, 0)), threads, isa)
    copies = []
    for nbytes in COPIES_BYTES:
        row = (nbytes // 8,)
        copies.append((nbytes, nbytes / _fastest_s(_plan(_COPY, [row], row, ()), threads, isa)))
    return Peak(SIDE**3 / product_s, tuple(copies))


def _fastest_s(plan: bytes, threads: int, isa: str) -> float:
    engine = _core.Engine(plan, threads, isa)
    for name in ("a", "b"):
        engine.view(name)[...] = 1.0  # pages that were never written are all one page of zeros
    fastest, runs, until = math.inf, 0, time.perf_counter() + SECONDS
    while runs < 3 or time.perf_counter() < until:
        begun = time.perf_counter()
        engine.step()
        fastest, runs = min(fastest, time.perf_counter() - begun), runs + 1
    return fastest


def _plan(opcode: int, inputs: list[tuple[int, ...] | None], output: tuple[int, ...], attrs: tuple[int, ...]) -> bytes:
    """A plan of one operation, as docs/plan-format.md says; tensors "a", "b" are batches, "c" is an output."""
    shapes = [shape for shape in inputs if shape is not None]
    shapes += [output] if len(shapes) == 2 else [output, output]
    records, end = b"", 0
    for name, shape in enumerate(shapes):
        role = _OUTPUT if name == 2 else _BATCH
        dims = (*shape, *[0] * (6 - len(shape)))
        records += struct.pack("<4B3IQ6I", _FLOAT32, len(shape), role, 0, name, 1, 0, end, *dims)
        end += math.prod(shape) * 4
    numbers = [*range(sum(shape is not None for shape in inputs)), *[_ABSENT] * inputs.count(None), 2]
    body = records + struct.pack("<H2B2I2H", opcode, len(inputs), 1, 0, 0, len(attrs), 0)
    body += struct.pack(f"<{len(numbers)}I{len(attrs)}i", *numbers, *attrs) + b"abc"
    body += bytes(-(64 + len(body)) % 64)
    workspace = _core.workspace_bytes(
        opcode, [*(None if s is None else list(s) for s in inputs), list(output)], [*attrs]
    )
    counts = (1, len(shapes), 1, len(numbers), len(attrs), len("abc"))
    whole = struct.pack("<8s6I4Q", b"EDGEPLAN", *counts, end, 0, workspace, 64 + len(body) + 32) + body
    return whole + hashlib.sha256(whole).digest()
