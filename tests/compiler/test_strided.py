"""Convolutions of one tap with a stride read few places; their gradients are added to few places."""

import numpy as np
import pytest
from forward import run_on_engine

import models.compiler.graph as g
from models.compiler.autodiff import gradients
from models.compiler.boxes import Box
from models.compiler.evaluate import evaluate
from models.compiler.ir import Value, Window, topological
from models.compiler.simplify import simplify
from models.compiler.strided import added_to_few, over_few

SHAPES = [((2, 4, 8, 8), (2, 2), 1), ((3, 6, 7, 9), (2, 2), 3), ((1, 2, 5, 12), (1, 4), 2), ((2, 3, 1, 13), (5, 4), 1)]


def shortcut(shape: tuple[int, ...], strides: tuple[int, int], groups: int) -> tuple[Value, Value, Value]:
    """A sum over what a strided convolution of one tap and one of three by three make of relu(x)."""
    x = g.leaf("x", "float32", shape)
    w = g.leaf("w", "float32", (6, shape[1] // groups, 1, 1))
    wide = g.leaf("wide", "float32", (6, shape[1], 3, 3))
    h = g.relu(x)
    thin = g.conv(h, w, Window(strides), groups)
    return x, w, g.sum(g.square(thin)) + g.sum(g.square(g.conv(h, wide, Window((1, 1), (1, 1, 1, 1)))))


@pytest.mark.parametrize(("shape", "strides", "groups"), SHAPES)
def test_values_and_gradients_are_those_of_the_convolution(
    shape: tuple[int, ...], strides: tuple[int, int], groups: int, rng: np.random.Generator
) -> None:
    x, w, loss = shortcut(shape, strides, groups)
    given = {
        "x": rng.normal(size=shape),
        "w": rng.normal(size=w.shape),
        "wide": rng.normal(size=(6, shape[1], 3, 3)),
    }
    expected = evaluate([loss, *gradients(loss, [x, w])], given)
    (thin,) = over_few([loss])
    assert not any(n.op == "conv" and n.attrs["window"].strides != (1, 1) for n in topological([thin]))
    found = run_on_engine([thin, *gradients(thin, [x, w])], {k: v.astype(np.float32) for k, v in given.items()})
    for mine, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, right, rtol=1e-4, atol=1e-4 * np.abs(right).max())


def test_a_gradient_of_few_places_is_added_where_they_are() -> None:
    x, _, loss = shortcut((2, 4, 8, 8), (2, 2), 1)
    (masked,) = simplify(gradients(over_few([loss])[0], [x]))
    assert masked.node.op == "relu_grad"
    gradient = masked.node.inputs[0]
    assert gradient is not None
    sums = [n for n in topological([gradient]) if n.op == "add" and n.types[0].size > 1]
    assert [n.types[0].shape for n in sums] == [(2, 4, 4, 4)]
    assert gradient.node.op == "strided_copy"
    assert gradient.node.inputs[1] is not None
    assert gradient.node.inputs[1].node.op == "conv_grad_x"


@pytest.mark.parametrize(
    ("kernel", "window"),
    [((1, 1), Window()), ((1, 1), Window((1, 2))), ((1, 1), Window((2, 2), (1, 1, 1, 1))), ((3, 3), Window((2, 2)))],
)
def test_other_convolutions_stay_as_they_are(kernel: tuple[int, int], window: Window) -> None:
    y = g.conv(g.relu(g.leaf("x", "float32", (2, 4, 8, 8))), g.leaf("w", "float32", (6, 4, *kernel)), window)
    assert over_few([y]) == (y,)


def test_a_leaf_is_read_where_it_is() -> None:
    y = g.conv(g.leaf("x", "float32", (2, 4, 8, 8)), g.leaf("w", "float32", (6, 4, 1, 1)), Window((2, 2)))
    assert over_few([y]) == (y,)


def test_what_a_box_repeats_is_summed_as_it_is() -> None:
    x = g.relu(g.leaf("x", "float32", (2, 4, 8, 8)))
    product = g.conv_grad_x(x, g.leaf("w", "float32", (4, 4, 1, 1)), x.shape, Window(), 1)
    repeated = g.strided_copy(g.leaf("p", "float32", (2, 4)), Box(0, 0, ((8, 1, 64), (2, 0, 8))), x.shape)
    whole = g.strided_copy(g.leaf("p", "float32", (2, 4)), Box(0, 0, ((8, 1, 64),)), x.shape)
    assert added_to_few(product, repeated) is None
    assert added_to_few(product, whole) is not None
