"""`edge-runtime bench training`: one training step, and the products under it, beside torch eager in the same run.

T11  LeNet-5, batch 32: forward, backward, SGD with momentum
T12  a 1-D CNN over 128 samples of 9 sensors, batch 32
T25  matrix products of the shapes that convolutions and classifiers make, through plans of one operation

One thread. Ours and theirs alternate in blocks; a time is the median over the blocks of processor time a step, the
spread of a ratio is that of the blocks. The bound of a ratio is the peer's time over the multiply-adds at the peak rate
of this machine; that peak is the best rate that any large product reached in the same run, ours or torch's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from engine.planwriter import BATCH, OUTPUT, PlanWriter
from torch.nn import functional

from edge_runtime import _core
from edge_runtime.engine import Engine
from edge_runtime.plan import read_plan
from models.compiler import compile_training, import_onnx, weights_of
from models.zoo import MODELS
from support.data import REPOSITORY
from support.torch_twin import TorchTwin

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH_SIZE = 32
BLOCKS = 25
BLOCK_S = 0.02  # of each block: long beside the clock, short beside what else the machine does
LR, MOMENTUM = 0.01, 0.9
PEAK_SHAPES = ((1024, 1024, 1024), (256, 1024, 576), (1024, 32, 144))


@dataclass(frozen=True)
class Work:
    """A network of the zoo, its row and its target against torch's better memory format."""

    row: str
    title: str
    model: str
    shape: tuple[int, ...]
    classes: int
    target: float
    absent: tuple[tuple[str, str], ...]


ORT = ("onnxruntime-training 1.19.2", "pip install onnxruntime-training==1.19.2")
MNN = ("MNN 3.6.1", "pip install MNN==3.6.1")
WORKS = (
    Work("T11", "LeNet-5 step, batch 32", "lenet", (1, 28, 28), 10, 3.5, (ORT, MNN)),
    Work("T12", "HAR 1-D CNN step, batch 32", "cnn1d", (9, 128), 6, 2.1, (ORT,)),
)
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
GEMM_TARGET = 1.3


def main(argv: list[str] | None = None) -> int:
    """Run the bench, print a table or one JSON object, write it into tests/bench/results/."""
    parser = argparse.ArgumentParser(prog="edge-runtime bench training", description=__doc__)
    parser.add_argument("--only", metavar="ID", choices=["T11", "T12", "T25"])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    peak = max(_rate(shape) for shape in PEAK_SHAPES)
    rows: list[dict[str, Any]] = []
    for work in WORKS:
        if options.only in (None, work.row):
            rows += _step_rows(work, peak)
    if options.only in (None, "T25"):
        rows.append(_product_row(peak))
    result = {"bench": "training", "machine": _machine(peak), "rows": rows}
    if options.only is None:
        _save(result)
    print(json.dumps(result) if options.json else _table(rows))
    return 0


def _step_rows(work: Work, peak: float) -> list[dict[str, Any]]:
    model = MODELS[work.model](work.shape, work.classes, 1)
    compiled = compile_training(import_onnx(model, batch=BATCH_SIZE), momentum=MOMENTUM)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((BATCH_SIZE, *work.shape)).astype(np.float32)
    y = rng.integers(0, work.classes, BATCH_SIZE).astype(np.int32)
    engine = Engine(read_plan(compiled.plan))
    for name, value in {**weights_of(model), "x": x, "y": y, "lr": np.array(LR, np.float32)}.items():
        engine.write(name, value)
    formats = {"torch nchw": torch.contiguous_format}
    if len(work.shape) == 3:
        formats["torch nhwc"] = torch.channels_last
    peers = {name: _torch_step(model, x, y, layout) for name, layout in formats.items()}
    times = _alternate({"ours": engine.step, **peers})
    floor_s = (compiled.report.forward_multiply_adds + compiled.report.backward_multiply_adds) / peak
    rows = [
        {
            "id": work.row,
            "work": work.title,
            "peer": f"{name}, torch {torch.__version__}",
            **_judged(times["ours"], times[name], work.target, floor_s),
        }
        for name in peers
    ]
    return rows + [_absent(work, peer, install) for peer, install in work.absent]


def _torch_step(model: bytes, x: np.ndarray, y: np.ndarray, layout: torch.memory_format) -> Callable[[], None]:
    twin = TorchTwin(model)
    batch, labels = torch.from_numpy(x), torch.from_numpy(y.astype(np.int64))
    if layout is torch.channels_last:
        twin, batch = twin.to(memory_format=layout), batch.to(memory_format=layout)
    optimiser = torch.optim.SGD(twin.parameters(), lr=LR, momentum=MOMENTUM)

    def step() -> None:
        optimiser.zero_grad()
        functional.cross_entropy(twin(batch), labels).backward()
        optimiser.step()

    return step


def _product_row(peak: float) -> dict[str, Any]:
    shapes, ratios, bounds, spreads = [], [], [], []
    for m, n, k, transposed in PRODUCTS:
        times = _alternate(_product(m, n, k, transposed=transposed))
        judged = _judged(times["ours"], times["torch"], GEMM_TARGET, m * n * k / peak)
        rates = {f"{who}_gflops": round(2e-9 * m * n * k / statistics.median(times[who]), 1) for who in times}
        shapes.append({"m": m, "n": n, "k": k, "b": "(n, k)" if transposed else "(k, n)", **rates, **judged})
        ratios.append(judged["ratio"])
        bounds.append(judged["bound"])
        spreads.append(judged["spread"])
    ratio = statistics.geometric_mean(ratios)
    return {
        "id": "T25",
        "work": f"matrix products, geometric mean of {len(PRODUCTS)} shapes",
        "peer": f"torch.mm, torch {torch.__version__}",
        "ours_s": sum(s["ours_s"] for s in shapes),
        "peer_s": sum(s["peer_s"] for s in shapes),
        "ratio": round(ratio, 2),
        "target": GEMM_TARGET,
        "bound": round(statistics.geometric_mean(bounds), 2),
        "met": ratio >= GEMM_TARGET,
        "spread": [round(statistics.geometric_mean(s[side] for s in spreads), 2) for side in (0, 1)],
        "shapes": shapes,
    }


def _product(m: int, n: int, k: int, *, transposed: bool = False) -> dict[str, Callable[[], object]]:
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
    return {"ours": engine.step, "torch": lambda: torch.mm(left, right, out=out)}


def _rate(shape: tuple[int, int, int]) -> float:
    """Multiply-adds a second of the faster of the two."""
    m, n, k = shape
    times = _alternate(_product(m, n, k))
    return m * n * k / min(min(of_one) for of_one in times.values())


def _alternate(steps: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Processor seconds a step, one figure a block; blocks of all take turns."""
    counts = {name: _block_of(step) for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(BLOCKS):
        for name, step in steps.items():
            times[name].append(_seconds(step, counts[name]))
    return times


def _block_of(step: Callable[[], object]) -> int:
    """Steps that fill a block; the first ones warm up."""
    _seconds(step, 3)
    return max(1, round(BLOCK_S / _seconds(step, 5)))


def _seconds(step: Callable[[], object], count: int) -> float:
    begin = time.process_time()
    for _ in range(count):
        step()
    return (time.process_time() - begin) / count


def _judged(ours: list[float], theirs: list[float], target: float, floor_s: float) -> dict[str, Any]:
    ours_s, peer_s = statistics.median(ours), statistics.median(theirs)
    ratios = [t / o for o, t in zip(ours, theirs, strict=True)]
    return {
        "ours_s": round(ours_s, 8),
        "peer_s": round(peer_s, 8),
        "ratio": round(peer_s / ours_s, 2),
        "target": target,
        "bound": round(peer_s / floor_s, 2),
        "met": peer_s / ours_s >= target,
        "spread": [round(min(ratios), 2), round(max(ratios), 2)],
    }


def _absent(work: Work, peer: str, install: str) -> dict[str, Any]:
    """A peer for which this bench has no driver where it is not installed."""
    empty = {"peer_s": None, "ratio": None}
    return {"id": work.row, "work": work.title, "peer": peer, **empty, "install": install}


def _machine(peak: float) -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    lines = [line for line in cpuinfo if line.startswith("model name")]
    return {
        "cpu": lines[0].split(":")[1].strip() if lines else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.system(),
        "isa": _core.info()["isa"],
        "peak_gflops": round(2e-9 * peak, 1),
    }


def _save(result: dict[str, Any]) -> None:
    day = datetime.now(UTC).strftime("%Y-%m-%d")
    name = "".join(c if c.isalnum() else "-" for c in str(result["machine"]["cpu"]).lower())
    path = REPOSITORY / "tests" / "bench" / "results" / f"{day}-{name}-training.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'row':5}{'ours us':>10}{'peer us':>10}{'ratio':>7}{'spread':>14}{'bound':>7}{'target':>8}  work, peer"]
    for row in rows:
        name = f"{row['work']}, {row['peer']}"
        if row["peer_s"] is None:
            lines.append(f"{row['id']:5}{'-':>10}{'-':>10}{'-':>7}{'-':>14}{'-':>7}{'-':>8}  {name} ({row['install']})")
            continue
        spread = f"{row['spread'][0]:g}..{row['spread'][1]:g}"
        lines.append(
            f"{row['id']:5}{1e6 * row['ours_s']:10.1f}{1e6 * row['peer_s']:10.1f}{row['ratio']:7.2f}"
            f"{spread:>14}{row['bound']:7.2f}{row['target']:8.2f}  {name}"
        )
        lines += [
            f"{'':15}{shape['m']:6}{shape['n']:6}{shape['k']:6} {shape['b']}{shape['ours_gflops']:8.1f} GFLOP/s, "
            f"torch {shape['torch_gflops']:6.1f}, ratio {shape['ratio']:.2f} of {shape['bound']:.2f}"
            for shape in row.get("shapes", [])
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
