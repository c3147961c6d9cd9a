"""Who owns which example: label-skewed Dirichlet shards, or the owners the data came with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.data import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_DRAWS = 1000


def dirichlet(
    labels: NDArray[np.int32], devices: int, *, alpha: float, seed: int, min_examples: int
) -> list[NDArray[np.int64]]:
    """Deal examples to devices with class shares drawn from a symmetric Dirichlet distribution.

    For each class, shares p ~ Dir(alpha, ..., alpha) over the devices cut that class's shuffled examples. The whole
    draw is repeated until every device has `min_examples`; every example is dealt exactly once.

    Args:
        labels: (N,) class of every example.
        devices: Number of shards, >= 1.
        alpha: Concentration; 0.5 is strongly skewed, large values approach equal shares.
        seed: Same seed, same shards.
        min_examples: Least shard size, so that a small set leaves no device without work.

    Returns:
        One sorted index array a device.

    Raises:
        DataError: There are too few examples, or no draw in 1,000 met `min_examples`.

    Source: Hsu, Qi, Brown, 2019 (arXiv 1909.06335), section 3; the minimum is as in Li et al., 2022 (NIID-Bench).
    """
    if devices * min_examples > len(labels):
        raise DataError(f"{len(labels)} examples cannot give {devices} devices {min_examples} each; use fewer devices")
    rng = np.random.Generator(np.random.PCG64(seed))
    classes = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    for _ in range(MAX_DRAWS):
        shards = _draw(classes, devices, alpha, rng)
        if min(len(s) for s in shards) >= min_examples:
            return shards
    raise DataError(
        f"no Dirichlet({alpha}) draw out of {MAX_DRAWS} gave each of {devices} devices {min_examples} examples; "
        "use a larger --alpha or fewer devices"
    )


def _draw(
    classes: list[NDArray[np.int64]], devices: int, alpha: float, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    parts: list[list[NDArray[np.int64]]] = [[] for _ in range(devices)]
    for members in classes:
        cuts = np.cumsum(rng.dirichlet(np.full(devices, alpha)))[:-1] * len(members)
        pieces = np.split(rng.permutation(members), np.round(cuts).astype(np.int64))
        for part, piece in zip(parts, pieces, strict=True):
            part.append(piece)
    return [np.sort(np.concatenate(part)) for part in parts]


def by_owner(owner: NDArray[np.str_], devices: int | None) -> dict[str, NDArray[np.int64]]:
    """Give each natural owner a device, or deal whole owners to fewer devices in turn.

    Args:
        owner: (N,) owner of every example.
        devices: Number of devices, or None for one an owner.

    Returns:
        Sorted indices by device id; the ids are the owners' names made fit for a topic, or ``dev-0`` ... when dealt.

    Raises:
        DataError: More devices than owners, or two owners whose names become one id.
    """
    owners = np.unique(owner)
    if devices is None or devices == len(owners):
        named: dict[str, str] = {}
        for name in map(str, owners):
            other = named.setdefault(device_id(name), name)
            if other != name:
                raise DataError(f"clients {other!r} and {name!r} would both be device {device_id(name)!r}; rename one")
        return {device: np.flatnonzero(owner == name) for device, name in named.items()}
    if devices > len(owners):
        raise DataError(f"the data have {len(owners)} natural clients, fewer than --devices {devices}")
    return {f"dev-{i}": np.flatnonzero(np.isin(owner, owners[i::devices])) for i in range(devices)}


def device_id(owner: str) -> str:
    """Make an owner's name a device id: lower-case letters, digits and dashes, at most 64."""
    kept = "".join(c if c.isascii() and c.isalnum() else "-" for c in owner.lower()).strip("-")
    return (kept or "client")[:64]
