"""Randomness without state: a 64-bit hash of (seed, counters), the same on every machine.

The mixing function is the finaliser of SplitMix64 (Steele, Lea and Flood, 2014, "Fast splittable pseudorandom number
generators", section 4), which is a bijection of 64-bit words: counters that differ in one place never collide.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

__all__ = ["derive_seed", "hash64"]

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def hash64(seed: int, *counters: int | NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash a seed and counters: h = mix(seed + G), then h = mix((h ^ c) + G) for every counter c.

    Args:
        seed: 0 <= seed < 2**64.
        counters: Integers in the same range, or uint64 arrays that broadcast against one another.

    Returns:
        uint64, of the counters' broadcast shape; () when all are integers.

    Raises:
        ValueError: The seed or an integer counter is out of range.
    """
    words = [_word(seed), *(_word(counter) for counter in counters)]
    hashed = _mix(words[0] + np.uint64(_GOLDEN))
    for word in words[1:]:
        hashed = _mix((hashed ^ word) + np.uint64(_GOLDEN))
    shape = np.broadcast_shapes(*(np.shape(counter) for counter in counters))
    return hashed.reshape(shape)


def derive_seed(*parts: str | int) -> int:
    """Give the seed of a named stream: the first 63 bits of SHA-256 over the parts, each with its length.

    Two different tuples of parts hash different bytes, because every part is preceded by its length.
    """
    digest = hashlib.sha256()
    for part in parts:
        text = str(part).encode("utf-8")
        digest.update(len(text).to_bytes(8, "little") + text)
    return int.from_bytes(digest.digest()[:8], "big") >> 1


def _word(value: int | NDArray[np.uint64]) -> NDArray[np.uint64]:
    # One-element arrays, not scalars: NumPy warns of overflow in scalar arithmetic, where wrapping is what we want.
    if isinstance(value, int):
        if not 0 <= value <= _MASK:
            raise ValueError(f"{value} is not in 0 .. 2**64 - 1")
        return np.array([value], np.uint64)
    return np.atleast_1d(value)


def _mix(word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))
