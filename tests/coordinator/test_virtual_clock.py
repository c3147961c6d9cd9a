"""Schedules on a virtual clock against what the time model says: no device idles, the slowest one is the round."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from statistics import harmonic_mean, mean

import pytest

from coordinator.round_records import Rules, ScheduleRules
from support.virtual import Clock, Nothing, on_virtual_clock

RULES = Rules(
    seed=1, rounds=100, target_accuracy=None, devices=4, min_updates=4, deadline_s=1e6, grace_s=10.0, fraction=1.0
)
SPEEDS = [(1.0, 1.3, 2.2, 2.5), (1.0, 1.0, 2.0, 2.0), (1.0, 1.0, 1.0, 3.0), (0.5, 0.7, 0.9, 7.0)]


def named(speeds: tuple[float, ...]) -> dict[str, float]:
    return {f"dev-{count}": seconds for count, seconds in enumerate(speeds)}


def asynchronous(rounds: int, buffer: int = 1) -> Rules:
    name = "fedasync" if buffer == 1 else "fedbuff"
    return replace(RULES, rounds=rounds, schedule=ScheduleRules(name=name, buffer=buffer, max_staleness=1000))


@pytest.mark.parametrize("speeds", SPEEDS)
@pytest.mark.parametrize("buffer", [1, 4])
def test_equal_counts_of_updates_take_harmonic_mean_over_maximum_of_the_time(
    speeds: tuple[float, ...], buffer: int
) -> None:
    """T_async / T_sync = (N / sum 1/t_i) / max t_i, to 1 %."""
    together = on_virtual_clock(RULES, named(speeds))
    alone = on_virtual_clock(asynchronous(400 // buffer, buffer), named(speeds))
    assert together[-1].updates == alone[-1].updates == 400
    assert together[-1].time_s == pytest.approx(100 * max(speeds))
    assert alone[-1].time_s / together[-1].time_s == pytest.approx(harmonic_mean(speeds) / max(speeds), rel=0.01)


def test_the_ratio_of_the_reference_speeds_is_0_61() -> None:
    assert harmonic_mean(SPEEDS[0]) / max(SPEEDS[0]) == pytest.approx(0.610, abs=0.0005)


def test_an_update_is_as_stale_as_others_deliver_in_its_time() -> None:
    """Device i: t_i * sum over j != i of 1/t_j; the mean over all updates is N - 1."""
    speeds = named(SPEEDS[0])
    clock = Clock(asynchronous(4000), speeds, Nothing())
    clock.run()
    assert mean(staleness for _, staleness in clock.staleness) == pytest.approx(3, rel=0.01)
    for device, seconds in speeds.items():
        expected = seconds * sum(1 / other for name, other in speeds.items() if name != device)
        of_device = [staleness for name, staleness in clock.staleness if name == device]
        assert mean(of_device) == pytest.approx(expected, rel=0.02)


def test_devices_of_one_speed_are_n_minus_1_versions_behind_each_other() -> None:
    clock = Clock(asynchronous(40), named((1.0, 1.0, 1.0, 1.0)), Nothing())
    clock.run()
    assert {staleness for _, staleness in clock.staleness[4:]} == {3}


def test_a_fast_device_delivers_in_proportion_to_its_speed() -> None:
    speeds = named(SPEEDS[3])
    clock = Clock(asynchronous(2000), speeds, Nothing())
    clock.run()
    counts = Counter(device for device, _ in clock.staleness)
    total = sum(1 / seconds for seconds in speeds.values())
    for device, seconds in speeds.items():
        assert counts[device] == pytest.approx(2000 / seconds / total, abs=2)


def test_a_tier_s_round_takes_as_long_as_its_own_slowest_device() -> None:
    """The first round measures all, later ones take 1.3 or 2.5 s."""
    rules = replace(RULES, min_updates=2, schedule=ScheduleRules(name="tiers", tiers=2))
    made = on_virtual_clock(rules, named(SPEEDS[0]))
    first, *others = [b - a for a, b in pairwise([0.0, *(each.time_s for each in made)])]
    assert first == 2.5
    assert {round(seconds, 6) for seconds in others} == {1.3, 2.5}
    assert made[-1].time_s == pytest.approx(2.5 + 99 * mean((1.3, 2.5)), rel=0.1)
    assert made[-1].updates == 4 + 99 * 2
