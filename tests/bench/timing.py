"""How benches time: processor seconds a step, blocks of all programs in turns, and what a row says of them."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

BLOCKS = 25
BLOCK_S = 0.02  # long beside the clock, short beside what else the machine does
WARM_UP = 3


def timed(step: Callable[[], object], clock: Callable[[], float] = time.process_time) -> Callable[[int], float]:
    """What runs a step so many times and returns the seconds of one: of the processor, unless `clock` is another."""

    def run(count: int) -> float:
        begin = clock()
        for _ in range(count):
            step()
        return (clock() - begin) / count

    return run


def alternate(
    runs: Mapping[str, Callable[[int], float]], blocks: int = BLOCKS, block_s: float = BLOCK_S, rest_s: float = 0.0
) -> dict[str, list[float]]:
    """Processor seconds a step, one figure a block; the blocks of all take turns.

    Args:
        runs: Per name, what runs so many steps and returns the seconds of one.
        blocks: Figures wanted of each.
        block_s: Length of a block, unless one step is longer.
        rest_s: Pause before every block, in which the threads of the program before can fall asleep.
    """
    counts = {}
    for name, run in runs.items():
        run(WARM_UP)
        counts[name] = max(1, round(block_s / run(WARM_UP)))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(blocks):
        for name, run in runs.items():
            time.sleep(rest_s)
            times[name].append(run(counts[name]))
    return times


def judged(ours: list[float], theirs: list[float], target: float | None, floor_s: float) -> dict[str, Any]:
    """The figures of a row: medians of the blocks, the spread of the blocks' ratios, the bound from the floor.

    Args:
        ours: Seconds a step, a figure a block.
        theirs: The same of the peer.
        target: The ratio asked for, if one is.
        floor_s: Seconds a step could take at the machine's peak.
    """
    ours_s, peer_s = statistics.median(ours), statistics.median(theirs)
    ratios = [t / o for o, t in zip(ours, theirs, strict=True)]
    return {
        "ours_s": round(ours_s, 8),
        "peer_s": round(peer_s, 8),
        "ratio": round(peer_s / ours_s, 2),
        "target": target,
        "bound": round(peer_s / floor_s, 2),
        "share_of_bound": round(floor_s / ours_s, 3),
        "met": target is None or peer_s / ours_s >= target,
        "spread": [round(min(ratios), 2), round(max(ratios), 2)],
    }
