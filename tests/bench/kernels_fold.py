"""Row K4: updates from their bytes into a fold, beside decoding them to dense tensors and summing those with NumPy.

Ours is what the gateway does with an update: header, decoding, every check, weighted sums. The peer decodes with the
same codec, checks with one dot product a tensor, and adds to float64 arrays; as a fold out of a journal it has to
decode twice, once to check, once to fold. The bound is bytes over bandwidth: the update read twice, and the sums of
what it holds read and written.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.kernel_rows import rows_of
from coordinator.aggregators import Contribution, weighted_mean
from coordinator.updates import check_update
from edge_runtime.codecs import find_codec
from edge_runtime.kernels import Layout
from edge_runtime.wire.tasks import Phase, Task, Upload

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.kernel_rows import Machine

    Shapes = dict[str, tuple[int, ...]]

LENET: Shapes = {
    "conv1.weight": (6, 1, 5, 5),
    "conv1.bias": (6,),
    "conv2.weight": (16, 6, 5, 5),
    "conv2.bias": (16,),
    "fc1.weight": (120, 400),
    "fc1.bias": (120,),
    "fc2.weight": (84, 120),
    "fc2.bias": (84,),
    "fc3.weight": (10, 84),
    "fc3.bias": (10,),
}
WIDE: Shapes = {"fc1.weight": (300, 1000), "fc1.bias": (300,), "fc2.weight": (64, 300), "fc2.bias": (64,)}
SUM_BYTES = 16
# (what, shapes, codec): 250 KB dense, the same in fewer bits, 10 KB sparse of two models.
CASES = (
    ("dense", LENET, ("dense",)),
    ("fp16", LENET, ("fp16",)),
    ("int8", LENET, ("int8",)),
    ("5 % of 62 k", LENET, ("topk 0.05", "fp16", "rice")),
    ("1 % of 320 k", WIDE, ("topk 0.01", "fp16", "rice")),
)


def measure_folds(machine: Machine) -> list[dict[str, Any]]:
    """Row K4."""
    cases = []
    for name, shapes, stages in CASES:
        data = _update(shapes, stages)
        values = Layout(shapes).total if "%" not in name else round(Layout(shapes).total * float(name.split()[0]) / 100)
        floor_s = machine.peak.seconds(0, 2 * len(data) + 2 * SUM_BYTES * values)
        steps = {"ours": _ours(data, shapes, stages), "numpy": _numpy(data, shapes, stages)}
        records = machine.measured(f"{name}, {len(data):,} bytes", steps, dict.fromkeys(steps), floor_s)
        cases += [{**record, "errors": {"updates/s": 1 / record["ours_s"]}} for record in records]
    return rows_of("K4", "an update from its bytes into a fold", cases)


METADATA = {"task": "t.1.d", "job": "t", "round": "1", "version": "1", "device": "d", "examples": "600", "steps": "19"}


def _update(shapes: Shapes, stages: tuple[str, ...]) -> bytes:
    rng = np.random.default_rng(0)
    tensors = {name: (1e-2 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
    return find_codec(stages).encode(tensors, {**METADATA, "loss": "0.25"}, {})


def _ours(data: bytes, shapes: Shapes, stages: tuple[str, ...]) -> Callable[[], object]:
    layout, fold, serial = Layout(shapes), weighted_mean.begin(()), count()
    phases, blobs = (Phase("a" * 64, 1, {"lr": 0.1}),), {"a" * 64: 1, "b" * 64: 1}
    task = Task("t.1.d", "t", 1, 1, "d", phases, "b" * 64, blobs, 10, 1, Upload("delta", stages), 60.0)

    def step() -> None:
        nonlocal fold
        if fold.updates and len(fold.updates) % 100_000 == 0:
            fold = weighted_mean.begin(())
        claims, coded = check_update(data, task, layout, 600)
        fold.add(Contribution("d", claims.examples, coded, claims.steps, task=str(next(serial))))

    return step


def _numpy(data: bytes, shapes: Shapes, stages: tuple[str, ...]) -> Callable[[], object]:
    codec, sums = find_codec(stages), {name: np.zeros(shape) for name, shape in shapes.items()}

    def step() -> None:
        for tensor in codec.decode(data, shapes)[0].values():
            flat = tensor.reshape(-1)
            if not np.isfinite(np.dot(flat, flat)):
                raise ValueError("not finite")
        for name, tensor in codec.decode(data, shapes)[0].items():
            sums[name] += np.multiply(tensor, 600.0, dtype=np.float64)

    return step


MEASURES = {"K4": measure_folds}
