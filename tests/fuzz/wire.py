"""Break what a network brings, for some time: `python -m fuzz.wire --seconds 3600`, with `tests` on PYTHONPATH.

Every decoder of fuzz.wire_targets must take an input or refuse it by one of its own errors, within the memory and time
below. The first input that does not is written to a file, and the exit code is 1. Equal seeds break equal inputs.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

from bench.recording import as_lines, machine, save

from edge_runtime.errors import EdgeError
from fuzz.codecs import CPU_S, Broken, limit_memory
from fuzz.wire_targets import Target, targets
from support.mutate import EXTREMES, mutated

BYTES_AN_INPUT_BYTE = 64
VALUES: tuple[Any, ...] = (
    *EXTREMES,
    *(
        -1,
        0.5,
        -0.0,
        1e300,
        float("nan"),
        None,
        True,
        "",
        "x" * 300,
        "\ud800",
        "a\nb",
        "a" * 64,
        "0" * 16,
        "GatewayBusy",
    ),
    *([], [[]], {}, {"": {}}, ["dense"], ["topk 0.5 ef"], [{"plan": "a" * 64, "epochs": 1, "scalars": {}}]),
)
WORDS = (b"null", b"true", b"[]", b"{}", b'""', b"-1", b"1e999", b"0.5", b'"\\ud800"', b"[[[[[[[[[[", b"NaN")


def main(argv: list[str] | None = None) -> int:
    """Fuzz; prints one JSON object: how many inputs each decoder had, and what became of them."""
    parser = argparse.ArgumentParser(prog="python -m fuzz.wire", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="decoders whose name begins so")
    parser.add_argument("--save", action="store_true", help="keep what became of the inputs in tests/bench/results")
    parser.add_argument("--out", type=Path, default=Path("wire-crash.bin"))
    options = parser.parse_args(argv)
    chosen = [each for each in targets() if each.name.startswith(options.only)]
    limit_memory()
    rng, ends_s = random.Random(options.seed), time.monotonic() + options.seconds  # noqa: S311 nothing secret
    found: dict[str, Counter[str]] = {each.name: Counter() for each in chosen}
    tracemalloc.start()
    while time.monotonic() < ends_s:
        target = rng.choice(chosen)
        data = hostile(target, rng)
        try:
            found[target.name][check_one(target, data)] += 1
        except Exception as error:  # noqa: BLE001 whatever it is, the input is kept
            options.out.write_bytes(data)
            print(json.dumps({"target": target.name, "input": str(options.out), "error": repr(error)}))
            return 1
    rows = [{"decoder": name, "outcomes": dict(counts.most_common())} for name, counts in found.items()]
    inputs = sum(counts.total() for counts in found.values())
    ran = {"seconds": options.seconds, "seed": options.seed, "inputs": inputs}
    result = {"bench": "fuzz-wire", "machine": machine(), **ran, "rows": rows}
    print(as_lines(result))
    if options.save:
        save(result)
    return 0


def hostile(target: Target, rng: random.Random) -> bytes:
    """A valid input of the decoder, broken."""
    data = rng.choice(target.seeds)
    for _ in range(rng.randint(1, 3)):
        data = rng.choice((_field, _field, _token, mutated))(data, rng)
    return target.mended(data) if rng.random() < 0.8 else data


def check_one(target: Target, data: bytes) -> str:
    """Feed one input.

    Returns:
        "taken", or the rule that refused it.

    Raises:
        Broken: It took too much memory or time.
    """
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    begun_s = time.process_time()
    try:
        target.feed(data)
        outcome = "taken"
    except target.errors as error:
        outcome = error.rule if isinstance(error, EdgeError) else type(error).__name__
    took_s = time.process_time() - begun_s
    peak = tracemalloc.get_traced_memory()[1] - before
    if peak > target.bytes_more + BYTES_AN_INPUT_BYTE * len(data):
        raise Broken(f"{peak} bytes for an input of {len(data)} bytes")
    if took_s > CPU_S:
        raise Broken(f"{took_s:.1f} s")
    return outcome


def _field(data: bytes, rng: random.Random) -> bytes:
    """A field of a JSON object left out, or given a value of another kind or size; other inputs lose or gain bytes."""
    topic, zero, payload = data.rpartition(b"\0")
    try:
        fields = json.loads(payload)
    except ValueError:
        return mutated(data, rng)
    if not isinstance(fields, dict) or not fields:
        return mutated(data, rng)
    inner = [fields, *(each for each in fields.values() if isinstance(each, dict) and each)]
    inner += [each for value in fields.values() if isinstance(value, list) for each in value if isinstance(each, dict)]
    chosen = rng.choice(inner)
    key = rng.choice(list(chosen) or ["x"])
    if rng.random() < 0.15:
        chosen.pop(key, None)
    else:
        chosen[key] = rng.choice(VALUES)
    return topic + zero + json.dumps(fields).encode()


def _token(data: bytes, rng: random.Random) -> bytes:
    """A number, or a word between quotes, replaced: what is behind a JSON parser's own checks."""
    found = list(re.finditer(rb'-?\d+|"[^"]*"', data[:4096]))
    if not found:
        return data
    at = rng.choice(found)
    new = str(rng.choice(EXTREMES)).encode() if rng.random() < 0.5 else rng.choice(WORDS)
    return data[: at.start()] + new + data[at.end() :]


if __name__ == "__main__":
    sys.exit(main())
