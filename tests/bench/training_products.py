"""T25: matrix products of the shapes that convolutions and classifiers make, through plans of one operation."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from engine.planwriter import BATCH, OUTPUT, PlanWriter

from bench.timing import alternate, judged, timed
from edge_runtime.engine import Engine
from edge_runtime.plan import read_plan

if TYPE_CHECKING:
    from collections.abc import Callable

PEAK_SHAPES = ((1024, 1024, 1024), (256, 1024, 576), (1024, 32, 144))
# M, N, K, whether b arrives as (N, K).
PRODUCTS = (
    (16, 1024, 27, False),
    (16, 1024, 144, False),
    (32, 1024, 27, False),
    (64, 1024, 288, False),
    (64, 1024, 576, False),
    (256, 1024, 576, False),
    (1024, 32, 144, False),
    (4096, 64, 576, False),
    (32, 120, 400, False),
    (16, 144, 1024, True),
    (64, 576, 1024, True),
)
TARGET = 1.3


def peak_rate() -> float:
    """Multiply-adds a second: the best that any large product reaches on this machine, ours or torch's."""
    return max(_rate(shape) for shape in PEAK_SHAPES)


def product_row(peak: float) -> dict[str, Any]:
    """One row: the geometric mean over the shapes, which it lists; `peak` is in multiply-adds a second."""
    shapes = []
    for m, n, k, transposed in PRODUCTS:
        times = alternate(_product(m, n, k, transposed=transposed))
        rates = {f"{who}_gflops": round(2e-9 * m * n * k / statistics.median(times[who]), 1) for who in times}
        figures = judged(times["ours"], times["torch"], TARGET, m * n * k / peak)
        shapes.append({"m": m, "n": n, "k": k, "b": "(n, k)" if transposed else "(k, n)", **rates, **figures})
    ratio = _mean(shapes, "ratio")
    return {
        "id": "T25",
        "work": f"matrix products, geometric mean of {len(PRODUCTS)} shapes",
        "peer": f"torch.mm {torch.__version__}",
        "ours_s": sum(s["ours_s"] for s in shapes),
        "peer_s": sum(s["peer_s"] for s in shapes),
        "ratio": round(ratio, 2),
        "target": TARGET,
        "bound": round(_mean(shapes, "bound"), 2),
        "share_of_bound": round(_mean(shapes, "share_of_bound"), 3),
        "met": ratio >= TARGET,
        "spread": [round(statistics.geometric_mean(s["spread"][side] for s in shapes), 2) for side in (0, 1)],
        "shapes": shapes,
    }


def _mean(shapes: list[dict[str, Any]], key: str) -> float:
    return statistics.geometric_mean(s[key] for s in shapes)


def _product(m: int, n: int, k: int, *, transposed: bool = False) -> dict[str, Callable[[int], float]]:
    rng = np.random.default_rng(1)
    a = rng.standard_normal((m, k)).astype(np.float32)
    b = rng.standard_normal((n, k) if transposed else (k, n)).astype(np.float32)
    writer = PlanWriter()
    inputs = [writer.tensor("a", a.shape, BATCH), writer.tensor("b", b.shape, BATCH), None]
    writer.op("gemm", inputs, [writer.tensor("c", (m, n), OUTPUT)], [0, int(transposed), 0])
    engine = Engine(read_plan(writer.seal()))
    engine.write("a", a)
    engine.write("b", b)
    left, right, out = torch.from_numpy(a), torch.from_numpy(b), torch.empty(m, n)
    right = right.T if transposed else right
    return {"ours": timed(engine.step), "torch": timed(lambda: torch.mm(left, right, out=out))}


def _rate(shape: tuple[int, int, int]) -> float:
    """Multiply-adds a second of the faster of the two."""
    m, n, k = shape
    times = alternate(_product(m, n, k))
    return m * n * k / min(min(of_one) for of_one in times.values())
