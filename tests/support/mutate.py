"""Updates as an attacker makes them: valid ones, broken at a byte, in the header, or in one entry."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.errors import RemoteError
from edge_runtime.tensors import decode_tensors, encode_tensors

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from numpy.typing import NDArray

EXTREMES = (0, 1, 2, 31, 127, 128, 255, 256, 65_535, 65_536, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**64)
DTYPES = ("BF16", "F16", "F32", "F64", "I8", "I16", "I32", "I64", "U8")


def mutated(data: bytes, rng: random.Random) -> bytes:
    """One to four mutations in a row."""
    for _ in range(rng.randint(1, 4)):
        data = rng.choice(MUTATIONS)(data, rng)
    return data


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8) if data else 0):
        changed[rng.randrange(len(changed))] = rng.choice([rng.randrange(256), 0, 255])
    return bytes(changed)


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randint(0, len(data))]


def _splice(data: bytes, rng: random.Random) -> bytes:
    """A stretch repeated, dropped or put in at random."""
    begin, end = sorted(rng.randint(0, len(data)) for _ in range(2))
    between = rng.choice([b"", data[begin:end] * 2, rng.randbytes(rng.randint(1, 16))])
    return data[:begin] + between + data[end:]


def _header(data: bytes, rng: random.Random) -> bytes:
    """A number or a dtype of the header replaced, its length made right again."""
    if len(data) < 8:
        return data
    end = 8 + int.from_bytes(data[:8], "little")
    text = data[8:end]
    if rng.random() < 0.5:
        found = list(re.finditer(rb"\d+", text))
        new = str(rng.choice(EXTREMES)).encode()
    else:
        found = list(re.finditer("|".join(DTYPES).encode(), text))
        new = rng.choice(DTYPES).encode()
    if not found:
        return data
    at = rng.choice(found)
    text = text[: at.start()] + new + text[at.end() :]
    return len(text).to_bytes(8, "little") + text + data[end:]


def _entry(data: bytes, rng: random.Random) -> bytes:
    """One array changed in a file that is whole otherwise: what is behind the header's checks."""
    try:
        entries, metadata = decode_tensors(data)
    except RemoteError:
        return data
    if not entries:
        return data
    name = rng.choice(sorted(entries))
    return encode_tensors({**entries, name: _array(entries[name], rng)}, metadata)


def _array(array: NDArray[np.generic], rng: random.Random) -> NDArray[np.generic]:
    changed = array.copy().reshape(-1)
    kind = rng.randrange(4)
    if kind == 0:
        return changed[: rng.randint(0, changed.size)]
    if kind == 1:
        return np.concatenate([changed, changed[: rng.randint(0, changed.size)]])
    raw = changed.view(np.uint8)
    for _ in range(rng.randint(1, 4) if raw.size else 0):
        # The first bytes are counts and tables.
        at = rng.randrange(min(raw.size, 80) if kind == 2 else raw.size)
        raw[at] = rng.choice([rng.randrange(256), 0, 255])
    return changed


MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (_flip, _cut, _splice, _header, _entry, _entry, _entry)
