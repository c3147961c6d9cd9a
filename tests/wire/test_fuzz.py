"""The fuzzer of the wire for a moment: valid inputs are taken, broken ones refused, and a fault would be found."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from fuzz import wire
from fuzz.codecs import Broken
from fuzz.wire_targets import Target, targets

if TYPE_CHECKING:
    from pathlib import Path

INPUTS = 60


@pytest.fixture(scope="module")
def decoders() -> list[Target]:
    return targets()


def test_every_decoder_takes_its_valid_inputs(decoders: list[Target]) -> None:
    for target in decoders:
        for seed in target.seeds:
            target.feed(seed)


def test_broken_inputs_are_taken_or_refused_by_a_rule(decoders: list[Target]) -> None:
    rng = random.Random(20)  # noqa: S311 nothing secret
    for target in decoders:
        for _ in range(INPUTS):
            data = wire.hostile(target, rng)
            try:
                target.feed(data)
            except target.errors:
                continue
            except Exception as error:
                raise AssertionError(f"{target.name}: {data!r}") from error


def test_an_exception_of_another_kind_ends_the_run_and_keeps_its_input(
    decoders: list[Target], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(_: bytes) -> None:
        raise KeyError("a field")

    monkeypatch.setattr(wire, "targets", lambda: [replace(decoders[0], feed=forgetful)])
    monkeypatch.setattr(wire, "limit_memory", lambda: None)
    assert wire.main(["--seconds", "5", "--out", str(tmp_path / "found")]) == 1
    assert (tmp_path / "found").exists()


def test_an_input_that_takes_too_much_memory_is_found(decoders: list[Target]) -> None:
    import tracemalloc  # noqa: PLC0415  it slows down whatever runs beside it

    greedy = replace(decoders[0], feed=lambda _: bytes(2 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(Broken, match="bytes for an input"):
            wire.check_one(greedy, b"x")
    finally:
        tracemalloc.stop()
