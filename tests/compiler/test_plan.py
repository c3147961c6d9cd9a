"""What is in a compiled plan: its bytes, its memory, what freezing leaves out."""

import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edge_runtime.plan
import models.compiler.graph as g
from edge_runtime import _core
from models.compiler import CompileError, ModelError, compile_training, import_onnx, weights_of
from models.compiler.emit import ABSENT, program
from models.compiler.freeze import select
from models.compiler.ir import Graph, Role, Value
from models.compiler.memory import ALIGNMENT, Buffer, lower_bound, place
from models.compiler.rules import Sgd
from models.compiler.storage import Layout, Owner, Owners, lay_out
from models.compiler.training import _Settings, _step, compile_loss
from models.zoo import build

BUFFERS = st.lists(
    st.builds(
        lambda nbytes, first, length: Buffer(nbytes, first, first + length),
        st.integers(1, 5000),
        st.integers(0, 30),
        st.integers(0, 12),
    ),
    max_size=40,
)


def lenet(batch: int = 4) -> Graph:
    return import_onnx(build("lenet", (1, 28, 28), 10, 3), batch=batch)


@given(BUFFERS)
@settings(max_examples=300, deadline=None)
def test_buffers_alive_together_never_overlap(buffers: list[Buffer]) -> None:
    placed = place(buffers)
    assert placed.peak_bytes >= lower_bound(buffers)
    spans = [(o, o + b.nbytes, b) for o, b in zip(placed.offsets, buffers, strict=True)]
    for i, (begin, end, buffer) in enumerate(spans):
        assert begin % ALIGNMENT == 0
        assert end <= placed.peak_bytes
        for other_begin, other_end, other in spans[:i]:
            if buffer.meets(other):
                assert end <= other_begin or other_end <= begin


def test_lower_bound_is_the_most_that_lives_at_once() -> None:
    assert lower_bound([Buffer(64, 0, 2), Buffer(65, 2, 3), Buffer(640, 4, 4)]) == 640
    assert lower_bound([Buffer(64, 0, 2), Buffer(65, 2, 3)]) == 192
    assert lower_bound([]) == 0
    assert place([]).peak_bytes == 0


def laid_out(graph: Graph, *, trained: int) -> tuple[Layout, Owners]:
    """The layout of a step that trains the last `trained` parameters."""
    labels = g.leaf("y", "int32", (graph.inputs[0].shape[0],))
    loss = g.softmax_cross_entropy(graph.outputs[0], labels)
    step = _step(loss, graph.parameters[-trained:], {}, _Settings(("*",), (), Sgd(), recompute=True))
    owners = dict(step.owners)
    owners |= {p: Owner(Role.FROZEN, p.name) for p in graph.parameters[:-trained]}
    owners |= {v: Owner(Role.BATCH, v.name) for v in (*graph.inputs, labels)}
    return lay_out(step.outputs, owners), owners


@pytest.mark.parametrize(
    ("name", "shape"), [("lenet", (1, 28, 28)), ("lenet", (8, 8)), ("cnn1d", (6, 64)), ("mlp", (2, 9))]
)
@pytest.mark.parametrize("trained", [2, 4, 6])
def test_no_kernel_reads_bytes_that_another_has_overwritten(name: str, shape: tuple[int, ...], trained: int) -> None:
    layout, owners = laid_out(import_onnx(build(name, shape, 5, 3), batch=3), trained=trained)
    holder: dict[int, Value] = {}  # for each cell of 64 bytes, the value it holds
    for value in owners:
        if owners[value].role is not Role.OUTPUT:
            holder.update(dict.fromkeys(cells(layout, value), value))
    for node in layout.order:
        for value in (v for v in node.inputs if v is not None):
            if layout.root(value).node.op == "constant":
                continue
            held = {holder.get(c) for c in cells(layout, value)}
            assert held == {origin(value)}, f"{node.op} reads {value} out of {held}"
        for i in range(len(node.types)):
            out = Value(node, i)
            holder.update(dict.fromkeys(cells(layout, out), owner_after(layout, owners, out)))


def cells(layout: Layout, value: Value) -> range:
    begin = layout.offset(value) // ALIGNMENT
    return range(begin, begin - (-value.type.nbytes // ALIGNMENT))


def origin(value: Value) -> Value:
    """The value a chain of reshapes shows."""
    return origin(value.node.inputs[0]) if value.node.op == "reshape" else value  # type: ignore[arg-type]


def owner_after(layout: Layout, owners: Owners, out: Value) -> Value:
    """An updated slot counts as the slot itself; nothing may read it before the step's end but by its name."""
    return layout.root(out) if layout.root(out) in owners and out.node.op == "sgd" else out


def test_offsets_of_owners_do_not_meet_the_shared_part() -> None:
    layout, owners = laid_out(lenet(), trained=10)
    for value in owners:
        assert layout.offset(value) + value.type.nbytes <= layout.owned_bytes
    for node in layout.order:
        for i in range(len(node.types)):
            if layout.root(Value(node, i)) not in owners:
                assert layout.offset(Value(node, i)) >= layout.owned_bytes


def test_arena_of_the_zoo_is_within_five_percent_of_the_lower_bound() -> None:
    for name, shape in (("lenet", (1, 28, 28)), ("lenet", (3, 32, 32)), ("cnn1d", (6, 128)), ("mlp", (20,))):
        report = compile_training(import_onnx(build(name, shape, 10, 0), batch=32)).report
        assert report.lower_bound_bytes <= report.arena_bytes <= 1.05 * report.lower_bound_bytes


def test_the_same_model_gives_the_same_bytes() -> None:
    first, second = compile_training(lenet()), compile_training(lenet())
    assert first.plan == second.plan
    assert first.sha256 == hashlib.sha256(first.plan).hexdigest()
    assert compile_training(lenet(), momentum=0.8).plan != first.plan


def test_header_and_check_sum_are_those_of_the_format() -> None:
    plan = compile_training(lenet()).plan
    fields = struct.unpack_from("<8s6I4Q", plan)
    magic, version, n_tensors, n_ops, n_operands, n_attrs, names_bytes, _, constants_bytes, _, file_bytes = fields
    assert (magic, version, file_bytes) == (b"EDGEPLAN", 1, len(plan))
    before_constants = 64 + 48 * n_tensors + 16 * n_ops + 4 * n_operands + 4 * n_attrs + names_bytes
    before_constants += -before_constants % 64
    assert before_constants + constants_bytes + 32 == len(plan)
    assert plan[-32:] == hashlib.sha256(plan[:-32]).digest()


def test_one_tensor_record_is_as_the_format_says() -> None:
    plan = compile_training(lenet()).plan
    records = [struct.unpack_from("<4B3IQ6I", plan, 64 + 48 * i) for i in range(struct.unpack_from("<I", plan, 12)[0])]
    n_ops, n_operands, n_attrs = struct.unpack_from("<3I", plan, 16)
    names_at = 64 + 48 * len(records) + 16 * n_ops + 4 * n_operands + 4 * n_attrs
    named = {plan[names_at + r[4] : names_at + r[4] + r[5]].decode(): r for r in records if r[5]}
    dtype, ndim, role, zero, _, _, reserved, offset, *dims = named["conv2.weight"]
    assert (dtype, ndim, role, zero, reserved, offset % 64) == (1, 4, Role.TRAINED, 0, 0, 0)
    assert dims == [16, 6, 5, 5, 0, 0]
    assert named["y"][:3] == (2, 1, Role.BATCH)
    assert named["lr"][:3] == (1, 0, Role.SCALAR)
    assert named["momentum/fc1.bias"][2] == Role.STATE


def test_the_engine_describes_what_was_compiled() -> None:
    compiled = compile_training(lenet(batch=5))
    facts = _core.describe(compiled.plan)
    shapes = {t["name"]: tuple(t["shape"]) for t in facts["tensors"] if t["name"]}
    assert shapes["x"] == (5, 1, 28, 28)
    assert {n: s for n, s in shapes.items() if n in compiled.report.trained} == {
        n: w.shape for n, w in weights_of(build("lenet", (1, 28, 28), 10, 3)).items()
    }
    assert facts["arena_bytes"] == compiled.report.arena_bytes
    assert len(facts["ops"]) == compiled.report.operations


def limited(limits: tuple[float, ...]) -> list[tuple[str, list[int]]]:
    """Operations of a step of relus behind 1 x 1 convolutions with upper limits; a second limit reads the same relu."""
    x, y = g.leaf("x", "float32", (2, 3, 4, 4)), g.leaf("y", "int32", (2,))
    h = g.relu(g.conv(g.conv(x, g.leaf("v", "float32", (3, 3, 3, 3))), g.leaf("w", "float32", (5, 3, 1, 1))))
    logits = sum((g.mean(g.minimum(h, limit), [2, 3]) for limit in limits[1:]), g.mean(g.minimum(h, limits[0]), [2, 3]))
    compiled = compile_loss(g.softmax_cross_entropy(logits, y), [x, y], recompute=False)
    return [(op["op"], op["attrs"][9:]) for op in _core.describe(compiled.plan)["ops"] if op["op"] == "conv"]


def test_the_limit_of_a_relu_is_its_convolutions_where_nothing_needs_more() -> None:
    assert limited((6.0,))[1] == ("conv", [int(np.float32(6.0).view(np.int32))])
    assert limited((6.0, 3.0))[1] == ("conv", [1])
    assert limited((-1.0,))[1] == ("conv", [1])


def test_bias_and_relu_have_no_operation_of_their_own() -> None:
    ops = [op["op"] for op in _core.describe(compile_training(lenet()).plan)["ops"]]
    assert "relu" not in ops
    assert "add" not in ops
    assert ops[:4] == ["conv", "maxpool", "conv", "maxpool"]
    assert ops[4:8] == ["gemm", "gemm", "gemm", "softmax_xent"]


def test_gradients_are_consumed_as_they_are_produced() -> None:
    h, width, layers = g.leaf("x", "float32", (2, 64)), 64, 8
    x = h
    for i in range(layers):
        h = g.relu(h @ g.leaf(f"w{i}", "float32", (width, width)))
    report = compile_loss(g.mean(g.square(h)), (x,)).report
    one_gradient, activations = 4 * width * width, 4 * 2 * width * (layers + 3)
    assert report.temporaries_bytes <= 2 * one_gradient + activations


def test_backward_program_stops_at_the_shallowest_trainable_tensor() -> None:
    whole = compile_training(lenet(batch=32))
    head = compile_training(lenet(batch=32), trainable=["fc3.*"])
    ops = [op["op"] for op in _core.describe(head.plan)["ops"]]
    assert not {"conv_grad_x", "conv_grad_w", "maxpool_grad", "relu_grad"} & set(ops)
    assert head.report.arena_bytes < 0.85 * whole.report.arena_bytes
    assert head.report.forward_multiply_adds == whole.report.forward_multiply_adds
    assert head.report.backward_multiply_adds == 32 * 84 * 10
    assert head.report.trained == ("fc3.weight", "fc3.bias")
    assert set(head.report.frozen) == set(whole.report.trained) - set(head.report.trained)


def test_what_a_pool_has_read_is_not_kept_for_the_backward_program() -> None:
    batch = 32
    graph = lenet(batch)
    report = compile_training(graph).report
    large, pooled = 4 * batch * 6 * 28 * 28, batch * 6 * 14 * 14
    rest = 4 * batch * 400 + batch * 400 + 4 * 61_706
    # Forward: conv1 beside its pooled values and their index; backward: the gradients of both.
    assert report.temporaries_bytes <= large + (4 + 1 + 4) * pooled + rest


def test_the_input_gets_no_gradient() -> None:
    ops = [op["op"] for op in _core.describe(compile_training(lenet()).plan)["ops"]]
    assert ops.count("conv_grad_w") == 2
    assert ops.count("conv_grad_x") == 1


def test_multiply_adds_are_those_counted_by_hand() -> None:
    report = compile_training(lenet(batch=1)).report
    conv1, conv2 = 28 * 28 * 6 * 25, 10 * 10 * 16 * 6 * 25
    dense = 400 * 120 + 120 * 84 + 84 * 10
    assert report.multiply_adds == (conv1 + conv2 + dense, conv1 + 2 * conv2 + 2 * dense)


def test_without_momentum_there_is_no_velocity() -> None:
    facts = _core.describe(compile_training(lenet(), momentum=0.0).plan)
    assert not any(t["name"].startswith("momentum/") for t in facts["tensors"])


def test_absent_operands_are_marked() -> None:
    layout, _ = laid_out(lenet(), trained=2)
    products = [op for op in program(layout).operations if op.opcode == 1]
    assert all(len(op.inputs) == 3 for op in products)
    assert any(op.inputs[2] == ABSENT for op in products)


def test_patterns_pick_by_whole_names() -> None:
    names = ["conv1.weight", "conv1.bias", "fc.weight"]
    assert select(names, ["conv1.*"], []) == ("conv1.weight", "conv1.bias")
    assert select(names, ["*"], ["*.bias"]) == ("conv1.weight", "fc.weight")
    assert select(names, ["fc.weight", "*.bias"], []) == ("conv1.bias", "fc.weight")


@pytest.mark.parametrize(
    ("trainable", "frozen", "message"),
    [
        (["conv9.*"], [], "trainable pattern 'conv9.*' matches no tensor; there are: conv1.weight"),
        (["*"], ["nothing"], "frozen pattern 'nothing' matches no tensor"),
        (["fc3.*"], ["*"], "nothing is left to train"),
        ([], [], "nothing is left to train"),
    ],
)
def test_patterns_that_select_nothing_are_refused(trainable: list[str], frozen: list[str], message: str) -> None:
    with pytest.raises(CompileError, match=message.replace("*", r"\*")):
        compile_training(lenet(), trainable=trainable, frozen=frozen)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"momentum": 1.0}, "momentum"),
        ({"momentum": -0.1}, "momentum"),
        ({"momentum": float("nan")}, "momentum"),
        ({"weight_decay": -1e-9}, "weight_decay"),
        ({"weight_decay": float("inf")}, "weight_decay"),
        ({"momentum": 0.0, "nesterov": True}, "nesterov"),
    ],
)
def test_settings_out_of_range_are_refused(settings_: dict[str, float], message: str) -> None:
    with pytest.raises(CompileError, match=message):
        compile_training(lenet(), **settings_)  # type: ignore[arg-type]


def test_a_tensor_named_like_a_part_of_the_step_is_refused() -> None:
    x, w = g.leaf("x", "float32", (2, 3)), g.leaf("lr", "float32", (3, 4))
    with pytest.raises(ModelError, match="'lr'"):
        compile_training(Graph((x,), (w,), (x @ w,)))


def test_an_arena_over_the_cap_is_refused() -> None:
    with pytest.raises(CompileError, match="at most"):
        compile_training(import_onnx(build("lenet", (3, 128, 128), 10, 0), batch=8000))


def test_loss_of_the_first_step_is_that_of_the_model(rng: np.random.Generator) -> None:
    data = build("cnn1d", (3, 16), 4, 5)
    engine = _core.Engine(compile_training(import_onnx(data, batch=6)).plan)
    for name, value in weights_of(data).items():
        engine.view(name)[...] = value
    engine.view("x")[...] = rng.normal(size=(6, 3, 16))
    engine.view("y")[...] = [0, 1, 2, 3, 0, 1]
    engine.step()
    assert 0.7 < float(engine.view("loss")) / np.log(4) < 3.0


def test_roles_are_those_of_the_reader() -> None:
    assert {f"ROLE_{role.name}": int(role) for role in Role} == {
        name: value for name, value in vars(edge_runtime.plan).items() if name.startswith("ROLE_")
    }
