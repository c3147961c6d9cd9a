"""The operations that map, pick and move elements, and two updates, against their NumPy twins in float64."""

from __future__ import annotations

import numpy as np
import pytest
from opcase import F32, I32, ISAS, U8, Case, arrays_of, assert_close, compute, name_of, twin
from planwriter import BATCH, OUTPUT, STATE, TRAINED, PlanWriter, bits

from edge_runtime import _core
from edge_runtime.kernels import reference, reference_tensor

SIZES = [(), (1,), (63,), (3, 65), (2, 3, 50, 20)]
POSITIVE = {1, 2}  # log and sqrt
RNG = np.random.default_rng(9)


def numbers(shape: tuple[int, ...], *, positive: bool = False, spread: float = 3.0) -> np.ndarray:
    values = RNG.standard_normal(shape) * spread
    return np.asarray(np.abs(values) + 0.01 if positive else values, F32)


def indices(shape: tuple[int, ...], n: int) -> np.ndarray:
    """Some name a row, some are left out."""
    return RNG.integers(-1, n, shape).astype(I32)


UNARIES = [
    Case("unary", (numbers(s, positive=f in POSITIVE),), ((s, F32),), (f,))
    for f in range(len(reference_tensor.UNARY))
    for s in SIZES
]

BROADCASTS = [  # a, b, c
    ((), (), ()),
    ((1000,), (), (1000,)),
    ((), (33,), (33,)),
    ((5, 17), (17,), (5, 17)),
    ((5, 17), (5, 1), (5, 17)),
    ((2, 1, 4, 1), (3, 1, 5), (2, 3, 4, 5)),
    ((2, 1, 3, 1, 2, 1), (1, 4, 1, 5, 1, 3), (2, 4, 3, 5, 2, 3)),
]
TIES = np.round(numbers((4, 50), spread=1.0))
BINARIES = [
    *[
        Case("binary", (numbers(a, positive=f == 1, spread=1.0), numbers(b, spread=1.0)), ((c, F32),), (f,))
        for f in range(len(reference_tensor.BINARY))
        for a, b, c in BROADCASTS
    ],
    *[Case("binary", (TIES, np.round(numbers((50,), spread=1.0))), ((TIES.shape, F32),), (f,)) for f in range(2, 7)],
]
WHERES = [
    Case("where", (np.round(numbers(c, spread=0.6)), a, b), ((out, F32),))
    for c, a, b, out in [
        ((), (), (), ()),
        ((70,), (70,), (70,), (70,)),
        ((5, 1), (5, 9), (), (5, 9)),
        ((3, 1, 4), (2, 1), (1, 1, 1), (3, 2, 4)),
    ]
]

REDUCED = [((9,), (0,)), ((9, 300), (0,)), ((9, 130), (1,)), ((9, 130), ()), ((4, 6, 5, 7), (0, 2)), ((4, 1, 5), (1,))]
REDUCED += [((2, 3, 2, 3, 2, 3), (1, 3, 5)), ((2, 3, 2, 3, 2, 3), (0, 2, 4)), ((), ()), ((40000,), (0,))]
MINMAXES = [
    Case(
        "minmax",
        (x,),
        ((tuple(1 if d in axes else n for d, n in enumerate(x) if keep or d not in axes), F32),),
        (smallest, sum(1 << d for d in axes)),
    )
    for smallest, keep in ((0, 0), (1, 1))
    for x, axes in REDUCED
]
ARGS = [
    Case("argminmax", (np.round(numbers(x)),), ((x[:axis] + x[axis + 1 :], I32),), (smallest, axis))
    for smallest in (0, 1)
    for x, axis in [((7,), 0), ((5, 40), 1), ((5, 40), 0), ((2, 3, 4, 5), 2)]
]
TOPKS = [
    Case("topk", (np.round(numbers(x)),), ((y, F32), (y, I32)), (smallest, axis, y[axis]))
    for smallest in (0, 1)
    for x, axis, y in [((7,), 0, (7,)), ((5, 40), 1, (5, 3)), ((9, 4), 0, (1, 4)), ((2, 6, 5), 1, (2, 4, 5))]
]
CUMSUMS = [
    Case("cumsum", (x,), ((x, F32),), (axis, exclusive, reverse), x[axis])
    for x, axis in [((1,), 0), ((300,), 0), ((5, 40), 0), ((2, 3, 7, 5), 2)]
    for exclusive in (0, 1)
    for reverse in (0, 1)
]

# x, base, y, x_offset, y_offset, axes of the box
COPIES = [
    ((6,), None, (6,), 0, 0, [(6, 1, 1)]),
    ((6,), None, (9,), 0, 2, [(6, 1, 1)]),
    ((50,), None, (50,), 49, 0, [(50, -1, 1)]),
    ((4, 90), None, (2, 30), 3, 0, [(2, 180, 30), (30, 3, 1)]),
    ((2, 30), None, (4, 90), 0, 3, [(2, 30, 180), (30, 1, 3)]),
    ((2, 30), (4, 90), (4, 90), 0, 3, [(2, 30, 180), (30, 1, 3)]),
    ((7, 5), None, (5, 7), 0, 0, [(5, 1, 7), (7, 5, 1)]),
    ((1,), (4, 6), (4, 6), 0, 7, [(2, 0, 6), (3, 0, 1)]),
    ((3, 1000), None, (3, 1800), 0, 700, [(3, 1000, 1800), (1000, 1, 1)]),
    ((2, 2, 2, 2, 2, 2), None, (3, 3, 3, 3, 3, 3), 0, 0, [(2, 1 << (5 - d), 3 ** (5 - d)) for d in range(6)]),
]
STRIDED = [
    Case("strided_copy", (x, base), ((y, F32),), (bits(0.75), x_at, y_at, *[n for axis in axes for n in axis]))
    for x, base, y, x_at, y_at, axes in COPIES
]
STRIDED += [Case("strided_copy", (indices((9,), 99), None), (((12,), I32),), (-7, 0, 3, 9, 1, 1))]


def gather_cases(x: tuple[int, ...], axis: int, index: np.ndarray, *, elements: int) -> list[Case]:
    y = index.shape if elements else (*x[:axis], *index.shape, *x[axis + 1 :])
    attrs = (axis, elements)
    return [
        Case("gather", (x, index), ((y, F32),), attrs),
        Case("scatter_add", (y, index), ((x, F32),), attrs, index.size),
    ]


GATHERS = [
    *gather_cases((9, 5), 0, indices((4,), 9), elements=0),
    *gather_cases((30, 8), 0, indices((3, 50), 30), elements=0),
    *gather_cases((2, 7, 5), 1, indices((11,), 7), elements=0),
    *gather_cases((4, 6), 1, indices((), 6), elements=0),
    *gather_cases((2, 7, 5), 1, indices((2, 3, 5), 7), elements=1),
    *gather_cases((2, 7), 1, indices((2, 20), 7), elements=1),
]
CASTS = [Case("cast", (numbers((130,), spread=200.0),), (((130,), t),)) for t in (F32, I32, U8)] + [
    Case("cast", (indices((77,), 300),), (((77,), t),)) for t in (F32, I32, U8)
]
CASTS += [Case("cast", (np.arange(90, dtype=U8),), (((90,), t),)) for t in (F32, I32, U8)]


def matmul_case(a: tuple[int, ...], b: tuple[int, ...], sizes: tuple[int, int, int], trans: tuple[int, int]) -> Case:
    m, n, k = sizes
    batch = np.broadcast_shapes(a, b)
    left, right = (k, m) if trans[0] else (m, k), (n, k) if trans[1] else (k, n)
    return Case("matmul", ((*a, *left), (*b, *right)), (((*batch, m, n), F32),), trans, k)


MATMULS = [
    matmul_case((3,), (3,), (5, 7, 4), (0, 0)),
    matmul_case((3,), (1,), (5, 7, 600), (1, 0)),
    matmul_case((1,), (4,), (33, 17, 9), (0, 1)),
    matmul_case((2, 1, 3), (1, 4, 3), (6, 5, 8), (1, 1)),
    matmul_case((1, 1), (1, 1), (100, 40, 30), (0, 0)),
    matmul_case((2, 3, 1, 2), (1, 3, 2, 1), (1, 2, 3), (0, 0)),
]

CASES = [*UNARIES, *BINARIES, *WHERES, *MINMAXES, *ARGS, *TOPKS, *CUMSUMS, *STRIDED, *GATHERS, *CASTS, *MATMULS]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_kernel_equals_its_twin_for_any_number_of_threads(case: Case, isa: str) -> None:
    inputs = arrays_of(case)
    got = compute(case, inputs, isa, 1)
    for one, three in zip(got, compute(case, inputs, isa, 3), strict=True):
        assert one.tobytes() == three.tobytes()
    for value, want in zip(got, twin(case, inputs), strict=True):
        assert_close(value, want, case.terms)


def test_every_opcode_has_a_case() -> None:
    elsewhere = {"adamw", "blend", "random"}  # below, and in test_random.py
    assert {case.op for case in CASES} | elsewhere == set(reference_tensor.TWINS)


ULPS = {0: 2, 1: 2, 2: 1, 3: 1, 4: 3, 5: 3, 6: 3, 7: 3}  # by function, as unary.h promises


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("function", ULPS)
def test_functions_are_as_exact_as_their_contract_says(function: int, isa: str) -> None:
    parts = [RNG.standard_normal(20000) * s for s in (1e-3, 0.3, 1.0, 4.0, 25.0)] + [np.linspace(-88, 88, 30000)]
    x = np.concatenate(parts).astype(F32)
    x = np.abs(x) + F32.type(1e-30) if function in POSITIVE else x
    (y,) = compute(Case("unary", (), ((x.shape, F32),), (function,)), [x], isa, 1)
    (want,) = twin(Case("unary", (), ((x.shape, F32),), (function,)), [x])
    normal = (np.abs(want) > np.finfo(F32).tiny) & (np.abs(want) < np.finfo(F32).max)
    error = np.abs(y - want)[normal] / np.spacing(np.abs(want[normal]).astype(F32))
    assert error.max() <= ULPS[function]


@pytest.mark.parametrize("isa", ISAS)
def test_functions_at_the_ends_of_the_numbers(isa: str) -> None:
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, 200.0, -200.0], F32)
    inf, nan, tiny = np.inf, np.nan, np.float32(1e-40)
    wanted = {
        0: [1, 1, inf, 0, nan, 1, inf, 0],
        1: [-inf, -inf, inf, nan, nan, np.log(np.float64(tiny)), np.log(200), nan],
        4: [0, 0, 1, -1, nan, tiny, 1, -1],
        5: [0.5, 0.5, 1, 0, nan, 0.5, 1, 0],
        6: [0, 0, 1, -1, nan, tiny * 1.1283792, 1, -1],
        7: [np.log(2), np.log(2), inf, 0, nan, np.log(2), 200, 0],
        9: [0, 0, 1, -1, nan, 1, 1, -1],
    }
    for function, want in wanted.items():
        (y,) = compute(Case("unary", (), ((x.shape, F32),), (function,)), [x], isa, 1)
        np.testing.assert_allclose(y, want, rtol=1e-6, err_msg=str(function))


@pytest.mark.parametrize("isa", ISAS)
def test_a_nan_is_the_greatest_and_the_smallest(isa: str) -> None:
    x = np.zeros((2, 40), F32)
    x[1, 3] = x[1, 30] = np.nan
    for smallest in (0, 1):
        (y,) = compute(Case("minmax", (), (((2,), F32),), (smallest, 2)), [x], isa, 1)
        np.testing.assert_array_equal(y, [0, np.nan])
        (y,) = compute(Case("minmax", (), (((40,), F32),), (smallest, 1)), [x], isa, 1)
        assert np.isnan(y).sum() == 2
        (index,) = compute(Case("argminmax", (), (((2,), I32),), (smallest, 1)), [x], isa, 1)
        np.testing.assert_array_equal(index, [0, 3])
    nan = np.full(5, np.nan, F32)
    (low,) = compute(Case("binary", (), (((5,), F32),), (2,)), [nan, np.ones(5, F32)], isa, 1)
    assert np.isnan(low).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", [1, 17, 70001])
def test_adamw_equals_its_twin_in_place(isa: str, size: int) -> None:
    attrs = [bits(0.87), bits(0.983), bits(1e-6), bits(0.07)]
    rng = np.random.default_rng(size)
    values = {name: rng.standard_normal(size).astype(F32) for name in ("param", "grad", "m")}
    values["v"] = rng.random(size).astype(F32)
    results = []
    for threads in (1, 3):
        writer = PlanWriter()
        param, grad = writer.tensor("param", (size,), TRAINED), writer.tensor("grad", (size,), BATCH)
        lr, t = writer.tensor("lr", (), BATCH), writer.tensor("t", (), BATCH)
        m, v = writer.tensor("m", (size,), STATE), writer.tensor("v", (size,), STATE)
        writer.op("adamw", [param, grad, lr, m, v, t], [param, m, v], attrs)
        engine = _core.Engine(writer.seal(), threads, isa)
        for name, value in values.items():
            engine.view(name)[...] = value
        engine.view("lr")[...], engine.view("t")[...] = 0.11, 4
        engine.step()
        results.append([engine.view(name).copy() for name in ("param", "m", "v")])
    operands = [values["param"], values["grad"], np.array(0.11), values["m"], values["v"], np.array(4.0)]
    want = reference.run("adamw", [a.astype(np.float64) for a in operands], attrs, [])
    for one, three, expected in zip(*results, want, strict=True):
        assert one.tobytes() == three.tobytes()
        np.testing.assert_allclose(one, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_blend_moves_a_slot_in_place(rate: float) -> None:
    writer = PlanWriter()
    slot, value = writer.tensor("slot", (33,), STATE), writer.tensor("value", (33,), BATCH)
    writer.op("blend", [slot, value], [slot], [bits(rate)])
    engine = _core.Engine(writer.seal())
    engine.view("slot")[...] = 2.0
    engine.view("value")[...] = 5.0
    engine.step()
    np.testing.assert_allclose(engine.view("slot"), 2.0 + 3.0 * rate, rtol=1e-6)


def test_a_strided_copy_may_stand_in_its_base() -> None:
    writer = PlanWriter()
    x, base = writer.tensor("x", (3,), BATCH), writer.tensor("base", (7,), STATE)
    writer.op("strided_copy", [x, base], [base], [0, 0, 1, 3, 1, 2])
    engine = _core.Engine(writer.seal())
    engine.view("x")[...] = [1, 2, 3]
    engine.view("base")[...] = 9
    engine.step()
    np.testing.assert_array_equal(engine.view("base"), [9, 1, 9, 2, 9, 3, 9])


@pytest.mark.parametrize("wrong", [7, -2, 2**31 - 1])
def test_an_index_that_comes_from_outside_is_checked_before_the_step(wrong: int) -> None:
    writer = PlanWriter()
    x, index = writer.tensor("x", (7, 2), BATCH), writer.tensor("index", (3,), BATCH, "int32")
    y = writer.tensor("y", (3, 2), OUTPUT)
    writer.op("gather", [x, index], [y], [0, 0])
    engine = _core.Engine(writer.seal())
    engine.view("index")[...] = [0, -1, 6]  # -1 is left out
    engine.view("x")[...] = 1.0
    engine.step()
    np.testing.assert_array_equal(engine.view("y"), [[1, 1], [0, 0], [1, 1]])
    engine.view("index")[1] = wrong
    with pytest.raises(ValueError, match=r"row 1 of 'index' is .* indices are 0\.\.6"):
        engine.step()


def test_an_index_that_a_step_makes_itself_reads_nothing_outside() -> None:
    writer = PlanWriter()
    x, number = writer.tensor("x", (7,), BATCH), writer.tensor("number", (3,), BATCH)
    index, y = writer.tensor("", (3,), dtype="int32"), writer.tensor("y", (3,), OUTPUT)
    writer.op("cast", [number], [index])
    writer.op("gather", [x, index], [y], [0, 0])
    engine = _core.Engine(writer.seal())
    engine.view("x")[...] = 1.0
    engine.view("number")[...] = [1e30, -1e30, 3.9]
    engine.step()
    np.testing.assert_array_equal(engine.view("y"), [0, 0, 1])
