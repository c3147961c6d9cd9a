"""The gradient of every operation against central differences in float64, at settings that are nobody's default."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

import models.compiler.graph as g
from models.compiler.autodiff import gradients
from models.compiler.errors import CompileError, NotDifferentiable
from models.compiler.evaluate import evaluate
from models.compiler.ir import Value, Window, topological
from models.compiler.ops import OPS
from models.compiler.simplify import simplify

Array = NDArray[np.float64]
STEP = 1e-5
ODD = Window(strides=(2, 3), pads=(1, 0, 2, 1), dilations=(2, 1))
POOL = Window(strides=(2, 3), pads=(1, 0, 0, 1))


def smooth(value: Value, seed: int = 0) -> Value:
    """A scalar with a different, curved dependence on every element."""
    weights = np.random.default_rng(seed).normal(size=value.shape) + 0.3
    return g.sum(g.constant(weights.astype(np.float32)) * value + g.square(value) * 0.7)


def central_difference(loss: Value, given: dict[str, Array], name: str) -> Array:
    base = given[name]
    numeric = np.zeros_like(base)
    for i in np.ndindex(*base.shape):
        ends = []
        for sign in (1, -1):
            moved = base.copy()
            moved[i] += sign * STEP
            ends.append(float(evaluate([loss], {**given, name: moved})[0]))
        numeric[i] = (ends[0] - ends[1]) / (2 * STEP)
    return numeric


def check(loss: Value, leaves: list[Value], rng: np.random.Generator, **fixed: NDArray[np.int32]) -> None:
    """Every leaf's gradient, before and after simplification, equals the central difference to 1e-7 relative."""
    given = {v.name: rng.normal(size=v.shape) for v in leaves} | fixed
    grads = gradients(loss, leaves)
    plain, simple = evaluate(grads, given), evaluate(simplify(grads), given)
    for leaf, a, b in zip(leaves, plain, simple, strict=True):
        numeric = central_difference(loss, given, leaf.name)
        np.testing.assert_allclose(a, numeric, rtol=1e-6, atol=1e-7, err_msg=leaf.name)
        np.testing.assert_allclose(b, a, rtol=1e-12, atol=1e-12, err_msg=f"{leaf.name} simplified")


def f32(name: str, *shape: int) -> Value:
    return g.leaf(name, "float32", shape)


Case = tuple[Callable[..., Value], list[tuple[int, ...]]]
# One row for each operation and each way of using it; a new operation gets a row here.
CASES: dict[str, Case] = {
    "add": (lambda a, b: a + b, [(3, 1, 5), (2, 1)]),
    "add-scalar": (lambda a, b: a + b, [(), (2, 3)]),
    "sub": (lambda a, b: a - b, [(2, 1), (3, 2, 4)]),
    "mul": (lambda a, b: a * b, [(4, 1, 3), (1, 5, 1)]),
    "mul-number": (lambda a: 1.7 - 0.3 * a, [(2, 3)]),
    "square": (lambda a: g.square(g.square(a)), [(2, 3)]),
    "gemm": (lambda a, b: a @ b, [(3, 4), (4, 5)]),
    "gemm-ta": (lambda a, b: g.matmul(a, b, trans_a=True), [(4, 3), (4, 5)]),
    "gemm-tb": (lambda a, b: g.matmul(a, b, trans_b=True), [(3, 4), (5, 4)]),
    "gemm-ta-tb": (lambda a, b: g.matmul(a, b, trans_a=True, trans_b=True), [(4, 3), (5, 4)]),
    "relu": (g.relu, [(3, 7)]),
    "relu_grad": (lambda a, b: g.relu_grad(a, g.relu(b)), [(3, 7), (3, 7)]),
    "reduce_sum": (lambda a: g.sum(a, [0, -1], scale=0.37), [(3, 2, 4)]),
    "reduce_sum-keep": (lambda a: g.sum(a, [1], keepdims=True), [(3, 2, 4)]),
    "mean": (lambda a: g.mean(a, [1, 2]), [(3, 2, 4)]),
    "transpose": (lambda a: g.transpose(a, (2, 0, 1)), [(3, 2, 4)]),
    "reshape": (lambda a: g.reshape(a, (-1, 8)), [(3, 2, 4)]),
    "broadcast": (lambda a: g.broadcast_to(a, (5, 3, 4)), [(3, 1)]),
    "conv": (lambda x, w: g.conv(x, w, ODD), [(2, 3, 7, 8), (4, 3, 2, 3)]),
    "conv-groups": (lambda x, w: g.conv(x, w, ODD, groups=2), [(2, 4, 6, 5), (6, 2, 3, 2)]),
    "conv-depthwise": (lambda x, w: g.conv(x, w, groups=3), [(1, 3, 4, 5), (3, 1, 2, 2)]),
    "conv_grad_x": (
        lambda d, w: g.conv_grad_x(d, w, (2, 4, 6, 7), ODD, 2),
        [(2, 6, 3, 3), (6, 2, 3, 2)],
    ),
    "conv_grad_w": (
        lambda d, x: g.conv_grad_w(d, x, (6, 2, 3, 2), ODD, 2),
        [(2, 6, 3, 3), (2, 4, 6, 7)],
    ),
    "maxpool": (lambda x: g.max_pool(x, (3, 2), POOL), [(2, 2, 7, 8)]),
    "maxpool_grad": (
        lambda d, x: g.max_pool_grad(d, g.max_pool(x, (3, 2), POOL).node.out(1), x.shape, (3, 2), POOL),
        [(2, 2, 3, 3), (2, 2, 7, 8)],
    ),
    "avgpool": (lambda x: g.avg_pool(x, (3, 2), POOL), [(2, 2, 7, 8)]),
    "avgpool-pad": (lambda x: g.avg_pool(x, (3, 2), POOL, count_include_pad=True), [(2, 2, 7, 8)]),
    "avgpool_grad": (
        lambda d: g.avg_pool_grad(d, (2, 2, 7, 8), (3, 2), POOL, count_include_pad=False),
        [(2, 2, 3, 3)],
    ),
}


def positive(value: Value) -> Value:
    """A smooth function whose values are above 0.2."""
    return g.square(value) + 0.2


POSITIVE = ("exp", "log", "sqrt", "reciprocal")  # too steep, or not there, at other numbers
INDEX = np.array([[3, 0, 3], [-1, 2, 0]], np.int32)
PLACES = np.array([[[1, 0], [3, 3]], [[2, 2], [-1, 0]], [[0, 1], [1, 1]]], np.int32)
TENSOR_CASES: dict[str, Case] = {
    **{f"unary-{f}": (lambda a, f=f: g.unary(f, a), [(3, 4)]) for f in g.UNARY if f not in POSITIVE},
    **{f"unary-{f}": (lambda a, f=f: g.unary(f, positive(a * 0.5)), [(3, 4)]) for f in POSITIVE},
    "binary-div": (lambda a, b: a / positive(b), [(3, 1, 5), (2, 1)]),
    "binary-div-number": (lambda a: 0.7 / positive(a) + a / 3.0, [(2, 3)]),
    "binary-pow": (lambda a, b: g.pow(positive(a), b), [(4, 1, 3), (2, 1)]),
    "binary-pow-number": (lambda a: g.pow(positive(a), 1.7) + g.pow(a, 3.0) + g.pow(positive(a), -1.0), [(2, 3)]),
    "binary-max": (g.maximum, [(3, 1, 5), (2, 1)]),
    "binary-min": (g.minimum, [(2, 3), ()]),
    "binary-clip": (lambda a: g.clip(a * 2.0, -0.9, 1.1), [(5, 4)]),
    "binary-compare": (lambda a, b: g.less(a, b) * a + g.less_equal(a, b) * b + g.equal(a, a), [(3, 1), (4,)]),
    "where": (lambda a, b, c: g.where(g.less(c, 0.1), a, b), [(3, 1), (4,), (2, 1, 1)]),
    "minmax-max": (lambda a: g.max(a, [0, -1]), [(3, 2, 4)]),
    "minmax-min-keep": (lambda a: a * g.min(a, [1], keepdims=True), [(3, 2, 4)]),
    "minmax-size-one": (lambda a: g.max(a, [1]), [(3, 1, 4)]),
    "prod": (lambda a: g.prod(a, [1]), [(2, 7, 3)]),
    "cumsum": (lambda a: g.cumsum(a, 1), [(2, 5, 3)]),
    "cumsum-reverse": (lambda a: g.cumsum(a, -1, exclusive=True, reverse=True), [(2, 5)]),
    "topk": (lambda a: g.topk(a, 3, 1)[0], [(3, 7, 2)]),
    "topk-smallest": (lambda a: g.topk(a, 2, smallest=True)[0], [(3, 7)]),
    "gather": (lambda a: g.gather(a, g.constant(INDEX), 1), [(3, 4, 2)]),
    "gather-elements": (lambda a: g.gather(a, g.constant(PLACES), 1, elements=True), [(3, 4, 2)]),
    "scatter_add": (lambda d: g.scatter_add(d, g.constant(INDEX), (3, 4, 2), 1, elements=False), [(3, 2, 3, 2)]),
    "scatter_add-elements": (
        lambda d: g.scatter_add(d, g.constant(PLACES), (3, 4, 2), 1, elements=True),
        [(3, 2, 2)],
    ),
    "strided_copy-slice": (lambda a: g.slice(a, [2, 0, 4], [2, 2, 2], [-1, 1, -3]), [(3, 2, 5)]),
    "strided_copy-pad": (lambda a: g.pad(a, [1, 0, 2], [0, 0, 1], 0.7), [(2, 1, 3)]),
    "strided_copy-concat": (lambda a, b, c: g.concat([a, b, a, c], 1), [(2, 1, 3), (2, 4, 3), (2, 2, 3)]),
    "strided_copy-split": (lambda a: g.concat(g.split(a, [1, 3, 2], -1)[::-1], 1), [(3, 6)]),
    "strided_copy-flip": (lambda a: g.flip(a, [0, -1]) * a, [(3, 2, 3)]),
    "strided_copy-stack": (lambda a, b: g.stack([a, b], -1), [(3, 2), (3, 2)]),
    "matmul": (lambda a, b: a @ b, [(2, 1, 3, 4), (5, 4, 2)]),
    "matmul-ta": (lambda a, b: g.matmul(a, b, trans_a=True), [(2, 4, 3), (1, 4, 2)]),
    "matmul-tb": (lambda a, b: g.matmul(a, b, trans_b=True), [(3, 4), (2, 5, 4)]),
    "matmul-ta-tb": (lambda a, b: g.matmul(a, b, trans_a=True, trans_b=True), [(2, 4, 3), (2, 5, 4)]),
    "matmul-rows": (lambda a, b: a @ b, [(2, 3, 4), (4, 5)]),
}
LAYER_CASES: dict[str, Case] = {
    "softmax": (g.softmax, [(3, 5)]),
    "softmax-axis": (lambda a: g.softmax(a, 1), [(2, 3, 1)]),
    "log_softmax": (lambda a: g.log_softmax(a, 0), [(3, 5)]),
    "gelu": (g.gelu, [(3, 5)]),
    "gelu-tanh": (lambda a: g.gelu(a, approximate=True), [(3, 5)]),
    "silu": (g.silu, [(3, 5)]),
    "hard_swish": (lambda a: g.hard_swish(a * 4.0), [(3, 5)]),
    "leaky_relu": (lambda a: g.leaky_relu(a, 0.3), [(3, 5)]),
    "elu": (lambda a: g.elu(a, 0.7), [(3, 5)]),
    "layer_norm": (lambda a, w, b: g.layer_norm(a, w, b, -2, 0.03), [(3, 2, 4), (2, 4), (2, 4)]),
    "group_norm": (lambda a: g.group_norm(a, 2, 0.03), [(2, 4, 3)]),
    "batch_norm": (
        lambda x, w, b, m, v: g.batch_norm(x, w, b, (m, v), g.constant([1.0, 0.0, 1.0]), epsilon=0.1).y,
        [(3, 2, 2, 3), (2,), (2,), (2,), (2,)],
    ),
    "batch_norm-product": (
        lambda x, p, w, b, m, v: g.batch_norm(g.conv(x, p), w, b, (m, v), g.constant([1.0, 0.0, 1.0]), epsilon=0.1).y,
        [(3, 2, 2, 3), (5, 2, 1, 1), (5,), (5,), (5,), (5,)],
    ),
    "batch_norm_fixed": (
        lambda x, w, b, m, v: g.batch_norm_fixed(x, w, b, (m, positive(v)), 0.1),
        [(3, 2, 4), (2,), (2,), (2,), (2,)],
    ),
    "attention": (g.attention, [(2, 3, 4), (2, 5, 4), (2, 5, 3)]),
    "mean_squared_error": (g.mean_squared_error, [(3, 4), (3, 4)]),
    "soft_cross_entropy": (lambda a, b: g.soft_cross_entropy(a, g.softmax(b)), [(3, 4), (3, 4)]),
    "kl_divergence": (lambda a, b: g.kl_divergence(g.log_softmax(a), g.softmax(b)), [(3, 4), (3, 4)]),
    "info_nce": (
        lambda a, b, c: g.info_nce(
            g.l2_normalize(a), g.l2_normalize(b), g.constant(np.arange(3, dtype=np.int32)), c, 0.4
        ),
        [(3, 4), (3, 4), (2, 4)],
    ),
}


@pytest.mark.parametrize("case", [*TENSOR_CASES, *LAYER_CASES])
def test_gradient_of_a_tensor_function_equals_central_difference(case: str, rng: np.random.Generator) -> None:
    function, shapes = (TENSOR_CASES | LAYER_CASES)[case]
    leaves = [f32(f"v{i}", *shape) for i, shape in enumerate(shapes)]
    # A layer need not depend on every operand: batch_norm's running statistics do not enter its result.
    loss = smooth(function(*leaves)) + sum((g.sum(g.square(v)) for v in leaves), start=g.constant(0.0))
    check(loss, leaves, rng)


SMOOTH = [c for c in TENSOR_CASES if c not in ("unary-sign", "unary-floor", "unary-ceil", "unary-round")]
SMOOTH += [c for c in LAYER_CASES if c != "info_nce"]  # its cross-entropy kernel has a first derivative only


@pytest.mark.parametrize("case", SMOOTH)
def test_second_derivative_of_a_tensor_function_equals_central_difference(case: str, rng: np.random.Generator) -> None:
    function, shapes = (TENSOR_CASES | LAYER_CASES)[case]
    leaves = [f32(f"v{i}", *shape) for i, shape in enumerate(shapes)]
    first = gradients(smooth(function(*leaves)) + g.sum(g.square(leaves[-1])), leaves[:1])
    loss = smooth(first[0], 1) + sum((g.sum(g.square(v)) for v in leaves), start=g.constant(0.0))
    check(loss, leaves, rng)


def test_normalising_a_narrow_product_from_its_covariance_is_normalising_it(rng: np.random.Generator) -> None:
    product = g.conv(f32("x", 4, 3, 5, 2), f32("w", 7, 3, 1, 1))
    operands = [f32("gain", 7), f32("bias", 7), (f32("mean", 7), f32("variance", 7)), f32("rows", 4)]
    made, plain = (g.batch_norm(x, *operands) for x in (product, g.copy(product, product.shape)))  # type: ignore[arg-type]
    assert not any(n.op == "conv_grad_w" for n in topological([plain.y]))
    assert any(n.op == "conv_grad_w" for n in topological([made.y]))
    given = {v.name: rng.normal(size=v.shape) for v in leaves_of([made.y, made.mean, made.variance])}
    given["rows"] = np.array([1.0, 0.0, 1.0, 1.0])
    given["x"] += 3.0
    (y, *moved), (plain_y, *plain_moved) = (evaluate([b.y, b.mean, b.variance], given) for b in (made, plain))
    np.testing.assert_allclose(y[[0, 2, 3]], plain_y[[0, 2, 3]], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(moved, plain_moved, rtol=1e-9)


def leaves_of(outputs: list[Value]) -> list[Value]:
    return [n.out() for n in topological(outputs) if n.op == "leaf"]


def test_no_gradient_passes_what_is_detached_or_counted(rng: np.random.Generator) -> None:
    a = f32("a", 3, 4)
    place = g.cast(g.argmax(a, 1), "float32")
    loss = g.sum(a * g.detach(a)) + g.sum(place * 2.0)
    given = {"a": rng.normal(size=(3, 4))}
    (grad,) = evaluate(gradients(loss, [a]), given)
    np.testing.assert_allclose(grad, given["a"])


def test_equal_maxima_share_the_gradient() -> None:
    a = f32("a", 1, 4)
    given = {"a": np.array([[2.0, 5.0, 5.0, 1.0]])}
    (grad,) = evaluate(gradients(g.sum(g.max(a, [1])), [a]), given)
    np.testing.assert_array_equal(grad, [[0, 0.5, 0.5, 0]])
    (grad,) = evaluate(gradients(g.sum(g.maximum(a, a * 1.0)), [a]), given)
    np.testing.assert_array_equal(grad, [[1, 1, 1, 1]])


def test_a_product_with_a_zero_has_the_gradient_of_the_others() -> None:
    a = f32("a", 3)
    (grad,) = evaluate(gradients(g.prod(a), [a]), {"a": np.array([0.0, 2.0, 5.0])})
    np.testing.assert_array_equal(grad, [10, 0, 0])


@pytest.mark.parametrize("case", CASES)
def test_gradient_equals_central_difference(case: str, rng: np.random.Generator) -> None:
    function, shapes = CASES[case]
    leaves = [f32(f"v{i}", *shape) for i, shape in enumerate(shapes)]
    check(smooth(function(*leaves)), leaves, rng)


@pytest.mark.parametrize("labels", [[2, 0, -1, 4], [1, 1, 1, 1], [-1, -1, 3, -1]])
def test_cross_entropy_gradient_equals_central_difference(labels: list[int], rng: np.random.Generator) -> None:
    logits = f32("logits", 4, 5)
    loss = g.softmax_cross_entropy(logits * 1.3, g.leaf("y", "int32", (4,))) * 0.7
    check(loss, [logits], rng, y=np.array(labels, np.int32))


def test_cross_entropy_of_no_label_is_zero_with_zero_gradient() -> None:
    logits = f32("logits", 2, 3)
    loss = g.softmax_cross_entropy(logits, g.leaf("y", "int32", (2,)))
    given = {"logits": np.array([[1.0, 2.0, 3.0], [0.5, 0.0, 9.0]]), "y": np.array([-1, -1], np.int32)}
    value, grad = evaluate([loss, *gradients(loss, [logits])], given)
    assert value == 0
    assert not grad.any()


@pytest.mark.parametrize("labels", [[2, 0, -1, 1], [1, 1, 1, 1]])
@pytest.mark.parametrize(("scale", "own"), [(0.0, 0), (0.0, 3), (4.5, 0), (4.5, 3)])
def test_sampled_softmax_gradient_equals_central_difference(
    labels: list[int], scale: float, own: int, rng: np.random.Generator
) -> None:
    leaves = [f32("features", 4, 6), f32("rows", 5, 6), f32("correction", 5)]
    features, rows, correction = leaves
    y = g.leaf("y", "int32", (4,))
    loss = g.sampled_softmax(features * 1.3, rows, y, correction * 0.8, scale=scale, own=own) * 0.7
    check(loss, leaves, rng, y=np.array(labels, np.int32))


def test_linear_cross_entropy_is_the_cross_entropy_of_a_product(rng: np.random.Generator) -> None:
    features, rows, y = f32("features", 4, 6), f32("rows", 5, 6), g.leaf("y", "int32", (4,))
    losses = [
        g.linear_cross_entropy(features, rows, y),
        g.softmax_cross_entropy(g.matmul(features, rows, trans_b=True), y),
    ]
    given = {v.name: rng.normal(size=v.shape) for v in (features, rows)} | {"y": np.array([4, 0, -1, 2], np.int32)}
    fused, plain = ([loss, *gradients(loss, [features, rows])] for loss in losses)
    for a, b in zip(evaluate(fused, given), evaluate(plain, given), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_sampled_softmax_is_not_differentiated_twice_and_the_error_says_what_is() -> None:
    features, rows, y = f32("features", 4, 6), f32("rows", 5, 6), g.leaf("y", "int32", (4,))
    (first,) = gradients(g.sampled_softmax(features, rows, y), [features])
    with pytest.raises(NotDifferentiable, match="write the logits out"):
        gradients(smooth(first), [rows])


def test_every_differentiable_operation_has_a_case() -> None:
    known = {name.split("-")[0] for name in [*CASES, *TENSOR_CASES]} | {"softmax_xent", "softmax_xent_grad", "copy"}
    known |= {"sampled_softmax"}
    known |= {"detach", "cast", "argminmax", "random"}  # flat: no gradient passes, which a test below says
    missing = []
    for op, row in OPS.items():
        if row.grad.__name__ != "in_place" and op not in known:
            missing.append(op)
    assert missing == []


def test_gradient_accumulates_over_all_uses_of_a_value(rng: np.random.Generator) -> None:
    a, w = f32("a", 3, 3), f32("w", 3, 3)
    check(smooth((a @ w) @ w + w * a - g.transpose(w)), [a, w], rng)


def test_second_derivative_of_a_convolution_equals_central_difference(rng: np.random.Generator) -> None:
    x, w = f32("x", 1, 2, 5, 6), f32("w", 4, 1, 2, 3)
    first = gradients(smooth(g.conv(x, w, ODD, groups=2)), [x, w])
    check(smooth(first[0], 1) + smooth(first[1], 2), [x, w], rng)


def test_second_derivative_through_relu_and_average_pool(rng: np.random.Generator) -> None:
    x, w = f32("x", 2, 2, 5, 6), f32("w", 3, 2, 2, 2)
    hidden = g.relu(g.conv(x, w))
    first = gradients(smooth(g.avg_pool(hidden, (2, 2), Window())), [w, x])
    check(smooth(first[0], 1) + smooth(first[1], 2), [w, x], rng)


@pytest.mark.parametrize("labels", [[2, 0, -1, 4], [-1, -1, -1, -1]])
def test_second_derivative_of_cross_entropy_equals_central_difference(
    labels: list[int], rng: np.random.Generator
) -> None:
    logits, y = f32("logits", 4, 5), g.leaf("y", "int32", (4,))
    (first,) = gradients(g.square(g.softmax_cross_entropy(logits * 1.3, y)), [logits])
    check(smooth(first), [logits], rng, y=np.array(labels, np.int32))


def test_second_derivative_through_relu_and_maximum_pool(rng: np.random.Generator) -> None:
    x, w = f32("x", 2, 2, 8, 8), f32("w", 3, 2, 2, 2)
    hidden = g.relu(g.conv(x, w))
    first = gradients(smooth(g.max_pool(hidden, (3, 2), POOL)), [w, x])
    check(smooth(first[0], 1) + smooth(first[1], 2), [w, x], rng)


def test_an_update_in_place_has_no_gradient_and_the_error_says_what_has() -> None:
    w, lr = f32("w", 2), f32("lr")
    (new,) = g.sgd(w, w * 2.0, lr, momentum=0.0, weight_decay=0.0, nesterov=False)
    with pytest.raises(NotDifferentiable, match=r"sgd: .* parameter - lr \* gradient"):
        gradients(g.sum(new), [w])


def test_loss_must_be_a_scalar_that_depends_on_what_is_asked() -> None:
    a, b = f32("a", 2), f32("b", 2)
    with pytest.raises(CompileError, match="scalar"):
        gradients(a, [a])
    with pytest.raises(CompileError, match="does not depend on b"):
        gradients(g.sum(a), [b])
