"""What every row of the bench of kernels is made of: one peer over a grid of cases, each measured in turns."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.timing import BLOCKS, alternate, judged, timed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edge_runtime.profile.peak import Peak

# Threads of a peer's BLAS spin on after a call, and would take a core from the next program: after 40 ms still.
REST_S = 0.15
SECONDS = 4.0  # for the slowest program of a case, at least five turns


@dataclass(frozen=True)
class Machine:
    """This machine with so many threads; its peaks are measured in the same run."""

    threads: int
    peak: Peak

    def measured(
        self,
        case: str,
        steps: Mapping[str, Callable[[], object]],
        targets: Mapping[str, float | None],
        floor_s: float,
    ) -> list[dict[str, Any]]:
        """Time "ours" and every peer in turns: the figures of one case, one record a peer.

        Args:
            case: What distinguishes this case, such as "n=1e6 k=1%".
            steps: "ours" and the peers, each a call that does the whole work.
            targets: The ratio asked for of each peer; None where none is.
            floor_s: The bound in seconds; see Peak.seconds.
        """
        clock = time.process_time if self.threads == 1 else time.perf_counter
        runs = {name: timed(step, clock) for name, step in steps.items()}
        # A peer of half a second is not run 25 times over.
        slowest = max(run(1) for run in runs.values())
        blocks = max(5, min(BLOCKS, round(SECONDS / max(slowest, 1e-9))))
        times = alternate(runs, blocks=blocks, rest_s=REST_S if self.threads > 1 else 0.0)
        return [
            {"case": case, "peer": peer, **judged(times["ours"], times[peer], targets.get(peer), floor_s)}
            for peer in steps
            if peer != "ours"
        ]


def rows_of(row_id: str, work: str, cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a peer: geometric mean and worst of the ratio over that peer's cases, which it lists."""
    peers = dict.fromkeys(case["peer"] for case in cases)
    return [_row(row_id, work, peer, [case for case in cases if case["peer"] == peer]) for peer in peers]


def _row(row_id: str, work: str, peer: str, cases: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": row_id,
        "work": work,
        "peer": peer,
        "ratio": round(statistics.geometric_mean(case["ratio"] for case in cases), 2),
        "worst": min(case["ratio"] for case in cases),
        "share_of_bound": round(statistics.geometric_mean(case["share_of_bound"] for case in cases), 3),
        "met": all(case["met"] for case in cases),
        "cases": cases,
    }
