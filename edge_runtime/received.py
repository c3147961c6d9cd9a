"""The weights a task starts from: as they came, as they lie on disk, or what deltas make of others on disk."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from edge_runtime.deltas import apply_delta
from edge_runtime.errors import LocalError, RemoteError
from edge_runtime.tensors import decode_tensors, tensor_file_parts
from edge_runtime.weights_cache import WeightsCache
from edge_runtime.wire import Delta

__all__ = ["WeightsUnusable", "received_weights"]

Weights = Mapping[str, NDArray[Any]]


class WeightsUnusable(LocalError):
    """The weights on disk are damaged, or deltas did not make those of the task: they must be fetched whole."""


def received_weights(
    wanted: str,
    deltas: tuple[Delta, ...],
    blobs: dict[str, bytes],
    cache: WeightsCache,
    warn: Callable[[str], None],
) -> Weights:
    """A task's weights, on disk and mapped from there, so that their memory is the page cache's.

    Args:
        wanted: Their SHA-256.
        deltas: In the order they are applied, to weights on disk; empty where the very weights are there or came.
        blobs: What came in memory, by SHA-256; weights and deltas are taken out.
        cache: Where the rest is, and where the weights stay.
        warn: Told when they cannot stay there: then they are in memory.

    Raises:
        WeightsUnusable: They cannot be had so.
        RemoteError: What came whole is no tensor file.
    """
    came = blobs.pop(wanted, None)
    if came is not None:
        return _kept(cache, wanted, [came], warn) or decode_tensors(came)[0]
    if not deltas:
        return decode_tensors(_on_disk(cache, wanted))[0]
    held: Weights = decode_tensors(_on_disk(cache, deltas[0].base))[0]
    for delta in deltas:
        data = blobs.pop(delta.blob, None) or _on_disk(cache, delta.blob)
        try:
            held = apply_delta(held, data, delta.codec)
        except RemoteError as error:
            raise WeightsUnusable(f"delta {delta.blob} cannot be applied: {error.rule}: {error}") from None
    parts = tensor_file_parts(held)
    if _digest(parts) != wanted:
        raise WeightsUnusable(f"deltas from {deltas[0].base} did not give weights {wanted}")
    kept = _kept(cache, wanted, parts, warn)
    if kept is None:
        return held
    cache.drop(deltas[0].base, *(delta.blob for delta in deltas))
    return kept


def _on_disk(cache: WeightsCache, sha256: str) -> memoryview:
    mapped = cache.read(sha256)
    if mapped is None:
        raise WeightsUnusable(f"blob {sha256} on this board's disk is damaged or gone")
    return mapped


def _kept(
    cache: WeightsCache, sha256: str, parts: list[bytes | memoryview], warn: Callable[[str], None]
) -> Weights | None:
    try:
        cache.keep(sha256, parts)
    except OSError as error:
        warn(f"weights are in memory only ({error.strerror}); the next ones must come whole")
        return None
    return decode_tensors(_on_disk(cache, sha256))[0]


def _digest(parts: list[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
