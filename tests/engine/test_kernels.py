"""Every operation against its NumPy twin in float64: odd shapes, every instruction set, one thread and three."""

from __future__ import annotations

import numpy as np
import pytest
from convshape import ConvShape, conv_cases
from opcase import F32, I32, ISAS, U8, Case, arrays_of, assert_close, compute, name_of, twin
from planwriter import BATCH, STATE, TRAINED, PlanWriter, bits

from edge_runtime import _core
from edge_runtime.kernels import reference, reference_map, reference_tensor


def gemm_case(m: int, n: int, k: int, trans_a: int, trans_b: int, *, bias: bool = True, relu: int = 0) -> Case:
    a, b = ((k, m) if trans_a else (m, k)), ((n, k) if trans_b else (k, n))
    return Case("gemm", (a, b, (n,) if bias else None), (((m, n), F32),), (trans_a, trans_b, relu), k)


GEMMS = [
    gemm_case(m, n, k, i % 2, i // 2 % 2, bias=i % 3 > 0, relu=i % 5 == 0)
    for i, (m, n, k) in enumerate(
        [(1, 1, 1), (1, 10, 84), (32, 10, 84), (7, 33, 5), (97, 31, 17), (13, 64, 600), (32, 120, 400), (200, 3, 9)] * 4
    )
]


# Taken by Winograd's filtering: whole tiles and cut ones, bands of rows and of columns, short last blocks, groups.
WINOGRAD_CONVS = [
    ConvShape(2, 1, 16, 16, (32, 32), (3, 3), pads=(1, 1, 1, 1)),
    ConvShape(9, 1, 20, 36, (8, 8), (3, 3), pads=(1, 1, 1, 1)),
    ConvShape(3, 1, 64, 70, (7, 9), (3, 3), pads=(0, 1, 2, 0)),
    ConvShape(5, 1, 32, 34, (14, 14), (5, 5), pads=(2, 2, 2, 2)),
    ConvShape(2, 1, 24, 16, (6, 150), (3, 3), pads=(3, 4, 0, 1)),
    ConvShape(2, 2, 16, 18, (9, 11), (3, 5), pads=(1, 2, 1, 2)),
    ConvShape(2, 1, 32, 48, (8, 90), (3, 1), pads=(1, 0, 1, 0)),
    ConvShape(3, 1, 48, 64, (1, 128), (1, 5), pads=(0, 2, 0, 2)),
    ConvShape(3, 1, 128, 80, (8, 8), (3, 3), pads=(1, 1, 1, 1)),
]
# Taken with channels side by side: strides, dilation, taps that nothing reads, blocks of targets and of rows.
ROWS_CONVS = [
    ConvShape(2, 1, 16, 32, (32, 32), (3, 3), stride=(2, 2), pads=(1, 1, 1, 1)),
    ConvShape(3, 2, 13, 12, (9, 11), (3, 3), stride=(2, 3), pads=(1, 1, 0, 2)),
    ConvShape(1, 1, 60, 130, (6, 6), (3, 3), stride=(2, 2), pads=(1, 1, 1, 1)),
    ConvShape(1, 1, 16, 16, (5, 5), (2, 2), stride=(4, 4)),
    ConvShape(2, 1, 16, 16, (2, 3), (3, 3), stride=(4, 5), pads=(1, 2, 1, 1)),
    ConvShape(2, 1, 24, 31, (40, 20), (7, 7), pads=(3, 3, 3, 3)),
    ConvShape(2, 1, 14, 15, (12, 13), (3, 2), dilation=(2, 3), pads=(2, 0, 1, 4)),
    ConvShape(1, 1, 16, 16, (3, 600), (3, 3), stride=(2, 2), pads=(1, 1, 1, 1)),
]
CONVS = [
    *WINOGRAD_CONVS,
    *ROWS_CONVS,
    ConvShape(2, 1, 1, 6, (28, 28), (5, 5), pads=(2, 2, 2, 2)),
    ConvShape(3, 1, 6, 16, (14, 14), (5, 5)),
    ConvShape(9, 1, 3, 5, (1, 40), (1, 7), pads=(0, 3, 0, 3)),
    ConvShape(2, 1, 9, 4, (1, 128), (1, 5), stride=(1, 2)),
    ConvShape(2, 4, 1, 1, (9, 8), (3, 3), pads=(1, 1, 1, 1)),
    ConvShape(2, 3, 1, 2, (9, 8), (3, 3), stride=(2, 2), pads=(1, 1, 1, 1)),
    ConvShape(2, 2, 3, 5, (11, 6), (3, 2), stride=(2, 3), pads=(2, 0, 1, 1), dilation=(2, 1)),
    ConvShape(8, 1, 20, 30, (4, 4), (1, 1)),
    ConvShape(3, 1, 5, 7, (8, 8), (1, 1), stride=(3, 2)),
    ConvShape(2, 1, 2, 3, (7, 7), (2, 2), stride=(4, 5)),
    ConvShape(1, 1, 2, 2, (3, 3), (3, 3), pads=(4, 0, 0, 5)),
    ConvShape(2, 1, 3, 2, (12, 12), (3, 3), stride=(2, 3), dilation=(3, 2), pads=(0, 3, 2, 0)),
    ConvShape(1, 1, 60, 2, (30, 50), (3, 3), pads=(1, 1, 1, 1)),
    ConvShape(17, 1, 2, 3, (3, 2), (2, 2), pads=(1, 0, 0, 1)),
    ConvShape(1, 1, 1, 1, (6, 5), (2, 2), stride=(1, 1), dilation=(5, 4)),
]


POOLS = [  # x, kernel, stride, pads, dilation
    ((2, 3, 28, 28), (2, 2), (2, 2), (0, 0, 0, 0), (1, 1)),
    ((2, 2, 11, 9), (2, 2), (2, 2), (0, 0, 0, 0), (1, 1)),
    ((1, 2, 7, 70), (2, 2), (2, 2), (0, 0, 0, 0), (1, 1)),
    ((2, 2, 7, 7), (2, 2), (2, 2), (0, 0, 1, 1), (1, 1)),
    ((3, 1, 1, 31), (1, 3), (1, 2), (0, 1, 0, 1), (1, 1)),
    ((2, 3, 8, 9), (3, 3), (2, 1), (1, 2, 1, 0), (1, 1)),
    ((2, 1, 10, 10), (3, 2), (1, 2), (2, 0, 2, 0), (2, 3)),
    ((1, 2, 17, 18), (17, 18), (1, 1), (0, 0, 0, 0), (1, 1)),
    ((2, 5, 3, 3), (3, 3), (3, 3), (0, 0, 0, 0), (1, 1)),
]


def pool_cases(pool: tuple) -> list[Case]:
    x, kernel, stride, pads, dilation = pool
    s = ConvShape(x[0], 1, x[1], x[1], x[2:], kernel, stride, pads, dilation)
    attrs = (*stride, *pads, *dilation, *kernel)
    index = I32 if kernel[0] * kernel[1] > 256 else U8
    numbers = np.random.default_rng(3).integers(0, kernel[0] * kernel[1], s.y).astype(index)
    taps = kernel[0] * kernel[1]
    return [
        Case("maxpool", (x,), ((s.y, F32), (s.y, index)), attrs),
        Case("maxpool_grad", (s.y, numbers), ((x, F32),), attrs, taps),
        *[Case("avgpool", (x,), ((s.y, F32),), (*attrs, whole), taps) for whole in (0, 1)],
        *[Case("avgpool_grad", (s.y,), ((x, F32),), (*attrs, whole), taps) for whole in (0, 1)],
    ]


BROADCASTS = [  # a, b, c
    ((), (), ()),
    ((7,), (7,), (7,)),
    ((1000,), (), (1000,)),
    ((), (33,), (33,)),
    ((5, 17), (17,), (5, 17)),
    ((5, 17), (5, 1), (5, 17)),
    ((2, 3, 4, 5), (1, 3, 1, 1), (2, 3, 4, 5)),
    ((2, 1, 4, 1), (3, 1, 5), (2, 3, 4, 5)),
    ((1, 6), (4, 1), (4, 6)),
    ((2, 1, 3, 1, 2, 1), (1, 4, 1, 5, 1, 3), (2, 4, 3, 5, 2, 3)),
    ((40000,), (40000,), (40000,)),
]

ELEMENTWISE = [
    *[Case(op, (a, b), ((c, F32),)) for op in ("add", "sub", "mul") for a, b, c in BROADCASTS],
    *[Case("relu", (s,), ((s, F32),)) for s in [(), (1,), (63,), (3, 65), (2, 3, 50, 200)]],
    *[Case("relu_grad", (s, s), ((s, F32),)) for s in [(), (1,), (63,), (3, 65), (2, 3, 50, 200)]],
    Case("copy", ((4, 6),), (((2, 12), F32),)),
    Case("copy", (np.arange(77, dtype=U8),), (((7, 11), U8),)),
    Case("copy", (np.arange(70000, dtype=I32),), (((70000,), I32),)),
]


def reduce_case(x: tuple[int, ...], axes: tuple[int, ...], *, keep: bool, scale: float) -> Case:
    y = tuple(1 if d in axes else n for d, n in enumerate(x) if keep or d not in axes)
    mask = sum(1 << d for d in axes)
    return Case("reduce_sum", (x,), ((y, F32),), (mask, bits(scale)), int(np.prod([x[d] for d in axes])))


REDUCTIONS = [
    reduce_case((), (), keep=False, scale=3.0),
    reduce_case((9,), (0,), keep=False, scale=1.0),
    reduce_case((9, 130), (0,), keep=False, scale=0.3),
    reduce_case((9, 130), (1,), keep=True, scale=-1.0),
    reduce_case((9, 130), (), keep=True, scale=2.0),
    reduce_case((4, 6, 5, 7), (0, 2, 3), keep=False, scale=1.0),
    reduce_case((4, 6, 5, 7), (0, 2), keep=True, scale=1.0),
    reduce_case((4, 1, 5, 7), (1, 3), keep=False, scale=1.0),
    reduce_case((2, 3, 2, 3, 2, 3), (1, 3, 5), keep=False, scale=0.5),
    reduce_case((2, 3, 2, 3, 2, 3), (0, 2, 4), keep=True, scale=0.5),
    reduce_case((100000,), (0,), keep=False, scale=1e-5),
    reduce_case((300, 400), (0,), keep=False, scale=1.0),
]

TRANSPOSES = [
    Case("transpose", (x,), ((tuple(x[a] for a in axes), F32),), axes)
    for x, axes in [
        ((), ()),
        ((5,), (0,)),
        ((5, 7), (1, 0)),
        ((200, 300), (1, 0)),
        ((2, 3, 4), (2, 0, 1)),
        ((2, 3, 4, 5), (0, 2, 3, 1)),
        ((2, 3, 1, 4, 2, 3), (5, 3, 1, 0, 4, 2)),
        ((3, 5, 4, 33), (0, 2, 1, 3)),
        ((2, 3, 17, 35), (1, 0, 3, 2)),
        ((4, 1, 19, 1), (2, 1, 3, 0)),
        ((2, 2, 3, 2, 18, 3), (1, 0, 4, 2, 3, 5)),
    ]
]


def label_case(rows: int, classes: int, missing: int) -> list[Case]:
    labels = np.random.default_rng(rows).integers(0, classes, rows).astype(I32)
    labels[:missing] = -1
    probs = np.random.default_rng(1).dirichlet(np.ones(classes), rows).astype(F32)
    d_loss = np.array(0.7, F32)
    return [
        Case("softmax_xent", ((rows, classes), labels), (((), F32), ((rows, classes), F32)), (), classes),
        Case("softmax_xent_grad", (probs, labels, d_loss), (((rows, classes), F32),), ()),
    ]


def sliced_label_case(rows: int, first: int, count: int) -> list[Case]:
    """A slice of a batch: its logits, and the labels of all."""
    labels = np.random.default_rng(rows).integers(-1, 5, rows).astype(I32)
    probs = np.random.default_rng(1).dirichlet(np.ones(5), count).astype(F32)
    return [
        Case("softmax_xent", ((count, 5), labels), (((), F32), ((count, 5), F32)), (first,), 5),
        Case("softmax_xent_grad", (probs, labels, np.array(0.7, F32)), (((count, 5), F32),), (first,)),
    ]


XENTS = [c for shape in [(1, 1, 0), (32, 10, 0), (32, 10, 5), (7, 100, 7), (500, 100, 1)] for c in label_case(*shape)]


def sampled_case(
    batch: int, width: int, classes: int, scale: float = 0.0, own: int = 0, *, correction: bool = True
) -> Case:
    rng = np.random.default_rng(classes)
    features, rows = rng.standard_normal((batch, width)) / np.sqrt(width), rng.standard_normal((classes, width))
    labels = rng.integers(-1, max(own, 1), batch).astype(I32)
    inputs = (features.astype(F32), labels, rows.astype(F32), (classes,) if correction else None)
    outputs = (((), F32), ((batch, width), F32), ((classes, width), F32))
    return Case("sampled_softmax", inputs, outputs, (bits(scale), own), classes)


def sampled_slice_case(rows: int, first: int, count: int) -> Case:
    labels = np.random.default_rng(rows).integers(-1, 5, rows).astype(I32)
    outputs = (((), F32), ((count, 7), F32), ((5, 7), F32))
    return Case("sampled_softmax", ((count, 7), labels, (5, 7), None), outputs, (bits(0.0), 0, first), 7)


SAMPLED = [
    sampled_case(1, 1, 1, correction=False),
    sampled_case(5, 17, 49),
    sampled_case(16, 64, 160, 9.0, 6),
    sampled_case(33, 31, 100, 3.0),
    sampled_case(7, 1500, 100, own=100, correction=False),
    sampled_case(1000, 9, 300, 2.0, 20),
    *[sampled_slice_case(*slice_) for slice_ in [(9, 0, 9), (9, 4, 3), (9, 8, 1)]],
]
XENTS += [c for slice_ in [(9, 0, 9), (9, 4, 3), (9, 8, 1)] for c in sliced_label_case(*slice_)]

CASES = [
    *GEMMS,
    *[c for s in CONVS for c in conv_cases(s)],
    *[c for p in POOLS for c in pool_cases(p)],
    *ELEMENTWISE,
    *REDUCTIONS,
    *TRANSPOSES,
    *XENTS,
    *SAMPLED,
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_kernel_equals_its_twin_for_any_number_of_threads(case: Case, isa: str) -> None:
    inputs = arrays_of(case)
    got = compute(case, inputs, isa, 1)
    for one, three in zip(got, compute(case, inputs, isa, 3), strict=True):
        assert one.tobytes() == three.tobytes()
    for value, want in zip(got, twin(case, inputs), strict=True):
        assert_close(value, want, case.terms)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("with_velocity", [True, False])
@pytest.mark.parametrize("nesterov", [0, 1])
@pytest.mark.parametrize("size", [1, 15, 16, 17, 1000, 70001])
def test_sgd_equals_its_twin_in_place(isa: str, *, with_velocity: bool, nesterov: int, size: int) -> None:
    if nesterov and not with_velocity:
        return
    momentum = 0.73 if with_velocity else 0.0
    attrs = [bits(momentum), bits(0.037), nesterov]
    rng = np.random.default_rng(size)
    values = {name: rng.standard_normal(size).astype(F32) for name in ("param", "grad", "velocity")}
    results = []
    for threads in (1, 3):
        writer = PlanWriter()
        param, grad = writer.tensor("param", (size,), TRAINED), writer.tensor("grad", (size,), BATCH)
        lr = writer.tensor("lr", (), BATCH)
        velocity = writer.tensor("velocity", (size,), STATE) if with_velocity else None
        writer.op("sgd", [param, grad, lr, velocity], [param, velocity], attrs)
        engine = _core.Engine(writer.seal(), threads, isa)
        names = [name for name in values if name != "velocity" or with_velocity]
        for name in names:
            engine.view(name)[...] = values[name]
        engine.view("lr")[...] = 0.11
        engine.step()
        results.append([engine.view(name).copy() for name in names if name != "grad"])
    wide = [values["param"], values["grad"], np.array(0.11), values["velocity"] if with_velocity else None]
    want = reference.run("sgd", [None if a is None else a.astype(np.float64) for a in wide], attrs, [])
    for one, three, expected in zip(*results, want, strict=True):
        assert one.tobytes() == three.tobytes()
        assert_close(one, expected, 4)


GEMM_SGDS = [  # m, n, k: tails, several blocks of rows, rows too wide for a block, a product in blocks of k
    (1, 1, 1),
    (7, 33, 5),
    (13, 64, 600),
    (97, 31, 17),
    (230, 300, 9),
    (29, 5000, 3),
]


def stepped_by_a_product(
    values: dict[str, np.ndarray], attrs: list[int], isa: str, threads: int, *, fused: bool
) -> list[np.ndarray]:
    """param, and velocity where there is one, after gemm_sgd, or after gemm and sgd."""
    writer = PlanWriter()
    roles = {"param": TRAINED, "velocity": STATE}
    t = {name: writer.tensor(name, v.shape, roles.get(name, BATCH)) for name, v in values.items()}
    slots = [t["param"], t.get("velocity")]
    if fused:
        writer.op("gemm_sgd", [t["a"], t["b"], slots[0], t["lr"], slots[1]], slots, attrs)
    else:
        grad = writer.tensor("", values["param"].shape)
        writer.op("gemm", [t["a"], t["b"], None], [grad], [*attrs[:2], 0])
        writer.op("sgd", [slots[0], grad, t["lr"], slots[1]], slots, attrs[2:])
    engine = _core.Engine(writer.seal(), threads, isa)
    engine.poison()
    for name, value in values.items():
        engine.view(name)[...] = value
    engine.step()
    return [engine.view(name).copy() for name in roles if name in values]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("settings", [(0.0, 0), (0.73, 0), (0.73, 1)], ids=["plain", "momentum", "nesterov"])
@pytest.mark.parametrize("transposed", [(0, 0), (1, 0), (0, 1), (1, 1)], ids=["nn", "tn", "nt", "tt"])
@pytest.mark.parametrize("size", GEMM_SGDS, ids=str)
def test_a_product_and_its_update_at_once_have_the_bits_of_one_after_the_other(
    isa: str, settings: tuple[float, int], transposed: tuple[int, int], size: tuple[int, int, int]
) -> None:
    (m, n, k), (momentum, nesterov), rng = size, settings, np.random.default_rng(size)
    shapes = {"a": (k, m) if transposed[0] else (m, k), "b": (n, k) if transposed[1] else (k, n), "param": (m, n)}
    shapes |= {"velocity": (m, n)} if momentum else {}
    values = {name: rng.standard_normal(shape).astype(F32) for name, shape in shapes.items()}
    values["lr"] = np.array(0.11, F32)
    attrs = [*transposed, bits(momentum), bits(0.037), nesterov]
    apart = stepped_by_a_product(values, attrs, isa, 1, fused=False)
    for threads in (1, 3):
        at_once = stepped_by_a_product(values, attrs, isa, threads, fused=True)
        assert [v.tobytes() for v in at_once] == [v.tobytes() for v in apart]
    wide = [values.get(name) for name in ("a", "b", "param", "lr", "velocity")]
    want = reference.run("gemm_sgd", [None if v is None else v.astype(np.float64) for v in wide], attrs, [])
    for got, expected in zip(apart, want, strict=True):
        assert_close(got, expected, k)


@pytest.mark.parametrize("isa", ISAS)
def test_relu_and_gemm_and_conv_keep_nan(isa: str) -> None:
    x = np.array([[np.nan, -1.0, 2.0]], F32)
    (y,) = compute(Case("relu", (x,), ((x.shape, F32),)), [x], isa, 1)
    np.testing.assert_array_equal(y, [[np.nan, 0.0, 2.0]])
    one = np.ones((1, 1), F32)
    (c,) = compute(Case("gemm", (), (((1, 3), F32),), (0, 0, 1)), [one, x, None], isa, 1)
    np.testing.assert_array_equal(c, [[np.nan, 0.0, 2.0]])
    image, weight = x.reshape(1, 1, 1, 3), np.ones((1, 1, 1, 1), F32)
    attrs = (1, 1, 0, 0, 0, 0, 1, 1, 1, 1)
    (y,) = compute(Case("conv", (), (((1, 1, 1, 3), F32),), attrs), [image, weight, None], isa, 1)
    np.testing.assert_array_equal(y.ravel(), [np.nan, 0.0, 2.0])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width", [8, 3])  # vectors of windows, and one by one
def test_maxpool_takes_the_first_of_equals_and_the_first_nan(isa: str, width: int) -> None:
    x = np.zeros((1, 1, 2, 2 * width), F32)
    x[0, 0, :, 2:4] = [[1.0, 5.0], [5.0, 5.0]]
    x[0, 0, :, 4:6] = [[1.0, np.nan], [9.0, np.nan]]
    case = Case("maxpool", (x,), (((1, 1, 1, width), F32), ((1, 1, 1, width), U8)), (2, 2, 0, 0, 0, 0, 1, 1, 2, 2))
    y, index = compute(case, [x], isa, 1)
    np.testing.assert_array_equal(y.ravel()[:3], [0.0, 5.0, np.nan])
    np.testing.assert_array_equal(index.ravel()[:3], [0, 1, 1])


@pytest.mark.parametrize("isa", ISAS)
def test_softmax_survives_large_logits_and_an_unlabelled_batch(isa: str) -> None:
    logits = np.array([[1e30, 0.0], [-1e30, -1e30], [3e38, -3e38]], F32)
    case = Case("softmax_xent", (), (((), F32), ((3, 2), F32)))
    loss, probs = compute(case, [logits, np.array([0, 1, 0], I32)], isa, 1)
    assert loss == pytest.approx(np.log(2) / 3)
    np.testing.assert_allclose(probs, [[1, 0], [0.5, 0.5], [1, 0]])
    loss, _ = compute(case, [logits, np.full(3, -1, I32)], isa, 1)
    assert loss == 0.0


@pytest.mark.parametrize("isa", ISAS)
def test_subnormal_numbers_are_not_flushed(isa: str) -> None:
    tiny = np.full(40, 1e-40, F32)
    (c,) = compute(Case("add", (), (((40,), F32),)), [tiny, tiny], isa, 1)
    np.testing.assert_array_equal(c, tiny + tiny)
    assert c[0] > 0.0


def test_a_worked_convolution() -> None:
    x = np.arange(9, dtype=F32).reshape(1, 1, 3, 3)
    w = np.array([[[[1, 0], [0, -1]]]], F32)
    attrs = (1, 1, 0, 0, 0, 0, 1, 1, 1, 0)
    (y,) = compute(Case("conv", (), (((1, 1, 2, 2), F32),), attrs), [x, w, None], "auto", 1)
    np.testing.assert_array_equal(y.ravel(), [-4, -4, -4, -4])  # x[i, j] - x[i + 1, j + 1]
    (d_w,) = compute(Case("conv_grad_w", (), ((w.shape, F32),), attrs), [np.ones((1, 1, 2, 2), F32), x], "auto", 1)
    np.testing.assert_array_equal(d_w.ravel(), [8, 12, 20, 24])  # sums of the four 2 x 2 corners


def test_every_opcode_has_a_case() -> None:
    assert {case.op for case in CASES} | {"sgd", "gemm_sgd", *reference_map.TWINS} == set(reference.TWINS) - set(
        reference_tensor.TWINS
    )
