"""A profile as lines for people and as one JSON object for tools; docs/engine.md explains both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_runtime.profile.arena_map import draw_text, mebibytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from edge_runtime.plan import Plan
    from edge_runtime.profile.anatomy import Anatomy, Operation
    from edge_runtime.profile.footprint import Footprint
    from edge_runtime.profile.measure import Cost, Timing
    from edge_runtime.profile.peak import Peak

HEAD = f"{'ops':>6}{'median ms':>11}{'p95 ms':>9}{'share':>7}{'M mul-adds':>12}{'MB moved':>10}"
HEAD += f"{'GFLOP/s':>9}{'GB/s':>8}{'of peak':>9}"


@dataclass(frozen=True)
class Profile:
    """Everything that was found out about one plan on this machine; `fed` says with what data."""

    plan: Plan
    origin: str
    fed: str
    isa: str
    threads: int
    steps: int
    anatomy: Anatomy
    peak: Peak
    timing: Timing
    footprint: Footprint


def as_json(profile: Profile) -> dict[str, Any]:
    """The profile as JSON values, times in seconds, sizes in bytes; the keys are listed in docs/engine.md."""
    anatomy, peak, timing = profile.anatomy, profile.peak, profile.timing
    return {
        "plan_sha256": profile.plan.sha256,
        "origin": profile.origin,
        "data": profile.fed,
        "isa": profile.isa,
        "threads": profile.threads,
        "steps": profile.steps,
        "peak": {
            "multiply_adds_per_s": peak.multiply_adds_per_s,
            "copies": [{"bytes": nbytes, "bytes_per_s": speed} for nbytes, speed in peak.copies],
        },
        "step": _cost_json(timing.step),
        "phases": {phase: _cost_json(cost) for phase, cost in timing.phases.items()},
        "operations": [
            {"op": op.name, "phase": op.phase, "shape": list(op.shape), **_cost_json(cost)}
            for op, cost in zip(anatomy.operations, timing.operations, strict=True)
        ],
        "memory": _memory_json(profile),
    }


def _cost_json(cost: Cost) -> dict[str, float]:
    return {
        "median_s": cost.latency.median_s,
        "p95_s": cost.latency.p95_s,
        "multiply_adds": cost.multiply_adds,
        "bytes_moved": cost.bytes_moved,
        "gflops": cost.gflops,
        "gbytes_per_s": cost.gbytes_per_s,
        "peak_share": cost.peak_share,
    }


def _memory_json(profile: Profile) -> dict[str, Any]:
    anatomy, footprint = profile.anatomy, profile.footprint
    return {
        "arena_bytes": anatomy.arena_bytes,
        "owned_bytes": anatomy.owned_bytes,
        "live_bytes": anatomy.live_bytes(),
        "constants_bytes": profile.plan.constants_bytes,
        "workspace_bytes": profile.plan.workspace_bytes,
        "idle_bytes": footprint.idle_bytes,
        "predicted_bytes": footprint.predicted_bytes,
        "measured_bytes": footprint.measured_bytes,
        "lives": [[w.offset, w.nbytes, w.first, w.last, w.phase] for w in anatomy.lives],
    }


def as_text(profile: Profile, *, top: int, width: int, blocks: bool) -> str:
    """The profile as a page: phases, kinds of operation, the slowest ones, memory, and the arena's picture."""
    sections = [
        _heading(profile),
        _phase_table(profile),
        _kind_table(profile),
        _operation_table(profile, top),
        _memory(profile),
        draw_text(profile.anatomy, width, blocks=blocks),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections)


def _heading(profile: Profile) -> list[str]:
    copies = ", ".join(f"{speed / 1e9:.1f} GB/s ({_size(nbytes)})" for nbytes, speed in profile.peak.copies)
    product = f"{2e-9 * profile.peak.multiply_adds_per_s:.1f} GFLOP/s"
    threads = "1 thread" if profile.threads == 1 else f"{profile.threads} threads"
    return [
        f"{profile.origin}: sha256 {profile.plan.sha256[:16]}, {len(profile.anatomy.operations)} operations",
        f"fed with {profile.fed}; {profile.isa}, {threads}, {profile.steps} steps; wall time",
        f"this machine's peak, measured now: product {product}; copy {copies}",
    ]


def _phase_table(profile: Profile) -> list[str]:
    timing, phases = profile.timing, [op.phase for op in profile.anatomy.operations]
    lines = [f"{'phase':<24}{HEAD}"]
    for phase, cost in timing.phases.items():
        lines.append(_row(phase, str(phases.count(phase)), cost, timing.step))
    return [*lines, _row("step, undisturbed", str(len(phases)), timing.step, timing.step)]


def _kind_table(profile: Profile) -> list[str]:
    """Operations of one name together; medians and bounds are added up, which percentiles cannot be."""
    kinds: dict[str, list[Cost]] = {}
    for op, cost in zip(profile.anatomy.operations, profile.timing.operations, strict=True):
        kinds.setdefault(op.name, []).append(cost)
    rows = [(_total_s(costs), name, costs) for name, costs in kinds.items()]
    step_s = profile.timing.step.latency.median_s
    lines = [f"{'kind':<24}{'ops':>6}{'median ms':>11}{'':>9}{'share':>7}{'':>39}{'of peak':>9}"]
    for total_s, name, costs in sorted(rows, reverse=True):
        bound = sum(cost.bound_s for cost in costs) / total_s
        lines.append(
            f"{name:<24}{len(costs):>6}{1e3 * total_s:>11.3f}{'':>9}{total_s / step_s:>7.1%}{'':>39}{bound:>9.0%}"
        )
    return lines


def _total_s(costs: Iterable[Cost]) -> float:
    return sum(cost.latency.median_s for cost in costs)


def _operation_table(profile: Profile, top: int) -> list[str]:
    pairs = list(zip(profile.anatomy.operations, profile.timing.operations, strict=True))
    slowest: Sequence[tuple[Operation, Cost]] = sorted(pairs, key=lambda pair: -pair[1].latency.median_s)[:top]
    lines = [f"{f'slowest {len(slowest)} operations':<24}{HEAD.replace('ops', 'no.', 1)}  output"]
    for op, cost in slowest:
        row = _row(f"{op.name} ({op.phase})", str(op.number), cost, profile.timing.step)
        lines.append(f"{row}  {list(op.shape)}")
    return lines


def _row(name: str, number: str, cost: Cost, step: Cost) -> str:
    share = cost.latency.median_s / step.latency.median_s
    return (
        f"{name:<24}{number:>6}{1e3 * cost.latency.median_s:>11.3f}{1e3 * cost.latency.p95_s:>9.3f}{share:>7.1%}"
        f"{1e-6 * cost.multiply_adds:>12.2f}{1e-6 * cost.bytes_moved:>10.2f}{cost.gflops:>9.1f}"
        f"{cost.gbytes_per_s:>8.1f}{cost.peak_share:>9.0%}"
    )


def _memory(profile: Profile) -> list[str]:
    anatomy, footprint, plan = profile.anatomy, profile.footprint, profile.plan
    live = max(anatomy.live_bytes())
    most = anatomy.owned_bytes + live
    gap = footprint.measured_bytes / footprint.predicted_bytes - 1
    rows = [
        ("arena", anatomy.arena_bytes, f"{anatomy.arena_bytes / most - 1:+.1%} of the most that is alive at once:"),
        ("  named tensors", anatomy.owned_bytes, "weights, optimiser state, batch, scalars, outputs"),
        ("  temporaries", live, "activations and gradients"),
        ("constants", plan.constants_bytes, ""),
        ("scratch", profile.threads * plan.workspace_bytes, f"{profile.threads} x the hungriest operation's"),
        ("resident, predicted", footprint.predicted_bytes, f"of them {mebibytes(footprint.idle_bytes)} idle"),
        ("resident, measured", footprint.measured_bytes, f"{gap:+.1%}: VmHWM of a process that only trains"),
    ]
    return [f"{name:<22}{mebibytes(nbytes):>12}  {text}".rstrip() for name, nbytes, text in rows]


def _size(nbytes: int) -> str:
    return f"{nbytes >> 20} MiB" if nbytes >> 20 else f"{nbytes >> 10} KiB"
