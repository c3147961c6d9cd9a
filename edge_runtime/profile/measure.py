"""Run a plan and say where its time goes: one record an operation, one a phase, one for the step."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.profile.anatomy import PHASES, Anatomy, Operation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_runtime.engine import Engine
    from edge_runtime.profile.peak import Peak


MOST_STEPS = 100_000


@dataclass(frozen=True)
class Latency:
    """Median and 95th percentile, in seconds."""

    median_s: float
    p95_s: float


@dataclass(frozen=True)
class Cost:
    """Time and work of one operation, phase or step.

    Attributes:
        latency: Wall time of a step's worth of it.
        multiply_adds: As in anatomy.Operation.
        bytes_moved: The same.
        bound_s: The least time this machine's measured peaks allow for that work.
    """

    latency: Latency
    multiply_adds: int
    bytes_moved: int
    bound_s: float

    @property
    def gflops(self) -> float:
        """10^9 multiplications and additions a second, of multiply-adds alone."""
        return 2e-9 * self.multiply_adds / self.latency.median_s

    @property
    def gbytes_per_s(self) -> float:
        """10^9 bytes a second."""
        return 1e-9 * self.bytes_moved / self.latency.median_s

    @property
    def peak_share(self) -> float:
        """The bound as a share of the median: 1 is as fast as the machine's product or copy."""
        return self.bound_s / self.latency.median_s


@dataclass(frozen=True)
class Timing:
    """Where the time of a step goes.

    Attributes:
        operations: In the order of the plan.
        phases: forward, backward, update; those the plan has.
        step: One call of `Engine.step`, with nothing measured inside it.
    """

    operations: tuple[Cost, ...]
    phases: dict[str, Cost]
    step: Cost


def measure(engine: Engine, anatomy: Anatomy, peak: Peak, steps: int) -> Timing:
    """Time `steps` whole steps and as many operation by operation, in turns: what disturbs one disturbs both.

    Args:
        engine: With inputs in place, see inputs.fill_inputs.
        anatomy: Of the engine's plan.
        peak: Of this machine, with the engine's threads and instruction set.
        steps: 1 to 100,000.

    Raises:
        ValueError: LabelOutOfRange as in `Engine.step`, or steps out of range.
    """
    if not 1 <= steps <= MOST_STEPS:
        raise ValueError(f"{steps} steps to time; give 1 to {MOST_STEPS:,}")
    engine.step()  # touches every page
    pairs = [(_seconds(engine), engine.profile(1)) for _ in range(steps)]
    whole_s, times_s = np.array([whole for whole, _ in pairs]), np.concatenate([times for _, times in pairs])
    costs = tuple(_cost(times_s[:, [op.number]], (op,), peak) for op in anatomy.operations)
    phases = {}
    for phase in PHASES:
        members = tuple(op for op in anatomy.operations if op.phase == phase)
        if members:
            phases[phase] = _cost(times_s[:, [op.number for op in members]], members, peak)
    return Timing(costs, phases, _cost(whole_s[:, None], anatomy.operations, peak))


def _seconds(engine: Engine) -> float:
    begun = time.perf_counter()
    engine.step()
    return time.perf_counter() - begun


def _cost(times_s: NDArray[np.float64], members: tuple[Operation, ...], peak: Peak) -> Cost:
    """Of operations that belong together; times_s is (steps, operations)."""
    total_s = times_s.sum(axis=1)
    latency = Latency(float(np.median(total_s)), float(np.quantile(total_s, 0.95)))
    work = [(op.multiply_adds, op.bytes_moved) for op in members]
    bound_s = sum(peak.seconds(*each) for each in work)
    return Cost(latency, sum(m for m, _ in work), sum(b for _, b in work), bound_s)
