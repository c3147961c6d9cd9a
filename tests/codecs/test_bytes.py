"""The bytes of an update are those of docs/job-file.md: V for the values, P or G for places, and the header."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.codecs import find_codec
from edge_runtime.codecs.pipeline import REDUCTIONS
from edge_runtime.codecs.selection import SELECTORS
from edge_runtime.codecs.values import FORMATS
from edge_runtime.kernels import as_matrix, encode_indices
from edge_runtime.tensors import decode_tensors
from support.codecs import PIPELINES, SHAPES, Tree, copied, flat, payload_bytes, tree

PLAIN = [stages for stages in PIPELINES if stages != ("dense",) and "rans" not in stages]
DOCUMENTED = Path(__file__).parents[2] / "docs" / "job-file.md"


def value_bytes(stages: tuple[str, ...], parts: list[int]) -> int:
    """V(x) of parts of so many values."""
    words = next((stage.split() for stage in stages if stage.split()[0] in FORMATS), ["fp32"])
    if words[0] in {"fp32", "fp16", "bf16"}:
        return {"fp32": 4, "fp16": 2, "bf16": 2}[words[0]] * sum(parts)
    block = int(words[2 if words[0] == "qsgd" else 1]) if len(words) > (2 if words[0] == "qsgd" else 1) else 256
    bits = 1 if words[0] == "sign" else 8
    return sum(-(-bits * part // 8) + 4 * -(-part // block) for part in parts)


def place_bytes(stages: tuple[str, ...], places: np.ndarray) -> int:
    """P(k)."""
    return len(encode_indices(places, flat(tree(0)).size)) if "rice" in stages else 4 * places.size


def largest(values: np.ndarray, count: int) -> np.ndarray:
    return np.sort(np.argsort(-np.abs(values), kind="stable")[:count]).astype(np.int32)


def wanted_bytes(stages: tuple[str, ...], given: Tree, data: bytes) -> int:
    """Of a first update, with nothing carried yet, in round 2."""
    name, *words = stages[0].split()
    values = flat(given)
    if name in {"topk", "dgc", "ef21"}:
        share = float(words[0]) ** (2 / 3) if "warmup" in words else float(words[0])
        places = largest(values, max(1, round(share * values.size)))
        return value_bytes(stages, [places.size]) + place_bytes(stages, places)
    if name == "threshold":
        places = np.flatnonzero(np.abs(values) >= float(words[0])).astype(np.int32)
        return value_bytes(stages, [places.size]) + place_bytes(stages, places)
    if name == "rows":
        rows = sum(shape[0] if len(shape) > 1 else 1 for shape in SHAPES.values())
        return value_bytes(stages, [values.size]) + len(encode_indices(np.arange(rows, dtype=np.int32), rows))
    sizes = [given[each].size for each in sorted(given)]
    if name not in {"svd", "powersgd"}:
        return value_bytes(stages, sizes)
    matrices = [as_matrix(SHAPES[each]) or (0, 0) for each in sorted(given)]
    if name == "svd":
        ranks = decode_tensors(data)[0]["rank"].tolist()
    else:
        ranks = [min(int(words[0]), *matrix) for matrix in matrices]
        ranks = [r if 0 < r * (m + n + 1) < m * n else -1 for r, (m, n) in zip(ranks, matrices, strict=True)]
    parts: list[int] = []
    for size, (m, n), rank in zip(sizes, matrices, ranks, strict=True):
        parts += [size] if rank == -1 else [rank * m, rank * n]
    return value_bytes(stages, parts) + (4 * len(sizes) if name == "svd" else 0)


@pytest.mark.parametrize("stages", PLAIN, ids=" | ".join)
@pytest.mark.parametrize("seed", [1, 2])
def test_payloads_have_the_bytes_that_are_stated(stages: tuple[str, ...], seed: int) -> None:
    given = tree(seed)
    data = find_codec(stages).encode(copied(given), {"round": "2"}, {})
    assert payload_bytes(data) == wanted_bytes(stages, given, data)


def test_every_stage_has_its_row_in_the_documentation_and_no_other_has() -> None:
    text = DOCUMENTED.read_text(encoding="utf-8").partition("## Compressed uploads")[2].partition("\n## ")[0]
    table = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    named = [stage.split()[0] for cell in table for stage in re.findall(r"`([^`]+)`", cell)]
    assert sorted(named) == sorted([*SELECTORS, *REDUCTIONS, *FORMATS, "rice", "rans"])
