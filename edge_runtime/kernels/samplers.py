"""Negative classes for sampled softmax, with the exact probability that each is among them.

Every draw is a hash of the seed and its number, so the same seed gives the same classes on every machine. With what
comes back, the sampled denominator is that of the full softmax on average: E[sum over the sample of e^o / q] is the sum
over all classes that are no positives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.rng import hash64

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.int32]
    Whole = NDArray[Any]

__all__ = ["Negatives", "frequent_negatives", "log_uniform_negatives", "uniform_negatives"]

MOST_CLASSES = (1 << 31) - 1


@dataclass(frozen=True)
class Negatives:
    """A sample without the positives.

    Attributes:
        classes: (m,) int32; all different, in no particular order.
        q: (m,) float64 in (0, 1]; the probability that the class is in such a sample.
    """

    classes: Numbers
    q: NDArray[np.float64]

    @property
    def correction(self) -> NDArray[np.float32]:
        """-log q, what sampled_softmax adds to these logits; for positives put 0 before it."""
        return -np.log(self.q).astype(np.float32)


def uniform_negatives(n: int, positives: Whole, m: int, *, seed: int) -> Negatives:
    """Draw m of the n - |P| classes that are no positives, uniformly without replacement.

    Args:
        n: Number of classes.
        positives: P, (p,) whole numbers below n, all different.
        m: 0 <= m <= n - p.
        seed: 0 <= seed < 2**64.

    Returns:
        Exactly m classes, each with q = m / (n - p). Takes memory for m + p numbers, whatever n is.

    Raises:
        ValueError: Numbers out of range, or a positive that is named twice.

    Source: the first m different ones of a sequence of independent draws are a uniform sample (Fan, Muller and Rezucha,
    1962, method 4); beyond half of the classes it is those left out that are drawn, so that repeats stay rare.
    """
    sorted_positives = _checked(n, positives)
    among = n - len(sorted_positives)
    if not 0 <= m <= among:
        raise ValueError(f"m must be in 0..{among}, the classes that are no positives, is {m}")
    ranks = _distinct(among, m, seed) if 2 * m <= among else _all_but(among, _distinct(among, among - m, seed))
    # Rank r is class r plus the positives before it: those of which at most r other classes come first.
    before = np.searchsorted(sorted_positives - np.arange(len(sorted_positives)), ranks, side="right")
    return Negatives((ranks + before).astype(np.int32), np.full(m, m / among if m else 1.0))


def log_uniform_negatives(n: int, positives: Whole, draws: int, *, seed: int) -> Negatives:
    """Draw from p(k) = log((k + 2) / (k + 1)) / log(n + 1) with replacement; keep each class once, and no positives.

    For classes numbered by falling frequency, such as words. Arguments as in frequent_negatives.

    Returns:
        At most `draws` classes with q = 1 - (1 - p)^draws.

    Source: Zipf's law as in TensorFlow's log_uniform_candidate_sampler, with a fixed number of draws instead of
    classes, which makes q exact.
    """
    u = _uniform(_draw_count(draws), seed)
    drawn = np.minimum(np.expm1(u * np.log1p(n)).astype(np.int64), n - 1)
    classes = _without(drawn, _checked(n, positives))
    p = np.log1p(1.0 / (classes + 1.0)) / np.log1p(n)
    return Negatives(classes, _inclusion(p, draws))


def frequent_negatives(counts: Whole, positives: Whole, draws: int, *, seed: int) -> Negatives:
    """Draw from p(k) = counts[k] / sum(counts) with replacement; keep each class once, and no positives.

    Args:
        counts: (n,) whole numbers >= 0, such as examples of each class; a class of 0 is never drawn.
        positives: (p,) whole numbers below n, all different.
        draws: t >= 0.
        seed: 0 <= seed < 2**64.

    Returns:
        At most `draws` classes with q = 1 - (1 - p)^t. A draw of a positive is dropped, so q is that of the others
        whatever the positives are.

    Raises:
        ValueError: Numbers out of range, a positive that is named twice, no class with a count.
    """
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or counts.min(initial=0) < 0:
        raise ValueError(f"counts must be (n,) whole numbers, none negative, are {counts.dtype} {counts.shape}")
    sorted_positives = _checked(len(counts), positives)
    ends = np.cumsum(counts, dtype=np.int64)
    total = int(ends[-1])
    if total < 1 or np.any(ends[1:] < ends[:-1]):
        raise ValueError(f"counts must add up to 1..2^63-1, the sum is {sum(map(int, counts))}")
    places = hash64(seed, np.arange(_draw_count(draws), dtype=np.uint64)) % np.uint64(total)
    classes = _without(np.searchsorted(ends, places.astype(np.int64), side="right"), sorted_positives)
    return Negatives(classes, _inclusion(counts[classes] / total, draws))


def _checked(n: int, positives: Whole) -> Whole:
    """The positives, sorted."""
    if not 1 <= n <= MOST_CLASSES:
        raise ValueError(f"the number of classes must be in 1..{MOST_CLASSES}, is {n}")
    if positives.ndim != 1 or (len(positives) and positives.dtype.kind not in "iu"):
        raise ValueError(f"positives must be (p,) whole numbers, are {positives.dtype} {positives.shape}")
    ordered: Whole = np.sort(positives).astype(np.int64)
    if len(ordered) and not (ordered[0] >= 0 and ordered[-1] < n):
        raise ValueError(f"positives must be in 0..{n - 1}, are {ordered[0]}..{ordered[-1]}")
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(repeated):
        raise ValueError(f"positives must be distinct, {repeated[0]} is there twice")
    return ordered


def _draw_count(draws: int) -> int:
    if not 0 <= draws <= MOST_CLASSES:
        raise ValueError(f"draws must be in 0..{MOST_CLASSES}, is {draws}")
    return draws


def _distinct(among: int, count: int, seed: int) -> Whole:
    """The first `count` different ones of a sequence of numbers below `among`, at most half of them."""
    # A remainder of 64 bits favours small numbers by less than 2^-33.
    found: Whole = np.zeros(0, np.int64)
    tried = 0
    while len(found) < count:
        more = 2 * (count - len(found)) + 16
        numbers = hash64(seed, np.arange(tried, tried + more, dtype=np.uint64)) % np.uint64(among)
        found = _first_of_each(np.concatenate([found, numbers.astype(np.int64)]))
        tried += more
    return found[:count]


def _first_of_each(numbers: Whole) -> Whole:
    _, first = np.unique(numbers, return_index=True)
    kept: Whole = numbers[np.sort(first)]
    return kept


def _all_but(among: int, left_out: Whole) -> Whole:
    kept = np.ones(among, bool)
    kept[left_out] = False
    return np.flatnonzero(kept)


def _without(drawn: Whole, sorted_positives: Whole) -> Numbers:
    """Each class once, positives never."""
    classes = _first_of_each(drawn)
    return classes[~np.isin(classes, sorted_positives)].astype(np.int32)


def _uniform(count: int, seed: int) -> NDArray[np.float64]:
    """In [0, 1), multiples of 2^-53."""
    return (hash64(seed, np.arange(count, dtype=np.uint64)) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _inclusion(p: NDArray[np.float64], draws: int) -> NDArray[np.float64]:
    """1 - (1 - p)^draws without the cancellation of a small p; 1 where p is."""
    with np.errstate(divide="ignore"):
        inclusion: NDArray[np.float64] = -np.expm1(draws * np.log1p(-p))
    return inclusion
