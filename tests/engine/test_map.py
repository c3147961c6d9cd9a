"""Fused maps against their NumPy twin in float64: programs drawn at random, every way to tile a box, broken rules."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from opcase import F32, ISAS, Case, compute, twin
from planwriter import BATCH, OUTPUT, TEMPORARY, PlanWriter

from edge_runtime import _core
from models.compiler.map_program import MapProgram, Step, encode

# Every way a box can be walked: flat, rows in one tile, rows longer than a tile, columns, channels between.
BOXES = [
    ((1,), ()),
    ((1300,), ()),
    ((5, 17), ()),
    ((3, 700), (1,)),
    ((40, 65), (1,)),
    ((40, 65), (0,)),
    ((7, 600), (0,)),
    ((300, 3), (1,)),
    ((300, 3), (0, 1)),
    ((2, 600), (0, 1)),
    ((4, 6, 16), (0, 2)),
    ((3, 5, 600), (0, 2)),
    ((3, 5, 7), (1,)),
    ((3, 5, 7), (0,)),
    ((3, 2, 9, 5), (0, 2)),
    ((3, 2, 9, 5), (1, 3)),
    ((2, 1, 40, 33), (3,)),
    ((5000,), ()),
    ((3, 2700), (1,)),
    ((7, 2600), (0,)),
    ((3, 5, 2600), (0, 2)),
]
ONE = ("exp", "tanh", "sigmoid", "erf", "softplus", "abs", "sign", "floor", "ceil", "round", "sin", "cos", "relu")
TWO = ("min", "max", "equal", "less", "less_equal", "add", "sub", "mul", "relu_grad", "add", "sub", "mul")
REDUCE = ("sum", "maximum", "minimum")


@dataclass
class Draft:
    """A program as it grows: the axes of every value beside it."""

    dims: tuple[int, ...]
    reduced: tuple[int, ...]
    axes: list[frozenset[int]]
    steps: list[Step]

    def add(self, function: str, *operands: int) -> int:
        axes = frozenset().union(*(self.axes[o] for o in operands))
        self.axes.append(axes - set(self.reduced) if function in REDUCE else axes)
        self.steps.append(Step(function, operands))
        return len(self.axes) - 1


def drawn(dims: tuple[int, ...], reduced: tuple[int, ...], rng: np.random.Generator) -> MapProgram:
    """A program over a box: operands of every kind, some forty steps, whatever can be stored of the last."""
    every = tuple(range(len(dims)))
    operands = [every, every, *(tuple(a for a in every if rng.random() < 0.5) for _ in range(4))]
    constants = (0.75, -1.25)
    draft = Draft(dims, reduced, [*map(frozenset, operands), frozenset(), frozenset()], [])
    whole = draft.add("mul", 0, 1)
    for _ in range(40):
        known = len(draft.axes)
        kind = rng.random()
        if kind < 0.15 and reduced:
            arg = rng.choice([v for v in range(known) if len(draft.axes[v]) == len(dims)])
            total = draft.add(str(rng.choice(REDUCE)), int(arg))
            draft.add("tanh", total)  # sums grow with the box; the next steps should not
        elif kind < 0.4:
            draft.add("tanh", draft.add(str(rng.choice(ONE)), draft.add("tanh", int(rng.integers(known)))))
        elif kind < 0.5:
            draft.add("where", *(int(v) for v in rng.integers(known, size=3)))
        else:
            draft.add(str(rng.choice(TWO)), int(rng.integers(known)), int(rng.integers(max(0, known - 12), known)))
    kept = frozenset(every) - set(reduced)
    first = len(operands) + len(constants)
    storable = [v for v in range(first, len(draft.axes)) if draft.axes[v] in (frozenset(every), kept)]
    return MapProgram(dims, reduced, tuple(operands), constants, tuple(draft.steps), (whole, *storable[-4:]))


def case_of(program: MapProgram, rng: np.random.Generator) -> Case:
    inputs = tuple(rng.standard_normal([program.dims[a] for a in axes]).astype(F32) for axes in program.operands)
    return Case("map", inputs, tuple((shape, F32) for shape in shapes_of(program)), tuple(encode(program)))


def shapes_of(program: MapProgram) -> list[tuple[int, ...]]:
    """Shapes of the results, from the axes of the values they show."""
    axes = [set(a) for a in program.operands] + [set() for _ in program.constants]
    for step in program.steps:
        union = set().union(*(axes[o] for o in step.operands))
        axes.append(union - set(program.reduced) if step.function in REDUCE else union)
    return [tuple(program.dims[a] for a in sorted(axes[r])) for r in program.results]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("dims", "reduced"), BOXES, ids=str)
def test_random_programs_compute_what_their_twin_says(
    isa: str, dims: tuple[int, ...], reduced: tuple[int, ...]
) -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        case = case_of(drawn(dims, reduced, rng), rng)
        one, three = (compute(case, list(case.inputs), isa, threads) for threads in (1, 3))
        for got, again, want in zip(one, three, twin(case, list(case.inputs)), strict=True):
            np.testing.assert_array_equal(got, again)
            # A comparison or a rounding may fall on the other side for a number on its edge: a few may differ.
            near = np.isclose(got, want, rtol=1e-4, atol=1e-4)
            assert near.mean() > 0.98


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("dims", "reduced"), [b for b in BOXES if b[1]], ids=str)
def test_normalisation_is_as_accurate_as_float32_can_be(
    isa: str, dims: tuple[int, ...], reduced: tuple[int, ...]
) -> None:
    every, count = tuple(range(len(dims))), float(np.prod([dims[a] for a in reduced]))
    steps = [Step("sum", (0,)), Step("div", (3, 1)), Step("sub", (0, 4)), Step("mul", (5, 5)), Step("sum", (6,))]
    steps += [Step("div", (7, 1)), Step("add", (8, 2)), Step("sqrt", (9,)), Step("div", (5, 10))]
    program = MapProgram(dims, reduced, (every,), (count, 1e-3), tuple(steps), (11, 4, 8))
    x = (np.random.default_rng(1).standard_normal(dims) * 3 + 50).astype(F32)
    case = Case("map", (x,), tuple((shape, F32) for shape in shapes_of(program)), tuple(encode(program)))
    for got, want in zip(compute(case, [x], isa, 2), twin(case, [x]), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-5)


# The gradient of a clipped x * scale + shift, and sums with a weight for each place of the first axis.
CLIP = (
    *(Step("mul", (0, 2)), Step("add", (6, 3)), Step("relu", (7,)), Step("less", (8, 5)), Step("mul", (1, 9))),
    *(Step("relu_grad", (10, 8)), Step("mul", (0, 4)), Step("sum", (12,)), Step("mul", (11, 0)), Step("mul", (14, 4))),
    *(Step("sum", (15,)), Step("min", (8, 5))),
)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("dims", "reduced"), [((3, 5, 70), (0, 2)), ((3, 2, 9, 5), (0, 2)), ((2, 3, 2600), (0, 2))], ids=str
)
def test_joined_steps_compute_the_bits_of_the_steps_alone(
    isa: str, dims: tuple[int, ...], reduced: tuple[int, ...]
) -> None:
    every, kept = tuple(range(len(dims))), tuple(a for a in range(len(dims)) if a not in reduced)
    program = MapProgram(dims, reduced, (every, every, kept, kept, (0,)), (1.5,), CLIP, (11, 13, 16, 17))
    apart = replace(program, results=(*program.results, 7, 9, 12, 14))
    rng = np.random.default_rng(3)
    case, other = case_of(program, rng), case_of(apart, rng)
    inputs = list(case.inputs)
    inputs[0][0, 0, ..., :3] = [np.nan, np.inf, -np.inf]
    inputs[1][0, 1, ..., 1:5] = np.nan
    joined, alone = compute(case, inputs, isa, 1), compute(other, inputs, isa, 1)
    for got, want in zip(joined, alone, strict=False):
        np.testing.assert_array_equal(got, want)


# What normalisation is made of, with operands x, d, three numbers a channel and 1.5: squares of a difference; then the
# gradient of the activation, its sum and that of its products with x, and what follows from both.
VARIANCE = (Step("sub", (0, 2)), Step("mul", (6, 6)), Step("sum", (7,)))
AFFINE = (Step("mul", (0, 2)), Step("add", (9, 3)), Step("relu", (10,)), Step("min", (11, 5)))
THROUGH_CLIP = (Step("less", (11, 5)), Step("mul", (1, 13)), Step("relu_grad", (14, 11)))
THROUGH_RELU = (Step("mul", (4, 5)), Step("mul", (13, 5)), Step("relu_grad", (1, 11)))
SLOPE = (
    *(Step("sum", (15,)), Step("mul", (15, 0)), Step("sum", (17,)), Step("mul", (15, 4)), Step("mul", (18, 0))),
    *(Step("add", (19, 20)), Step("add", (21, 16))),
)
CHANNELS = [((3, 5, 70), (0, 2)), ((5, 3, 64), (0, 2)), ((3, 40, 16), (0, 2)), ((2, 3, 2600), (0, 2)), ((9, 48), (1,))]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("dims", "reduced"), CHANNELS, ids=str)
@pytest.mark.parametrize("through", [THROUGH_CLIP, THROUGH_RELU], ids=["clip", "relu"])
def test_joined_normalisation_computes_the_bits_of_the_steps_alone(
    isa: str, dims: tuple[int, ...], reduced: tuple[int, ...], through: tuple[Step, ...]
) -> None:
    every, kept = tuple(range(len(dims))), tuple(a for a in range(len(dims)) if a not in reduced)
    steps = (*VARIANCE, *AFFINE, *through, *SLOPE)
    program = MapProgram(dims, reduced, (every, every, kept, kept, kept), (1.5,), steps, (8, 12, 16, 18, 22))
    # Results that others follow from are steps of their own.
    apart = replace(program, results=(*program.results, 10, 15, 21))
    case, other = (case_of(p, np.random.default_rng(3)) for p in (program, apart))
    for got, want in zip(
        compute(case, list(case.inputs), isa, 2), compute(other, list(case.inputs), isa, 1), strict=False
    ):
        np.testing.assert_array_equal(got, want)
    for got, want in zip(compute(case, list(case.inputs), isa, 1), twin(case, list(case.inputs)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3)


def computed_over(program: MapProgram, inputs: list[np.ndarray], isa: str, threads: int) -> list[np.ndarray]:
    """As compute, but results of the box take the bytes of operands of the box, the last the first's."""
    writer, shapes = PlanWriter(), shapes_of(program)
    sources = [writer.tensor(f"in{i}", x.shape, BATCH) for i, x in enumerate(inputs)]
    operands = [writer.tensor("", x.shape, TEMPORARY) for x in inputs]
    free = [writer.tensors[o].offset for o in operands if writer.tensors[o].shape == program.dims]
    over = [free.pop(0) if shape == program.dims and free else None for shape in reversed(shapes)]
    results = [writer.tensor("", s, TEMPORARY, offset=at) for s, at in zip(shapes, reversed(over), strict=True)]
    for source, operand in zip(sources, operands, strict=True):
        writer.op("copy", [source], [operand])
    writer.op("map", operands, results, encode(program))
    for i, (result, shape) in enumerate(zip(results, shapes, strict=True)):
        writer.op("copy", [result], [writer.tensor(f"out{i}", shape, OUTPUT)])
    engine = _core.Engine(writer.seal(), threads, isa)
    for i, x in enumerate(inputs):
        engine.view(f"in{i}")[...] = x
    engine.step()
    return [engine.view(f"out{i}").copy() for i in range(len(shapes))]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("dims", "reduced"), [*BOXES, *CHANNELS, ((2048,), ()), ((3, 5, 2688), (0, 2))], ids=str)
def test_results_over_operands_have_the_bits_of_results_apart(
    isa: str, dims: tuple[int, ...], reduced: tuple[int, ...]
) -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        program = drawn(dims, reduced, rng)
        case = case_of(program, rng)
        inputs = list(case.inputs)
        for got, want in zip(computed_over(program, inputs, isa, 2), compute(case, inputs, isa, 1), strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("isa", ISAS)
def test_a_nan_wins_an_extreme_and_spoils_a_sum(isa: str) -> None:
    x = np.array([[1, np.nan, 3], [4, 5, 6]], F32)
    program = MapProgram((2, 3), (1,), ((0, 1),), (), tuple(Step(f, (0,)) for f in REDUCE), (1, 2, 3))
    case = Case("map", (x,), (((2,), F32),) * 3, tuple(encode(program)))
    for got, want in zip(compute(case, [x], isa, 1), (15, 6, 4), strict=True):
        np.testing.assert_array_equal(got, [np.nan, want])


def add_program(**changes: object) -> MapProgram:
    program = MapProgram((4, 6), (1,), ((0, 1), (0,)), (2.0,), (Step("sum", (0,)), Step("add", (0, 3))), (4, 3))
    return replace(program, **changes)


def plan_with(attrs: list[int], shapes: list[tuple[int, ...]], results: list[tuple[int, ...]]) -> bytes:
    writer = PlanWriter()
    inputs = [writer.tensor(f"in{i}", shape, BATCH) for i, shape in enumerate(shapes)]
    outputs = [writer.tensor(f"out{i}", shape, OUTPUT) for i, shape in enumerate(results)]
    writer.op("map", inputs, outputs, attrs)
    return writer.seal()


GOOD = encode(add_program())
SHAPES, RESULTS = [(4, 6), (4,)], [(4, 6), (4,)]


def changed(at: int, word: int) -> list[int]:
    return [word if i == at else old for i, old in enumerate(GOOD)]


def test_a_good_program_is_taken() -> None:
    assert _core.Engine(plan_with(GOOD, SHAPES, RESULTS)).arena_bytes > 0


@pytest.mark.parametrize(
    ("rule", "attrs"),
    [
        ("BadAttribute", []),
        ("BadAttribute", GOOD[:-1]),
        ("BadAttribute", [*GOOD, 0]),
        ("BadAttribute", changed(0, 17)),  # operands
        ("BadOperand", encode(add_program(operands=((0, 1),), steps=(Step("sum", (0,)),), results=(2, 2)))),
        ("BadAttribute", changed(1, 9)),  # results
        ("BadAttribute", changed(2, 65)),  # constants
        ("BadAttribute", changed(3, 257)),  # steps
        ("BadAttribute", changed(4, 0)),  # axes
        ("BadAttribute", changed(4, 5)),
        ("BadAttribute", changed(5, 0)),  # the first axis
        ("BadAttribute", changed(5, -4)),
        ("BadShape", changed(5, 5)),
        ("BadAttribute", changed(7, 4)),  # reduced axes
        ("BadAttribute", changed(7, 0)),  # a sum over nothing
        ("BadAttribute", changed(8, 4)),  # the axes of an operand
        ("BadShape", changed(9, 2)),
        ("BadAttribute", changed(11, 20)),  # functions
        ("BadAttribute", changed(11, 67)),
        ("BadAttribute", changed(11, -1)),
        ("BadAttribute", changed(12, 3)),  # itself
        ("BadAttribute", changed(12, -1)),
        ("BadAttribute", changed(12, 1)),  # a sum of what lacks an axis
        ("BadAttribute", changed(16, 0)),  # a result that is an operand
        ("BadAttribute", changed(16, 5)),
    ],
)
def test_a_program_that_breaks_a_rule_is_refused(rule: str, attrs: list[int]) -> None:
    with pytest.raises(_core.PlanError) as refused:
        _core.Engine(plan_with(attrs, SHAPES, RESULTS))
    assert refused.value.args[0] == rule


def test_a_box_that_no_tensor_fills_is_refused() -> None:
    steps = (Step("mul", (0, 1)), Step("sum", (2,)))
    program = MapProgram((1 << 20, 1 << 20), (0, 1), ((0,), (1,)), (), steps, (3,))
    with pytest.raises(_core.PlanError, match="size of the box"):
        _core.Engine(plan_with(encode(program), [(1 << 20,), (1 << 20,)], [()]))


def test_a_result_of_the_box_may_take_an_operands_bytes_and_one_of_groups_may_not() -> None:
    def plan(shared: int) -> bytes:
        writer = PlanWriter()
        x, b = writer.tensor("x", (4, 6), BATCH), writer.tensor("b", (4,), BATCH)
        t = writer.tensor("", (4, 6), TEMPORARY, offset=512)
        u = writer.tensor("", (4,), TEMPORARY, offset=1024)
        writer.op("copy", [x], [t])
        writer.op("copy", [b], [u])
        y = writer.tensor("", (4, 6), TEMPORARY, offset=512 if shared == 0 else 1536)
        s = writer.tensor("", (4,), TEMPORARY, offset=1024 if shared == 1 else 2048)
        writer.op("map", [t, u], [y, s], GOOD)
        writer.op("copy", [y], [writer.tensor("y", (4, 6), OUTPUT)])
        return writer.seal()

    engine = _core.Engine(plan(0))
    engine.view("x")[...] = x = np.arange(24, dtype=F32).reshape(4, 6)
    engine.step()
    np.testing.assert_array_equal(engine.view("y"), x + x.sum(1, keepdims=True))
    with pytest.raises(_core.PlanError, match="Overlap"):
        _core.Engine(plan(1))
