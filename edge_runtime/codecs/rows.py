"""The codec that sends the rows that changed, and nothing of the others: embeddings, sampled softmax, frozen tensors.

A tensor of two or more dimensions has a row for each index of its first; any other tensor is one row. Rows count
through all tensors in the order of their names. Entry "row": the rows sent, as the coded gaps of
edge_runtime/kernels/coders.py. One part: their values. A row of which every bit is zero is not sent, so what is decoded
is what was given, to the bit. Memory beside the update: the rows sent, and 5 bytes a row of the model.

Source: the keys and rows of federated sampled softmax (FedSS, Waghmare et al., 2022, arXiv 2203.04888).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from math import prod

import numpy as np
from numpy.typing import NDArray

from edge_runtime import kernels
from edge_runtime.codecs.codec import BadCodec, Shapes, State
from edge_runtime.codecs.reduction import (
    MAX_VALUES,
    Arrays,
    Entries,
    Layout,
    Metadata,
    Parts,
    Reduced,
    Reduction,
    total_of,
)
from edge_runtime.codecs.selection import read_places

__all__ = ["rows"]

ROW = "row"


def rows(texts: Sequence[str]) -> Reduction:
    """The stage of changed rows.

    Raises:
        BadCodec: It has an argument.
    """
    if texts:
        raise BadCodec("takes no argument")
    return Reduction(_reduce, _layout, (ROW,))


def _grid(shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, values in each)."""
    return (shape[0], prod(shape[1:])) if len(shape) > 1 else (1, prod(shape))


def _reduce(tensors: Arrays, _metadata: Metadata, _state: State) -> Reduced:
    shapes = {name: tensors[name].shape for name in sorted(tensors)}
    grids = [tensors[name].reshape(_grid(shape)) for name, shape in shapes.items()]
    changed = [np.flatnonzero(grid.view(np.uint32).any(axis=1)) for grid in grids]
    total = total_of(len(grid) for grid in grids)
    starts = accumulate((len(grid) for grid in grids), initial=0)
    keys = np.concatenate([found + start for found, start in zip(changed, starts, strict=False)]).astype(np.int32)
    values = np.concatenate([grid[found].reshape(-1) for grid, found in zip(grids, changed, strict=True)])
    side = np.frombuffer(kernels.encode_indices(keys, total), np.uint8)
    return Reduced([values], {ROW: side}, _gather(keys, shapes))


def _layout(entries: Entries, shapes: Shapes) -> Layout:
    total = total_of(_grid(shape)[0] for shape in shapes.values())
    return _gather(read_places(entries, ROW, total, total, coded=True), shapes)


def _gather(keys: NDArray[np.int32], shapes: Shapes) -> Layout:
    grids = {name: _grid(shapes[name]) for name in sorted(shapes)}
    starts = list(accumulate((count for count, _ in grids.values()), initial=0))
    ends = np.searchsorted(keys, starts)
    sent = [int(last - first) for first, last in pairwise(ends)]

    def restore(parts: Parts) -> Iterator[tuple[str, NDArray[np.float32]]]:
        begin = 0
        for (name, grid), start, first, count in zip(grids.items(), starts, ends, sent, strict=False):
            tensor = np.zeros(grid, np.float32)
            end = begin + count * grid[1]
            tensor[keys[first : first + count] - start] = parts[0][begin:end].reshape(count, grid[1])
            begin = end
            yield name, tensor.reshape(shapes[name])

    def place(parts: list[kernels.Piece]) -> list[kernels.Piece]:
        firsts = accumulate((count * width for count, width in grids.values()), initial=0)
        places = [
            ((keys[begin:end] - start)[:, None] * width + np.arange(first, first + width, dtype=np.int32)).reshape(-1)
            for (_, width), start, first, (begin, end) in zip(
                grids.values(), starts, firsts, pairwise(ends), strict=False
            )
        ]
        return [replace(parts[0], places=np.concatenate(places))]  # int32: `small` says so

    small = sum(count * width for count, width in grids.values()) <= MAX_VALUES
    values = sum(count * width for count, (_, width) in zip(sent, grids.values(), strict=True))
    return Layout([values], restore, place if small else None)
