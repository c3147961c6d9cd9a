"""Codecs that send factors of matrices: svd, powersgd.

A tensor is the matrix that `kernels.as_matrix` says, (m, n); of rank r it is two parts, (r, m) and (r, n), of which it
is the sum of outer products, r (m + n) values. A tensor that is no matrix, or that factors would not make smaller, is
one part, as it is. The sum is made in float32, one product after the other, each rounded by itself: the same bits on
every machine, so that both ends of a link know what the bytes say.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

from edge_runtime import kernels
from edge_runtime.codecs.codec import BadCodec, BadUpdate, Shapes, State
from edge_runtime.codecs.reduction import (
    Arrays,
    Entries,
    Layout,
    Metadata,
    Parts,
    Reduced,
    Reduction,
    parse_arguments,
    round_of,
    slot_of,
    with_feedback,
)
from edge_runtime.codecs.values import entry

__all__ = ["LOW_RANK"]

RANK, START = "rank", "start"  # the entry of svd, the slot of powersgd
AS_IT_IS = -1
BLOCK_VALUES = 16_384  # of a sum of outer products at a time: 64 KiB stay in the cache

Floats = NDArray[np.float32]


def _svd(texts: Sequence[str]) -> Reduction:
    """The fewest singular values with a share of each matrix's energy; the share may rise with the rounds.

    Entry "rank": int32 for each tensor in the order of the names, -1 where it is sent as it is. Parts of a matrix are
    sqrt(s) u^T and sqrt(s) v^T. Error: |M - decoded|^2 <= (1 - energy) |M|^2, up to float32 rounding.

    Source: FedKD, Wu et al., Nature Communications 13:2032, 2022, its dynamic gradient approximation. Differs: the
    singular values are in the factors; what factors do not make smaller is sent as it is.
    """
    arguments = parse_arguments(texts, flags=("ef",))
    numbers = arguments.numbers if len(arguments.numbers) == 3 else (*arguments.numbers[:1], *arguments.numbers[:1], 1)
    if len(arguments.numbers) not in {1, 3} or not all(0 < energy <= 1 for energy in numbers[:2]):
        raise BadCodec(
            "takes the energy to keep, in (0, 1], or two and the rounds from one to the other; then maybe ef"
        )
    first, last, rounds = numbers
    if not (1 <= rounds <= 1_000_000 and float(rounds).is_integer()):
        raise BadCodec(f"takes a whole number of rounds in 1 .. 1000000, got {rounds:g}")

    def energy_of(metadata: Metadata) -> float:
        return first if first == last else first + (last - first) * min(1.0, (round_of(metadata) - 1) / rounds)

    stage = Reduction(_svd_reduce(energy_of), _svd_layout, (RANK,))
    return with_feedback(stage) if arguments.flags else stage


def _svd_reduce(energy_of: Callable[[Metadata], float]) -> Callable[[Arrays, Metadata, State], Reduced]:
    def reduce(tensors: Arrays, metadata: Metadata, _state: State) -> Reduced:
        shapes = {name: tensors[name].shape for name in sorted(tensors)}
        found = kernels.truncated_svd_tree([tensors[name] for name in shapes], energy=energy_of(metadata))
        parts: list[Floats] = []
        for name, factors in zip(shapes, found, strict=True):
            parts += [tensors[name].reshape(-1)] if factors is None else _balanced(factors)
        ranks = [AS_IT_IS if factors is None else factors.rank for factors in found]
        return Reduced(parts, {RANK: np.array(ranks, np.int32)}, _products(shapes, ranks))

    return reduce


def _balanced(factors: kernels.LowRank) -> list[Floats]:
    """Both factors with the root of the singular values, so that a value format rounds both alike."""
    root = np.sqrt(factors.s)
    return [(factors.u * root).T.reshape(-1), (factors.vt * root[:, None]).reshape(-1)]


def _svd_layout(entries: Entries, shapes: Shapes) -> Layout:
    ranks = entry(entries, RANK, "<i4", len(shapes)).tolist()
    for name, rank in zip(sorted(shapes), ranks, strict=True):
        matrix = kernels.as_matrix(shapes[name])
        most = AS_IT_IS if matrix is None else min(*matrix, kernels.saving_rank(*matrix))
        if not (rank == AS_IT_IS or 0 < rank <= most):
            raise BadUpdate(f"{RANK!r} of tensor {name!r} is {rank}; it must be -1 or in 1 .. {most}")
    return _products(shapes, ranks)


def _powersgd(texts: Sequence[str]) -> Reduction:
    """One step of subspace iteration a round from where the last one ended, with error feedback.

    Parts of a matrix are p^T with orthonormal rows and q^T, of rank min(RANK, m, n). Carried beside the residual is q,
    in the slot "start". An update that did not count leaves q as it is: any start of full rank will do.

    Source: PowerSGD, Vogels et al., NeurIPS 2019, algorithm 1, one worker: the gateway averages products, not factors.
    """
    numbers = parse_arguments(texts).numbers
    if len(numbers) != 1 or not (1 <= numbers[0] <= 1024 and numbers[0].is_integer()):
        raise BadCodec("takes the rank, a whole number in 1 .. 1024")
    rank = int(numbers[0])

    def reduce(tensors: Arrays, _metadata: Metadata, state: State) -> Reduced:
        shapes = {name: tensors[name].shape for name in sorted(tensors)}
        ranks = [_fixed_rank(shape, rank) for shape in shapes.values()]
        parts: list[Floats] = []
        for number, (name, of_tensor) in enumerate(zip(shapes, ranks, strict=True)):
            parts += _stepped(name, tensors[name], of_tensor, state, seed=number)
        return Reduced(parts, {}, _products(shapes, ranks))

    def layout(_entries: Entries, shapes: Shapes) -> Layout:
        return _products(shapes, [_fixed_rank(shapes[name], rank) for name in sorted(shapes)])

    return with_feedback(Reduction(reduce, layout, carries=(START,)))


def _fixed_rank(shape: tuple[int, ...], rank: int) -> int:
    matrix = kernels.as_matrix(shape)
    if matrix is None or min(rank, *matrix) > kernels.saving_rank(*matrix):
        return AS_IT_IS
    return min(rank, *matrix)


def _stepped(name: str, tensor: NDArray[np.float32], rank: int, state: State, *, seed: int) -> list[Floats]:
    matrix = kernels.as_matrix(tensor.shape)
    if rank == AS_IT_IS or matrix is None:
        return [tensor.reshape(-1)]
    start = slot_of(state, START, {name: (matrix[1], rank)})[name]
    p, q = kernels.power_step(tensor.reshape(matrix), start, seed=seed)
    start[...] = q
    return [p.T.reshape(-1), q.T.reshape(-1)]


def _products(shapes: Shapes, ranks: Sequence[int]) -> Layout:
    """The layout of tensors of these ranks, in the order of their names."""
    plan = [
        (name, kernels.as_matrix(shapes[name]) or (0, 0), rank)
        for name, rank in zip(sorted(shapes), ranks, strict=True)
    ]
    counts: list[int] = []
    for name, (rows, columns), rank in plan:
        counts += [prod(shapes[name])] if rank == AS_IT_IS else [rank * rows, rank * columns]

    def restore(parts: Parts) -> Iterator[tuple[str, Floats]]:
        following = iter(parts)
        for name, _, rank in plan:
            first = next(following)
            tensor = (
                first if rank == AS_IT_IS else _outer_sum(first.reshape(rank, -1), next(following).reshape(rank, -1))
            )
            yield name, tensor.reshape(shapes[name])

    return Layout(counts, restore)


def _outer_sum(left: Floats, right: Floats) -> Floats:
    """Sum over k of left[k] right[k]^T, (m, n), in this order."""
    rows, columns = left.shape[1], right.shape[1]
    total = np.zeros((rows, columns), np.float32)
    step = max(1, BLOCK_VALUES // columns)
    product = np.empty((step, columns), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # hostile factors; whoever decodes refuses what is not finite
        for begin in range(0, rows, step):
            block = total[begin : begin + step]
            for of_row, of_column in zip(left[:, begin : begin + step], right, strict=True):
                block += np.multiply(of_row[:, None], of_column, out=product[: len(block)])
    return total


LOW_RANK: Mapping[str, Callable[[Sequence[str]], Reduction]] = {"svd": _svd, "powersgd": _powersgd}
