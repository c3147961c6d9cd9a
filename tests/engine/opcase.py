"""One use of an operation, run on the engine and by its twin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from planwriter import BATCH, OUTPUT, PlanWriter

from edge_runtime import _core
from edge_runtime.kernels import reference

ISAS = _core.info()["available"]
F32, I32, U8 = np.dtype(np.float32), np.dtype(np.int32), np.dtype(np.uint8)


@dataclass(frozen=True)
class Case:
    """One use of an operation: shapes or arrays in, (shape, dtype) out."""

    op: str
    inputs: tuple
    outputs: tuple
    attrs: tuple = ()
    terms: int = 1  # products summed into one output, for the tolerance


def arrays_of(case: Case, seed: int = 5) -> list[np.ndarray | None]:
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(i), F32) if isinstance(i, tuple) else i for i in case.inputs]


def compute(case: Case, inputs: list[np.ndarray | None], isa: str, threads: int) -> list[np.ndarray]:
    """The outputs of a plan that holds this one operation, run over NaN-poisoned scratch."""
    writer = PlanWriter()
    numbers = [
        None if a is None else writer.tensor(f"in{i}", a.shape, BATCH, a.dtype.name) for i, a in enumerate(inputs)
    ]
    outs = [writer.tensor(f"out{i}", shape, OUTPUT, dtype.name) for i, (shape, dtype) in enumerate(case.outputs)]
    writer.op(case.op, numbers, outs, list(case.attrs))
    engine = _core.Engine(writer.seal(), threads, isa)
    engine.poison()
    for i, array in enumerate(inputs):
        if array is not None:
            engine.view(f"in{i}")[...] = array
    for i in range(len(outs)):
        engine.view(f"out{i}").reshape(-1).view(U8)[...] = 0xFF  # NaN: whatever is not written shows
    engine.step()
    return [engine.view(f"out{i}").copy() for i in range(len(outs))]


def twin(case: Case, inputs: list[np.ndarray | None]) -> list[np.ndarray]:
    wide = [None if a is None else a.astype(np.float64) if a.dtype == F32 else a for a in inputs]
    return reference.run(case.op, wide, case.attrs, case.outputs)


def assert_close(got: np.ndarray, want: np.ndarray, terms: int) -> None:
    assert got.shape == want.shape
    eps = np.finfo(F32).eps
    scale = np.abs(want).max(initial=1.0)
    np.testing.assert_allclose(got, want, rtol=8 * eps, atol=2 * eps * np.sqrt(terms + 4) * scale)


def name_of(case: Case) -> str:
    shapes = ["-" if i is None else "x".join(map(str, i if isinstance(i, tuple) else i.shape)) for i in case.inputs]
    return f"{case.op}-{'-'.join(shapes)}-{'.'.join(map(str, case.attrs))}"
