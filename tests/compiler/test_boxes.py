"""Boxes that lie apart: the answer is never wrong, and sums of such pieces become copies to one tensor."""

import itertools

import numpy as np
from forward import run_on_engine
from hypothesis import given, settings
from hypothesis import strategies as st

import models.compiler.graph as g
from models.compiler.autodiff import gradients
from models.compiler.boxes import Box, apart
from models.compiler.evaluate import evaluate
from models.compiler.ir import topological
from models.compiler.simplify import simplify

axes = st.lists(
    st.tuples(st.integers(1, 5), st.just(0), st.sampled_from([1, 2, 3, 4, 8, 20, -2])), min_size=1, max_size=3
)
boxes = st.builds(lambda at, along: Box(0, at, tuple(along)), st.integers(0, 40), axes)


def places(box: Box) -> set[int]:
    counts = itertools.product(*(range(n) for n, _, _ in box.axes))
    return {box.y_offset + sum(i * y for i, (_, _, y) in zip(at, box.axes, strict=True)) for at in counts}


@settings(max_examples=2000, deadline=None, derandomize=True)
@given(boxes, boxes)
def test_boxes_that_are_said_to_be_apart_share_no_place(a: Box, b: Box) -> None:
    if apart(a, b):
        assert not places(a) & places(b)


def test_slices_of_one_tensor_are_told_apart_exactly() -> None:
    """All pairs of boxes that begin anywhere in a 4 x 5 x 3 tensor, of the sizes that fit there."""
    shape, steps = (4, 5, 3), (15, 3, 1)
    found = [
        Box(
            0,
            sum(i * s for i, s in zip(at, steps, strict=True)),
            tuple((n, 0, s) for n, s in zip(size, steps, strict=True)),
        )
        for size in ((1, 5, 3), (4, 2, 3), (2, 3, 1), (4, 5, 1))
        for at in itertools.product(*(range(m - n + 1) for m, n in zip(shape, size, strict=True)))
    ]
    for a, b in itertools.combinations_with_replacement(found, 2):
        assert apart(a, b) == (not places(a) & places(b))


def test_the_gradient_of_what_is_cut_up_is_written_once() -> None:
    x = g.leaf("x", "float32", (4, 6))
    pieces = [p for row in g.split(x, [1] * 4, 0) for p in g.split(row, [1, 3, 2], 1)]
    loss = sum((g.sum(g.square(p) * float(i + 1)) for i, p in enumerate(pieces)), start=g.constant(0.0))
    (gradient,) = simplify(gradients(loss, [x]))
    copies = [n for n in topological([gradient]) if n.op == "strided_copy" and n.types[0].shape == x.shape]
    assert len(copies) == 4  # one a row, each made of its pieces in the same way
    whole = (x.shape, (1, x.shape[1]))
    assert not any(n.op == "add" and n.types[0].shape in whole for n in topological([gradient]))
    given_x = {"x": np.random.default_rng(0).normal(size=x.shape).astype(np.float32)}
    factors = np.repeat(np.arange(1.0, 13.0).reshape(4, 3), [1, 3, 2], axis=1)
    for found in (evaluate([gradient], given_x), run_on_engine([gradient], given_x)):
        np.testing.assert_allclose(found[0], 2 * factors * given_x["x"], rtol=1e-5)


def test_overlapping_pieces_are_still_added() -> None:
    x = g.leaf("x", "float32", (7,))
    loss = g.sum(g.slice(x, [0], [4], [1])) + g.sum(g.slice(x, [3], [4], [1]) * 2.0)
    (gradient,) = run_on_engine(simplify(gradients(loss, [x])), {"x": np.zeros(7, np.float32)})
    np.testing.assert_array_equal(gradient, [1, 1, 1, 3, 2, 2, 2])
