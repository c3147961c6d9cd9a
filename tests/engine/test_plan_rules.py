"""Hostile plans: a test per rule, and no change of bytes that does more than be refused."""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from planwriter import (
    BATCH,
    CONSTANT,
    FROZEN,
    OUTPUT,
    SCALAR,
    STATE,
    TEMPORARY,
    TRAINED,
    PlanWriter,
    bits,
    patched,
    with_checksum,
)

from edge_runtime import _core, plan
from edge_runtime.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Callable

ONES = [1, 1, 0, 0, 0, 0, 1, 1]  # strides, pads, dilations of the plainest window


def tiny() -> PlanWriter:
    """A whole plan: x -> relu -> y, and a momentum step on w."""
    writer = PlanWriter(workspace_bytes=4096)
    x, y = writer.tensor("x", (4, 5), BATCH), writer.tensor("y", (4, 5), OUTPUT)
    w, v, lr = writer.tensor("w", (20,), TRAINED), writer.tensor("v", (20,), STATE), writer.tensor("lr", (), SCALAR)
    hidden = writer.tensor("", (4, 5), TEMPORARY)
    writer.op("relu", [x], [hidden])
    writer.op("copy", [hidden], [y])
    grad = writer.tensor("grad", (20,), FROZEN)
    writer.op("sgd", [w, grad, lr, v], [w, v], [bits(0.9), 0, 0])
    return writer


TINY = tiny().seal()


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def tensor_field(number: int, offset: int) -> int:
    return 64 + 48 * number + offset


def op_field(number: int, offset: int) -> int:
    return 64 + 48 * 7 + 16 * number + offset


HEADER_PATCHES = [
    ("BadMagic", 0, b"EDGEPLAM"),
    ("BadVersion", 8, u32(2)),
    ("TooManyTensors", 12, u32(65537)),
    ("TooManyOps", 16, u32(65537)),
    ("TooManyOperands", 20, u32(1048577)),
    ("TooManyAttributes", 24, u32(1048577)),
    ("NamesTooLong", 28, u32((4 << 20) + 1)),
    ("ArenaTooLarge", 32, u64((4 << 30) + 1)),
    ("ConstantsTooLarge", 40, u64((256 << 20) + 1)),
    ("ConstantsTooLarge", 40, u64(2**64 - 1)),
    ("WorkspaceTooLarge", 48, u64((4 << 30) + 1)),
    ("Truncated", 56, u64(len(TINY) + 1)),
    ("FileSizeMismatch", 56, u64(len(TINY) - 1)),
    ("SectionsMismatch", 40, u64(1)),
    ("SectionsMismatch", 12, u32(65536)),
]
TENSOR_PATCHES = [
    ("BadDtype", tensor_field(0, 0), b"\0"),
    ("BadDtype", tensor_field(0, 0), b"\4"),
    ("BadShape", tensor_field(0, 1), b"\7"),
    ("BadShape", tensor_field(0, 1), b"\1"),  # a dimension left over
    ("BadShape", tensor_field(0, 24), u32(0)),
    ("BadShape", tensor_field(0, 24), u32(0xFFFFFFFF) * 2),  # 2^64 bytes and more
    ("BadRole", tensor_field(0, 2), b"\x08"),
    ("BadReserved", tensor_field(0, 3), b"\1"),
    ("BadReserved", tensor_field(0, 12), u32(1)),
    ("BadName", tensor_field(0, 4), u32(1 << 20)),
    ("BadName", tensor_field(0, 8), u32(0xFFFFFFFF)),
    ("BadName", tensor_field(0, 8), u32(0)),
    ("Misaligned", tensor_field(0, 16), u64(32)),
    ("BadOffset", tensor_field(0, 16), u64(1 << 20)),
    ("BadOffset", tensor_field(0, 16), u64(2**64 - 64)),
    ("SlotsOverlap", tensor_field(1, 16), u64(64)),
    ("SlotsOverlap", tensor_field(5, 16), u64(0)),
]
OP_PATCHES = [
    ("BadOpcode", op_field(0, 0), b"\0\0"),
    ("BadOpcode", op_field(0, 0), b"\x22\0"),
    ("BadOpcode", op_field(0, 0), b"\xff\xff"),
    ("BadOperand", op_field(0, 2), b"\xff"),
    ("BadOperand", op_field(0, 2), b"\2"),
    ("BadOperand", op_field(0, 4), u32(0xFFFFFFF0)),
    ("BadAttribute", op_field(0, 8), u32(0xFFFFFFF0)),
    ("BadAttribute", op_field(0, 12), b"\1\0"),
    ("BadAttribute", op_field(2, 12), b"\2\0"),
    ("BadReserved", op_field(0, 14), b"\1\0"),
]


@pytest.mark.parametrize(("rule", "at", "replacement"), HEADER_PATCHES + TENSOR_PATCHES + OP_PATCHES)
def test_a_broken_field_is_refused_by_its_rule(rule: str, at: int, replacement: bytes) -> None:
    with pytest.raises(plan.RULES[rule]) as caught:
        plan.read_plan(patched(TINY, at, replacement))
    assert caught.value.rule == rule
    assert caught.value.message
    assert str(caught.value).startswith(f"{rule}: ")


def test_the_whole_plan_passes() -> None:
    read = plan.read_plan(TINY, expect_sha256=hashlib.sha256(TINY).hexdigest())
    assert read.n_ops == 3
    assert set(read.named(plan.ROLE_TRAINED)) == {"w"}
    assert read.named(plan.ROLE_BATCH)["x"].shape == (4, 5)
    assert read.named(plan.ROLE_TEMPORARY) == {}


def test_a_plan_at_the_caps_of_nothing_passes() -> None:
    assert plan.read_plan(PlanWriter().seal()).n_ops == 0


@pytest.mark.parametrize("size", [0, 1, 63, 64, 95, 96, len(TINY) - 1])
def test_a_truncated_plan_is_refused(size: int) -> None:
    with pytest.raises(plan.TruncatedError):
        plan.read_plan(TINY[:size])


def test_a_plan_with_something_behind_it_is_refused() -> None:
    with pytest.raises(plan.FileSizeMismatchError):
        plan.read_plan(TINY + b"\0")


def test_a_flipped_byte_of_a_constant_is_a_wrong_check_sum() -> None:
    writer = tiny()
    writer.constants = bytearray(64)
    sealed = writer.seal()
    with pytest.raises(plan.ChecksumMismatchError):
        plan.read_plan(sealed[:-33] + b"\1" + sealed[-32:])


def test_another_plan_than_asked_for_is_refused() -> None:
    with pytest.raises(plan.NameMismatchError, match="fetch the plan again"):
        plan.read_plan(TINY, expect_sha256="0" * 64)


def test_padding_that_is_not_zero_is_refused() -> None:
    at = TINY.rindex(b"grad") + 4
    assert TINY[at] == 0
    with pytest.raises(plan.BadPaddingError):
        plan.read_plan(patched(TINY, at, b"x"))


@pytest.mark.parametrize("name", [b"\xff", b"\xc0", b"\x80", b"\0"])
def test_a_name_that_is_not_utf8_is_refused(name: bytes) -> None:
    at = TINY.rindex(b"lrgrad")
    with pytest.raises(plan.BadNameError):
        plan.read_plan(patched(TINY, at, name))


@pytest.mark.parametrize("name", [b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80"])
def test_overlong_and_surrogate_names_are_refused(name: bytes) -> None:
    writer = PlanWriter()
    writer.tensor("x" * len(name), (1,), BATCH)
    sealed = writer.seal()
    with pytest.raises(plan.BadNameError):
        plan.read_plan(patched(sealed, sealed.index(b"x" * len(name)), name))


@pytest.mark.parametrize("name", ["é", "重み", "𝛽/ключ"])
def test_a_utf8_name_passes(name: str) -> None:
    writer = PlanWriter()
    writer.tensor(name, (1,), BATCH)
    assert list(plan.read_plan(writer.seal()).named(plan.ROLE_BATCH)) == [name]


def test_two_tensors_of_one_name_are_refused() -> None:
    writer = PlanWriter()
    writer.tensor("x", (1,), BATCH)
    writer.tensor("x", (1,), TRAINED)
    with pytest.raises(plan.DuplicateNameError):
        plan.read_plan(writer.seal())


def test_a_scalar_is_one_float() -> None:
    for shape, dtype, error in [((1,), "float32", plan.BadShapeError), ((), "int32", plan.BadDtypeError)]:
        writer = PlanWriter()
        writer.tensor("lr", shape, SCALAR, dtype)
        with pytest.raises(error):
            plan.read_plan(writer.seal())


@pytest.mark.parametrize("role", [FROZEN, BATCH, SCALAR, CONSTANT])
def test_an_operation_must_not_write_what_is_read_only(role: int) -> None:
    writer = PlanWriter()
    x = writer.tensor("x", (), BATCH)
    y = writer.tensor("y", (), role)
    writer.constants = bytearray(64)
    writer.tensors[y].offset = 0 if role == CONSTANT else writer.tensors[y].offset
    writer.op("relu", [x], [y])
    with pytest.raises(plan.WritesReadOnlyError):
        plan.read_plan(writer.seal())


def refused(rule: str, build: Callable[[PlanWriter], None], workspace_bytes: int = 1 << 20) -> str:
    """The message with which a plan is refused by this rule."""
    writer = PlanWriter(workspace_bytes=workspace_bytes)
    build(writer)
    with pytest.raises(plan.RULES[rule]) as caught:
        plan.read_plan(writer.seal())
    return str(caught.value)


def operation(op: str, shapes: list, outs: list, attrs: list[int]) -> Callable[[PlanWriter], None]:
    """A plan of one operation; a shape may be (shape, dtype)."""

    def build(writer: PlanWriter) -> None:
        def put(spec: tuple | None) -> int | None:
            if spec is None:
                return None
            shape, dtype = spec if len(spec) == 2 and isinstance(spec[1], str) else (spec, "float32")
            role = BATCH if dtype == "int32" else TEMPORARY
            return writer.tensor(f"t{len(writer.tensors)}", shape, role, dtype)

        writer.op(op, [put(s) for s in shapes], [put(s) for s in outs], attrs)

    return build


LABELS = ((4,), "int32")
INDEX = ((1, 1, 2, 2), "uint8")
BAD_OPERATIONS = [
    ("BadOperand", "gemm", [(2, 3), (3, 4)], [(2, 4)], [0, 0, 0]),
    ("BadOperand", "gemm", [(2, 3), None, None], [(2, 4)], [0, 0, 0]),
    ("BadShape", "gemm", [(2, 3), (4, 4), None], [(2, 4)], [0, 0, 0]),
    ("BadShape", "gemm", [(2, 3), (3, 4), (3,)], [(2, 4)], [0, 0, 0]),
    ("BadShape", "gemm", [(2, 3), (3, 4), None], [(2, 4, 1)], [0, 0, 0]),
    ("BadDtype", "gemm", [(2, 3), (3, 4), None], [((2, 4), "uint8")], [0, 0, 0]),
    ("BadAttribute", "gemm", [(2, 3), (3, 4), None], [(2, 4)], [0, 2, 0]),
    ("BadAttribute", "gemm", [(2, 3), (3, 4), None], [(2, 4)], [0, 0]),
    ("BadShape", "conv", [(1, 2, 3, 3), (4, 3, 1, 1), None], [(1, 4, 3, 3)], [*ONES, 1, 0]),
    ("BadShape", "conv", [(1, 2, 3, 3), (4, 2, 1, 1), None], [(1, 4, 3, 4)], [*ONES, 1, 0]),
    ("BadShape", "conv", [(1, 2, 3, 3), (4, 2, 4, 4), None], [(1, 4, 1, 1)], [*ONES, 1, 0]),
    ("BadAttribute", "conv", [(1, 2, 3, 3), (4, 2, 1, 1), None], [(1, 4, 3, 3)], [0, *ONES[1:], 1, 0]),
    ("BadAttribute", "conv", [(1, 2, 3, 3), (4, 2, 1, 1), None], [(1, 4, 3, 3)], [*ONES, 1, 2]),
    ("BadAttribute", "conv", [(1, 2, 3, 3), (4, 2, 1, 1), None], [(1, 4, 3, 3)], [*ONES, 1, bits(-6.0)]),
    ("BadAttribute", "conv", [(1, 2, 3, 3), (4, 2, 1, 1), None], [(1, 4, 3, 3)], [*ONES, 1, bits(float("inf"))]),
    ("BadAttribute", "conv", [(1, 2, 3, 3), (4, 2, 3, 3), None], [(1, 4, 1, 1)], [*ONES, 1, bits(6.0)]),
    ("BadAttribute", "conv", [(1, 2, 3, 3), (2, 1, 1, 1), None], [(1, 2, 3, 3)], [*ONES, 2, bits(6.0)]),
    ("BadAttribute", "conv_grad_x", [(1, 4, 3, 3), (4, 2, 1, 1)], [(1, 2, 3, 3)], [*ONES, 1, bits(6.0)]),
    ("BadAttribute", "conv", [(1, 2, 3, 3), (4, 2, 1, 1), None], [(1, 4, 3, 3)], [65536, *ONES[1:], 1, 0]),
    ("BadAttribute", "conv", [(1, 2, 3, 3), (4, 2, 1, 1), None], [(1, 4, 3, 3)], [1, 1, -1, 0, 0, 0, 1, 1, 1, 0]),
    ("BadAttribute", "conv", [(1, 2, 3, 3), (4, 2, 1, 1), None], [(1, 4, 3, 3)], [*ONES[:6], 0, 1, 1, 0]),
    ("BadAttribute", "conv", [(1, 2, 3, 3), (4, 2, 1, 1), None], [(1, 4, 3, 3)], [*ONES, 0, 0]),
    ("BadAttribute", "conv", [(1, 2, 3, 3), (4, 2, 1, 1), None], [(1, 4, 3, 3)], [*ONES, 3, 0]),
    ("BadAttribute", "conv", [(1, 2, 3, 3), (4, 2, 1, 1), None], [(1, 4, 3, 3)], [*ONES, -2147483648, 0]),
    ("BadAttribute", "conv_grad_w", [(1, 4, 3, 3), (1, 2, 3, 3)], [(4, 2, 1, 1)], [*ONES, 1, 1]),
    ("BadAttribute", "conv_grad_x", [(1, 4, 3, 3), (4, 2, 1, 1)], [(1, 2, 3, 3)], [*ONES, 1, 1]),
    ("BadShape", "relu", [(3,)], [(4,)], []),
    ("BadShape", "relu_grad", [(3,), (4,)], [(3,)], []),
    ("BadDtype", "maxpool", [(1, 1, 2, 2)], [(1, 1, 2, 2), ((1, 1, 2, 2), "float32")], [*ONES, 1, 1]),
    ("BadShape", "maxpool", [(1, 1, 2, 2)], [(1, 1, 2, 2), ((1, 1, 2, 1), "uint8")], [*ONES, 1, 1]),
    ("BadAttribute", "maxpool", [(1, 1, 2, 2)], [(1, 1, 2, 2), INDEX], [*ONES, 0, 1]),
    ("BadAttribute", "maxpool", [(1, 1, 2, 2)], [(1, 1, 2, 2), INDEX], [1, 1, 1, 0, 0, 1, 1, 1, 2, 2, 1]),
    (
        "BadAttribute",
        "maxpool",
        [(1, 1, 1, 1)],
        [(1, 1, 3, 1), ((1, 1, 3, 1), "uint8")],
        [1, 1, 1, 0, 1, 0, 1, 1, 1, 1],
    ),
    ("BadAttribute", "avgpool", [(1, 1, 1, 1)], [(1, 1, 1, 1)], [1, 1, 2, 0, 2, 0, 4, 1, 2, 1, 0]),
    ("BadAttribute", "avgpool", [(1, 1, 2, 2)], [(1, 1, 2, 2)], [*ONES, 1, 1]),
    ("BadAttribute", "avgpool", [(1, 1, 2, 2)], [(1, 1, 2, 2)], [*ONES, 1, 1, 7]),
    ("BadShape", "add", [(3,), (4,)], [(4,)], []),
    ("BadShape", "add", [(1,), (1,)], [(4,)], []),
    ("BadShape", "mul", [(3, 1), (3,)], [(3,)], []),
    ("BadAttribute", "reduce_sum", [(3,)], [()], [2, bits(1)]),
    ("BadAttribute", "reduce_sum", [(3,)], [()], [-1, bits(1)]),
    ("BadAttribute", "reduce_sum", [(3,)], [()], [1, bits(float("nan"))]),
    ("BadShape", "reduce_sum", [(3, 2)], [(3,)], [1, bits(1)]),
    ("BadAttribute", "transpose", [(3, 2)], [(2, 3)], [1, 1]),
    ("BadAttribute", "transpose", [(3, 2)], [(2, 3)], [1, -1]),
    ("BadAttribute", "transpose", [(3, 2)], [(2, 3)], [1]),
    ("BadShape", "transpose", [(3, 2)], [(3, 2)], [1, 0]),
    ("BadDtype", "softmax_xent", [(4, 3), (4,)], [(), (4, 3)], []),
    ("BadShape", "softmax_xent", [(5, 3), LABELS], [(), (5, 3)], []),
    ("BadShape", "softmax_xent", [(4, 3), LABELS], [(1,), (4, 3)], []),
    ("BadShape", "softmax_xent_grad", [(4, 3), LABELS, (1,)], [(4, 3)], []),
    ("BadShape", "softmax_xent", [(2, 3), LABELS], [(), (2, 3)], [3]),
    ("BadShape", "softmax_xent", [(5, 3), LABELS], [(), (5, 3)], [0]),
    ("BadAttribute", "softmax_xent", [(2, 3), LABELS], [(), (2, 3)], [-1]),
    ("BadAttribute", "softmax_xent_grad", [(2, 3), LABELS, ()], [(2, 3)], [0, 0]),
    ("BadDtype", "sampled_softmax", [(4, 3), (4,), (5, 3), None], [(), (4, 3), (5, 3)], [0, 0]),
    ("BadShape", "sampled_softmax", [(4, 3), LABELS, (5, 2), None], [(), (4, 3), (5, 2)], [0, 0]),
    ("BadShape", "sampled_softmax", [(4, 3), LABELS, (5, 3), (4,)], [(), (4, 3), (5, 3)], [0, 0]),
    ("BadShape", "sampled_softmax", [(4, 3), LABELS, (5, 3), None], [(), (3, 4), (5, 3)], [0, 0]),
    ("BadShape", "sampled_softmax", [(4, 3), LABELS, (5, 3), None], [(), (4, 3), (3, 5)], [0, 0]),
    ("BadShape", "sampled_softmax", [(3, 3), LABELS, (5, 3), None], [(), (3, 3), (5, 3)], [0, 0]),
    ("BadShape", "sampled_softmax", [(3, 3), LABELS, (5, 3), None], [(), (3, 3), (5, 3)], [0, 0, 2]),
    ("BadAttribute", "sampled_softmax", [(4, 3), LABELS, (5, 3), None], [(), (4, 3), (5, 3)], [0]),
    ("BadAttribute", "sampled_softmax", [(4, 3), LABELS, (5, 3), None], [(), (4, 3), (5, 3)], [0, 6]),
    ("BadAttribute", "sampled_softmax", [(4, 3), LABELS, (5, 3), None], [(), (4, 3), (5, 3)], [0, -1]),
    ("BadAttribute", "sampled_softmax", [(4, 3), LABELS, (5, 3), None], [(), (4, 3), (5, 3)], [bits(-1), 0]),
    ("BadAttribute", "sampled_softmax", [(4, 3), LABELS, (5, 3), None], [(), (4, 3), (5, 3)], [bits(float("inf")), 0]),
    ("BadOperand", "sgd", [(3,), (3,), (), None], [(3,), None], [0, 0, 0]),
    ("BadShape", "copy", [(3, 2)], [(5,)], []),
    ("BadDtype", "copy", [(3,)], [((3,), "uint8")], []),
]


@pytest.mark.parametrize(("rule", "op", "inputs", "outputs", "attrs"), BAD_OPERATIONS)
def test_an_operation_that_does_not_fit_is_refused(
    rule: str, op: str, inputs: list, outputs: list, attrs: list
) -> None:
    assert f"operation 0 ({op})" in refused(rule, operation(op, inputs, outputs, attrs))


def test_labels_that_the_program_makes_are_refused() -> None:
    def build(writer: PlanWriter) -> None:
        y, made = writer.tensor("y", (4,), BATCH, "int32"), writer.tensor("", (4,), TEMPORARY, "int32")
        writer.op("copy", [y], [made])
        logits, probs = writer.tensor("", (4, 3)), writer.tensor("", (4, 3))
        writer.op("softmax_xent", [logits, made], [writer.tensor("loss", (), OUTPUT), probs])

    assert "labels" in refused("BadOperand", build)


def test_momentum_without_a_velocity_is_refused() -> None:
    def build(writer: PlanWriter) -> None:
        w, g, lr = (
            writer.tensor(n, s, r) for n, s, r in [("w", (3,), TRAINED), ("g", (3,), BATCH), ("lr", (), SCALAR)]
        )
        writer.op("sgd", [w, g, lr, None], [w, None], [bits(0.5), 0, 0])

    assert "velocity" in refused("BadAttribute", build)


@pytest.mark.parametrize(
    ("rule", "changes", "attrs"),
    [
        ("BadShape", {"a": (5, 4)}, [0, 0, 0, 0, 0]),
        ("BadShape", {"b": (3, 5)}, [0, 0, 0, 0, 0]),
        ("BadShape", {"b": (3, 4)}, [0, 1, 0, 0, 0]),
        ("BadShape", {"w": (20,), "v": (20,)}, [0, 0, 0, 0, 0]),
        ("BadShape", {"v": (4, 5)}, [0, 0, 0, 0, 0]),
        ("BadShape", {"w": (5, 4, 1), "v": (5, 4, 1)}, [0, 0, 0, 0, 0]),
        ("BadShape", {"lr": (1,)}, [0, 0, 0, 0, 0]),
        ("BadAttribute", {}, [2, 0, 0, 0, 0]),
        ("BadAttribute", {}, [0, 0, bits(float("nan")), 0, 0]),
        ("BadAttribute", {}, [0, 0, 0, bits(float("inf")), 0]),
        ("BadAttribute", {}, [0, 0, 0, 0, 2]),
        ("BadAttribute", {}, [0, 0, 0, 0]),
        ("BadAttribute", {"v": None}, [0, 0, bits(0.5), 0, 0]),
        ("BadOperand", {"lr": None}, [0, 0, 0, 0, 0]),
        ("BadOperand", {"out": (5, 4)}, [0, 0, 0, 0, 0]),
        ("Overlap", {"a": "w", "b": (4, 4)}, [0, 0, 0, 0, 0]),
        ("Overlap", {"b": "v", "a": (5, 5)}, [0, 0, 0, 0, 0]),
    ],
)
def test_an_update_by_a_product_that_does_not_fit_is_refused(rule: str, changes: dict, attrs: list[int]) -> None:
    def build(writer: PlanWriter) -> None:
        shapes = {"a": (5, 3), "b": (3, 4), "w": (5, 4), "lr": (), "v": (5, 4)} | changes
        roles = {"w": TRAINED, "v": STATE, "out": STATE}
        t = {n: writer.tensor(n, s, roles.get(n, BATCH)) for n, s in shapes.items() if isinstance(s, tuple)}
        t |= {n: t[s] for n, s in shapes.items() if isinstance(s, str)}
        inputs = [t.get(n) for n in ("a", "b", "w", "lr", "v")]
        writer.op("gemm_sgd", inputs, [t.get("out", t["w"]), t.get("v")], attrs)

    assert "operation 0 (gemm_sgd)" in refused(rule, build)


@pytest.mark.parametrize(
    ("op", "a", "b", "shape", "overlap"),
    [
        ("relu", 0, 64, (20,), True),  # partial
        ("relu", 0, 0, (20,), False),  # exact: in place
        ("copy", 64, 0, (20,), True),
        ("transpose", 0, 0, (4, 5), True),  # exact, but not elementwise
    ],
)
def test_outputs_may_alias_inputs_only_exactly_and_elementwise(
    op: str, a: int, b: int, shape: tuple[int, ...], *, overlap: bool
) -> None:
    writer = PlanWriter()
    x, y = writer.tensor("", shape, offset=a), writer.tensor("", shape, offset=b)
    writer.op(op, [x], [y], [0, 1] if op == "transpose" else [])
    if overlap:
        with pytest.raises(plan.OverlapError):
            plan.read_plan(writer.seal())
    else:
        plan.read_plan(writer.seal())


def test_two_outputs_on_one_place_are_refused() -> None:
    def build(writer: PlanWriter) -> None:
        logits, y = writer.tensor("", (4, 3)), writer.tensor("y", (4,), BATCH, "int32")
        loss = writer.tensor("", ())
        writer.op("softmax_xent", [logits, y], [loss, writer.tensor("", (4, 3), offset=writer.tensors[loss].offset)])

    assert "two outputs" in refused("Overlap", build)


def test_a_workspace_below_a_kernels_need_is_refused() -> None:
    shapes = [[8, 64, 32, 32], [64, 64, 3, 3], None, [8, 64, 30, 30]]
    attrs = [*ONES, 1, 0]
    need = _core.workspace_bytes(2, shapes, attrs)
    build = operation("conv", [tuple(s) if s else None for s in shapes[:3]], [tuple(shapes[3])], attrs)
    assert str(need) in refused("WorkspaceTooSmall", build, need - 1)


def test_the_workspace_does_not_grow_with_the_batch_nor_with_the_instruction_set() -> None:
    needs = [
        _core.workspace_bytes(opcode, [[n, 64, 32, 32], [64, 64, 3, 3], *extra, [n, 64, 30, 30]], [*ONES, 1, 0])
        for n in (8, 1024)
        for opcode, extra in [(2, [None])]
    ]
    assert needs[0] == needs[1] < 1 << 20


def test_a_window_whose_scratch_would_overflow_is_refused() -> None:
    attrs = [1, 1, 65535, 65535, 65535, 65535, 65535, 65535, 1, 0]
    rows, columns = (59999 * 65535 + 1 - 2 * 65535), (19 * 65535 + 1 - 2 * 65535)
    with pytest.raises(_core.PlanError, match=r"BadAttribute.*scratch"):
        _core.workspace_bytes(2, [[1, 1, rows, columns], [1, 1, 60000, 20], None, [1, 1, 1, 1]], attrs)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_changed_bytes_are_refused_or_run(data: st.DataObject) -> None:
    writer = tiny()
    y, loss = writer.tensor("labels", (4,), BATCH, "int32"), writer.tensor("loss", (), OUTPUT)
    image, w = writer.tensor("image", (2, 2, 6, 7), BATCH), writer.tensor("kernel", (4, 1, 3, 2), FROZEN)
    conv, pool, index = (
        writer.tensor("", (2, 4, *s), dtype=d) for s, d in [((4, 3), "float32"), ((2, 1), "float32"), ((2, 1), "uint8")]
    )
    writer.op("conv", [image, w, None], [conv], [1, 2, 0, 0, 0, 0, 1, 1, 2, 1])
    writer.op("maxpool", [conv], [pool, index], [2, 2, 0, 0, 0, 0, 1, 1, 2, 2])
    logits, probs = writer.tensor("", (4, 5)), writer.tensor("", (4, 5))
    writer.op("softmax_xent", [logits, y], [loss, probs])
    body = bytearray(writer.seal()[:-32])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(8, len(body) - 1))
        body[at] = data.draw(st.sampled_from([0, 1, 2, 3, 5, 7, 8, 16, 64, 127, 128, 255]))
    try:
        read = plan.read_plan(with_checksum(bytes(body)))
    except plan.PlanError as error:
        event(error.rule)
        return
    engine = Engine(read)
    engine.step()
