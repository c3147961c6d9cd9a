"""Slices at the peak: the same step with less alive at once, each kernel cut along the rows of its operands."""

from collections.abc import Callable

import numpy as np
import pytest

import models.compiler.graph as g
from edge_runtime import _core
from edge_runtime.profile.anatomy import anatomy
from models.compiler import Compiled, Graph, compile_training, import_onnx
from models.compiler.boxes import Box
from models.compiler.cut import apart, cut
from models.compiler.ir import Node, Role, Type, Value, Window, with_attrs
from models.compiler.map_program import MapProgram, Step
from models.compiler.peak import program
from models.compiler.peak_slices import _split
from models.compiler.sharing import Owner
from models.zoo import build

ROWS = 16


def normalised_model(rows: int) -> Graph:
    """A convolution, batch normalisation, gelu and pool, then attention over the places and a wide product."""
    x, counting = g.leaf("x", "float32", (rows, 4, 12, 12)), g.leaf("rows", "float32", (rows,))
    gain, bias, mean, variance = (g.leaf(name, "float32", (8,)) for name in ("gain", "bias", "mean", "variance"))
    first, second = g.leaf("first", "float32", (8, 4, 3, 3)), g.leaf("second", "float32", (8, 8, 3, 3))
    third, last = g.leaf("third", "float32", (8, 40)), g.leaf("last", "float32", (40, 5))
    window = Window(pads=(1, 1, 1, 1))
    norm = g.batch_norm(g.conv(x, first, window), gain, bias, (mean, variance), counting)
    y = g.conv(g.gelu(norm.y), second, window)
    places = g.transpose(g.reshape(y, (rows, 8, 144)), (0, 2, 1))
    weights = g.softmax(places @ g.transpose(places, (0, 2, 1)), 2)
    logits = g.mean(g.relu((weights @ places) @ third), [1]) @ last
    moved = ((mean, norm.mean), (variance, norm.variance))
    tensors = (gain, bias, mean, variance, first, second, third, last)
    return Graph((x,), tensors, (logits,), rows=counting, updates=moved)


def zoo(name: str, shape: tuple[int, ...]) -> Callable[[], Graph]:
    return lambda: import_onnx(build(name, shape, 5, 7), batch=ROWS)


MODELS = {
    "lenet": zoo("lenet", (1, 28, 28)),
    "cnn1d": zoo("cnn1d", (3, 64)),
    "normalised": lambda: normalised_model(ROWS),
}


def trained(compiled: Compiled, seed: int) -> dict[str, np.ndarray]:
    """Loss and tensors after two steps on two batches, each over an arena of NaN."""
    rng, engine = np.random.default_rng(seed), _core.Engine(compiled.plan)
    for name in sorted(compiled.report.trained):
        engine.view(name)[...] = rng.uniform(0.1, 0.4, engine.view(name).shape)
    engine.view("lr")[...] = 0.05
    for _ in range(2):
        engine.view("x")[...] = rng.normal(size=engine.view("x").shape)
        engine.view("y")[...] = rng.integers(-1, 5, ROWS)
        engine.poison()
        engine.step()
    return {name: engine.view(name).copy() for name in (*compiled.report.trained, "loss")}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_slices_at_the_peak_train_as_whole_values_do_in_less_memory(name: str) -> None:
    whole, sliced = (compile_training(MODELS[name](), slice_peak=flag) for flag in (False, True))
    assert sliced.report.temporaries_bytes < whole.report.temporaries_bytes
    assert sliced.report.multiply_adds == whole.report.multiply_adds
    assert sliced.report.arena_bytes == _core.Engine(sliced.plan).arena_bytes
    expected = trained(whole, 3)
    for key, value in trained(sliced, 3).items():
        np.testing.assert_allclose(value, expected[key], rtol=2e-4, atol=2e-6, err_msg=key)


def test_a_profile_reads_a_plan_in_slices() -> None:
    compiled = compile_training(MODELS["lenet"](), slice_peak=True)
    found = anatomy(_core.describe(compiled.plan))
    assert sum(op.multiply_adds for op in found.operations) == sum(compiled.report.multiply_adds)
    assert all(life.offset + life.nbytes <= compiled.report.arena_bytes for life in found.lives)


def a_map(steps: tuple[Step, ...], results: tuple[int, ...], reduced: tuple[int, ...]) -> Node:
    """A map over (4, 6) of one whole operand; value 0 is the operand, value 1 the constant 0.5."""
    x = g.leaf("x", "float32", (4, 6))
    program = MapProgram((4, 6), reduced, ((0, 1),), (0.5,), steps, results)
    kept = tuple(n for a, n in enumerate(program.dims) if a not in reduced)
    numbers: set[int] = set()  # of what is one number for a group
    for number, step in enumerate(steps, 2):
        if step.function in {"sum", "maximum"} or (numbers & set(step.operands) and step.function != "sub"):
            numbers.add(number)
    types = tuple(Type("float32", kept if n in numbers else (4, 6)) for n in results)
    return Node("map", (x,), types, {"program": program, "types": types})


def test_a_sum_over_the_rows_is_a_summand_of_each_slice() -> None:
    made = cut(a_map((Step("mul", (0, 1)), Step("sum", (2,)), Step("mul", (3, 1))), (2, 4), (0,)), 2)
    assert made is not None
    assert (made.rows, made.sums) == ({0}, {1})


@pytest.mark.parametrize(
    ("steps", "results", "reduced"),
    [
        ((Step("sum", (0,)), Step("sub", (0, 2))), (3,), (0,)),  # needed before it is complete
        ((Step("maximum", (0,)),), (2,), (0,)),  # no sum
        ((Step("sum", (0,)), Step("exp", (2,))), (3,), (0,)),  # not linear in it
    ],
)
def test_what_needs_all_rows_is_not_cut(
    steps: tuple[Step, ...], results: tuple[int, ...], reduced: tuple[int, ...]
) -> None:
    assert cut(a_map(steps, results, reduced), 2) is None


def test_a_reduction_within_each_row_is_cut() -> None:
    made = cut(a_map((Step("sum", (0,)), Step("sub", (0, 2))), (3,), (1,)), 2)
    assert made is not None
    assert not made.sums
    assert cut(a_map((Step("sum", (0,)), Step("sub", (0, 2))), (3,), (1,)), 3) is None  # 4 rows


def test_a_result_is_made_apart_from_what_the_map_stores_besides() -> None:
    node = a_map((Step("sum", (0,)), Step("sub", (0, 2)), Step("mul", (3, 1))), (3, 4), (0,))
    halves = apart(node, 1)
    assert halves is not None
    first, second = halves
    assert second.inputs == (Value(first, 0),)
    assert second.attrs["program"].steps == (Step("mul", (0, 1)),)
    assert apart(node, 0) is None  # it follows from a sum that is not stored


def test_a_result_is_not_made_later_than_what_it_reads_is_overwritten() -> None:
    x, slot = g.leaf("x", "float32", (4, 6)), g.leaf("slot", "float32", (4, 6))
    steps = (Step("mul", (0, 1)), Step("add", (2, 1)))
    node = Node("map", (x, slot), (Type("float32", (4, 6)),) * 2, {})
    attrs = {"program": MapProgram((24,), (), ((0,), (0,)), (), steps, (2, 3)), "types": node.types}
    made = with_attrs(node, node.inputs, attrs)
    reader, update = g.exp(made.out(1)).node, g.blend(slot, made.out(0)).node
    owners = {x: Owner(Role.BATCH, "x"), slot: Owner(Role.TRAINED, "slot")}
    assert _split(program((made, reader, update), owners), made.out(1)) is not None
    assert _split(program((made, update, reader), owners), made.out(1)) is None


def test_a_copy_is_cut_where_parts_of_it_come_from_parts() -> None:
    x = g.leaf("x", "float32", (8, 6))
    half = g.slice(x, [0, 0], [8, 3], [1, 1]).node
    made = cut(half, 4)
    assert made is not None
    assert made.attrs["box"] == Box(0, 0, ((2, 6, 3), (3, 1, 1)))
    assert cut(g.slice(x, [1, 0], [4, 6], [1, 1]).node, 2) is None  # its rows begin within the first part
    assert cut(g.flip(x, [0]).node, 2) is None
