"""Recomputing cheap work: the same bits from fewer bytes."""

import itertools

import numpy as np
import pytest
from forward import run_on_engine
from hypothesis import given, settings
from hypothesis import strategies as st

import models.compiler.graph as g
from edge_runtime import _core
from models.compiler import Compiled, compile_loss
from models.compiler.fuse_maps import fuse_maps
from models.compiler.ir import Value, Window
from models.compiler.map_parts import part_of
from models.compiler.min_cut import cheapest_cut
from models.compiler.recompute import SHARE
from models.compiler.rules import AdamW, Sgd
from models.compiler.schedule import base


@st.composite
def networks(draw: st.DrawFn) -> tuple[list[int], list[tuple[int, int]], set[int], set[int]]:
    """Costs, arcs from lower to higher numbers, sources and sinks."""
    costs = draw(st.lists(st.integers(0, 9), min_size=2, max_size=7))
    numbers = range(len(costs))
    arcs = draw(st.lists(st.sampled_from(list(itertools.combinations(numbers, 2))), max_size=12, unique=True))
    some = st.sets(st.sampled_from(numbers), min_size=1, max_size=3)
    return costs, arcs, draw(some), draw(some)


def separated(arcs: list[tuple[int, int]], sources: set[int], sinks: set[int], cut: set[int]) -> bool:
    """Whether no way from a source to a sink avoids the cut."""
    reached = sources - cut
    for tail, head in sorted(arcs):
        if tail in reached and head not in cut:
            reached.add(head)
    return not reached & sinks


@given(networks())
@settings(max_examples=300, deadline=None)
def test_cut_separates_and_no_subset_of_the_vertices_is_cheaper(
    network: tuple[list[int], list[tuple[int, int]], set[int], set[int]],
) -> None:
    costs, arcs, sources, sinks = network
    vertices = [g.leaf(str(i), "float32", (1,)) for i in range(len(costs))]
    named = [(vertices[a], vertices[b]) for a, b in arcs]
    found = cheapest_cut(
        dict(zip(vertices, costs, strict=True)), named, [vertices[i] for i in sources], [vertices[i] for i in sinks]
    )
    cut = {i for i, v in enumerate(vertices) if v in found}
    assert separated(arcs, sources, sinks, cut)
    subsets = itertools.chain.from_iterable(itertools.combinations(range(len(costs)), n) for n in range(len(costs) + 1))
    cheapest = min(sum(costs[i] for i in s) for s in subsets if separated(arcs, sources, sinks, set(s)))
    assert sum(costs[i] for i in cut) == cheapest


def residual_network(depth: int, batch: int = 4, *, identity: bool = True) -> tuple[Value, tuple[Value, Value]]:
    """Convolutions with batch normalisation, with or without identities, and a mean over places at the end."""
    x, labels = g.leaf("x", "float32", (batch, 3, 12, 12)), g.leaf("y", "int32", (batch,))
    rows = g.labelled_rows(labels)
    window = g.conv(x, g.leaf("w", "float32", (8, 3, 3, 3)))
    h = g.relu(normalised(window, "stem", rows))
    for i in range(depth):
        y = normalised(g.conv(h, g.leaf(f"w{i}", "float32", (8, 8, 1, 1))), f"n{i}", rows)
        h = g.relu(y + h if identity else y)
    logits = g.mean(h, [2, 3]) @ g.leaf("head", "float32", (8, 5))
    return g.softmax_cross_entropy(logits, labels), (x, labels)


def normalised(x: Value, name: str, rows: Value) -> Value:
    gain, bias, mean, variance = (
        g.leaf(f"{name}.{part}", "float32", (x.shape[1],)) for part in ("gain", "bias", "mean", "variance")
    )
    return g.batch_norm(x, gain, bias, (mean, variance), rows).y


def transformer(depth: int, batch: int = 2) -> tuple[Value, tuple[Value, Value]]:
    """Pre-norm blocks of one head over 9 rows of 16."""
    x, labels = g.leaf("x", "float32", (batch, 9, 16)), g.leaf("y", "int32", (batch,))
    h = x
    for i in range(depth):
        rows = g.layer_norm(h, None, None)
        q, k, v = (rows @ g.leaf(f"{p}{i}", "float32", (16, 16)) for p in "qkv")
        h = h + g.attention(q, k, v) @ g.leaf(f"o{i}", "float32", (16, 16))
        wide = g.gelu(g.layer_norm(h, None, None) @ g.leaf(f"wide{i}", "float32", (16, 64)))
        h = h + wide @ g.leaf(f"narrow{i}", "float32", (64, 16))
    return g.softmax_cross_entropy(g.mean(h, [1]) @ g.leaf("head", "float32", (16, 5)), labels), (x, labels)


def trained(compiled: Compiled, steps: int = 3) -> dict[str, bytes]:
    """The loss and every trained tensor after some steps over an arena of NaN, from weights that names decide."""
    engine = _core.Engine(compiled.plan)
    for tensor in _core.describe(compiled.plan)["tensors"]:
        if tensor["name"] and tensor["dtype"] == "float32" and tensor["name"] not in {"lr", "loss"}:
            fill = np.random.default_rng(sum(tensor["name"].encode()))
            if tensor["role"] in {1, 4}:
                engine.view(tensor["name"])[...] = fill.normal(size=tensor["shape"]) * 0.5
    engine.view("y")[...] = np.arange(len(engine.view("y"))) % 5
    engine.view("lr")[...] = 0.05
    for _ in range(steps):
        engine.poison()
        engine.step()
    return {name: engine.view(name).tobytes() for name in (*compiled.report.trained, "loss")}


def narrowing_network(depth: int, batch: int = 4) -> tuple[Value, tuple[Value, Value]]:
    """Blocks that halve width and height, with projections beside them, as in ResNets."""
    x, labels = g.leaf("x", "float32", (batch, 8, 32, 32)), g.leaf("y", "int32", (batch,))
    rows = g.labelled_rows(labels)
    h = x
    for i in range(depth):
        stride = Window((2, 2), (1, 1, 1, 1))
        wide = g.relu(normalised(g.conv(h, g.leaf(f"a{i}", "float32", (16, h.shape[1], 3, 3)), stride), f"n{i}", rows))
        y = normalised(
            g.conv(wide, g.leaf(f"b{i}", "float32", (16, 16, 3, 3)), Window((1, 1), (1,) * 4)), f"m{i}", rows
        )
        beside = g.conv(h, g.leaf(f"c{i}", "float32", (16, h.shape[1], 1, 1)), Window((2, 2)))
        h = g.relu(y + normalised(beside, f"o{i}", rows))
    logits = g.mean(h, [2, 3]) @ g.leaf("head", "float32", (16, 5))
    return g.softmax_cross_entropy(logits, labels), (x, labels)


NETWORKS = {"residual": residual_network, "transformer": transformer}


def test_of_products_only_those_over_few_places_are_repeated() -> None:
    loss, batch = narrowing_network(3)
    kept, repeated = (compile_loss(loss, batch, recompute=flag) for flag in (False, True))
    forward, *_ = kept.report.multiply_adds
    more = sum(repeated.report.multiply_adds) - sum(kept.report.multiply_adds)
    assert 0 < more <= forward * 3 * 2 * SHARE
    assert repeated.report.temporaries_bytes < 0.75 * kept.report.temporaries_bytes
    assert repeated.report.gap <= 0.05
    assert trained(repeated) == trained(kept)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("rule", [Sgd(), AdamW(max_norm=0.5)])
def test_recomputing_changes_no_bit_and_no_product_but_takes_less(name: str, rule: Sgd | AdamW) -> None:
    loss, batch = NETWORKS[name](4)
    kept, repeated = (compile_loss(loss, batch, rule=rule, recompute=flag) for flag in (False, True))
    assert repeated.report.multiply_adds == kept.report.multiply_adds
    assert repeated.report.temporaries_bytes < 0.95 * kept.report.temporaries_bytes
    assert trained(repeated) == trained(kept)


@pytest.mark.parametrize(("outward", "again"), [(24, True), (16, False)])
def test_a_convolution_is_repeated_where_it_makes_many_channels_of_few(outward: int, *, again: bool) -> None:
    x, labels = g.leaf("x", "float32", (4, 3, 9, 9)), g.leaf("y", "int32", (4,))
    narrow = g.conv(x, g.leaf("v", "float32", (6, 3, 3, 3)))
    wide = g.relu(g.conv(narrow, g.leaf("w", "float32", (outward, 6, 1, 1))))
    deep = g.conv(wide, g.leaf("d", "float32", (outward, 1, 3, 3)), groups=outward)
    loss = g.softmax_cross_entropy(g.mean(g.relu(deep), [2, 3]), labels)
    kept, repeated = (compile_loss(loss, (x, labels), recompute=flag) for flag in (False, True))
    convs = [sum(op["op"] == "conv" for op in _core.describe(c.plan)["ops"]) for c in (kept, repeated)]
    assert (convs[0], convs[1] > 3) == (3, again)
    assert trained(repeated) == trained(kept)


def test_a_deeper_network_adds_one_convolution_output_a_block() -> None:
    reports = [compile_loss(*residual_network(depth, identity=False)).report for depth in (4, 8)]
    output = 4 * 4 * 8 * 10 * 10
    grown = reports[1].temporaries_bytes - reports[0].temporaries_bytes
    assert 4 * output <= grown <= 4 * 1.1 * output


def test_what_nothing_cheap_leads_to_is_kept() -> None:
    x = g.leaf("x", "float32", (4, 32))
    loss = g.mean(g.square(x @ g.leaf("w", "float32", (32, 32))))
    plans = {compile_loss(loss, (x,), recompute=flag).plan for flag in (False, True)}
    assert len(plans) == 1


def test_a_map_makes_some_of_its_results_as_it_makes_all(rng: np.random.Generator) -> None:
    x, y = (g.leaf(name, "float32", (5, 40)) for name in "xy")
    scaled = x * y + 1.0
    (node,) = {base(v).node for v in fuse_maps([scaled, g.sum(g.relu(scaled), [1]), g.exp(scaled) - x])}
    assert node.op == "map"
    given = {name: rng.normal(size=(5, 40)).astype(np.float32) for name in "xy"}
    whole = run_on_engine([node.out(i) for i in range(3)], given)
    for outputs in ([0], [1], [2], [0, 2]):
        part = part_of(node, outputs)
        assert len(part.types) == len(outputs)
        found = run_on_engine([part.out(i) for i in range(len(outputs))], given)
        for i, value in zip(outputs, found, strict=True):
            assert value.tobytes() == whole[i].tobytes()
