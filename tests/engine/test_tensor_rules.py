"""A plan whose attributes name places outside their tensors, or functions that are not there, is refused."""

from __future__ import annotations

import pytest
from planwriter import BATCH, STATE, TEMPORARY, TRAINED, PlanWriter, bits

from edge_runtime import plan

FEW, MANY = -(2**31), 2**31 - 1
INT = "int32"
# rule, operation, shapes of the inputs (with a dtype where it is not float32), of the outputs, attributes
REFUSED = [
    ("BadAttribute", "random", [(), ()], [(3,)], [2, 0]),
    ("BadAttribute", "random", [(), ()], [(3,)], [0, -1]),
    ("BadAttribute", "random", [(), ()], [(3,)], [0]),
    ("BadShape", "random", [(1,), ()], [(3,)], [0, 0]),
    ("BadShape", "random", [(), (2,)], [(3,)], [0, 0]),
    ("BadDtype", "random", [((), INT), ()], [(3,)], [0, 0]),
    ("BadDtype", "random", [(), ()], [((3,), INT)], [0, 0]),
    ("BadAttribute", "unary", [(3,)], [(3,)], [15]),
    ("BadAttribute", "unary", [(3,)], [(3,)], [-1]),
    ("BadShape", "unary", [(3,)], [(4,)], [0]),
    ("BadDtype", "unary", [((3,), INT)], [(3,)], [0]),
    ("BadAttribute", "binary", [(3,), (3,)], [(3,)], [7]),
    ("BadShape", "binary", [(3,), (4,)], [(4,)], [0]),
    ("BadShape", "binary", [(1,), (1,)], [(4,)], [0]),
    ("BadShape", "binary", [(3, 1), (3,)], [(3,)], [0]),
    ("BadShape", "where", [(3,), (1,), (2,)], [(3,)], []),
    ("BadDtype", "where", [((3,), INT), (3,), (3,)], [(3,)], []),
    ("BadAttribute", "minmax", [(3,)], [()], [2, 1]),
    ("BadAttribute", "minmax", [(3,)], [()], [0, 2]),
    ("BadAttribute", "minmax", [(3,)], [()], [0, -1]),
    ("BadShape", "minmax", [(3, 2)], [(3,)], [0, 1]),
    ("BadAttribute", "argminmax", [(3,)], [((), INT)], [0, 1]),
    ("BadAttribute", "argminmax", [(3,)], [((), INT)], [0, FEW]),
    ("BadShape", "argminmax", [(3, 2)], [((3,), INT)], [0, 0]),
    ("BadDtype", "argminmax", [(3,)], [()], [0, 0]),
    ("BadAttribute", "topk", [(3,)], [(4,), ((4,), INT)], [0, 0, 4]),
    ("BadAttribute", "topk", [(3,)], [(3,), ((3,), INT)], [0, 0, 0]),
    ("BadShape", "topk", [(3,)], [(2,), ((3,), INT)], [0, 0, 2]),
    ("BadAttribute", "cumsum", [(3,)], [(3,)], [1, 0, 0]),
    ("BadAttribute", "cumsum", [(3,)], [(3,)], [0, 2, 0]),
    ("BadAttribute", "strided_copy", [(4,), None], [(4,)], [0, 0, 0]),
    ("BadAttribute", "strided_copy", [(4,), None], [(4,)], [0, 0, 0, 4, 1]),
    ("BadAttribute", "strided_copy", [(4,), None], [(4,)], [0, 0, 0, *[1, 1, 1] * 7]),
    ("BadAttribute", "strided_copy", [(4,), None], [(4,)], [0, 0, 0, 0, 1, 1]),
    ("BadAttribute", "strided_copy", [(4,), None], [(4,)], [0, 1, 0, 4, 1, 1]),
    ("BadAttribute", "strided_copy", [(4,), None], [(4,)], [0, 0, 1, 4, 1, 1]),
    ("BadAttribute", "strided_copy", [(4,), None], [(4,)], [0, -1, 0, 1, 1, 1]),
    ("BadAttribute", "strided_copy", [(4,), None], [(4,)], [0, 0, 0, 4, -1, 1]),
    ("BadAttribute", "strided_copy", [(4,), None], [(4,)], [0, 0, 0, 2, 1, 0]),
    ("BadAttribute", "strided_copy", [(9,), None], [(9,)], [0, 0, 0, 3, 1, 2, 2, 3, 2]),
    ("BadAttribute", "strided_copy", [(4,), None], [(4,)], [0, 0, 0, MANY, MANY, 1, MANY, FEW, 1]),
    ("BadAttribute", "strided_copy", [(4,), None], [(4,)], [0, 0, 0, *[MANY, 0, 0] * 6]),
    ("BadShape", "strided_copy", [(4,), (5,)], [(4,)], [0, 0, 0, 4, 1, 1]),
    ("BadDtype", "strided_copy", [((4,), INT), None], [(4,)], [0, 0, 0, 4, 1, 1]),
    ("BadDtype", "strided_copy", [((4,), "uint8"), None], [((4,), "uint8")], [0, 0, 0, 4, 1, 1]),
    ("BadAttribute", "gather", [(4, 2), ((3,), INT)], [(3, 2)], [2, 0]),
    ("BadAttribute", "gather", [(4, 2), ((3,), INT)], [(3, 2)], [-1, 0]),
    ("BadAttribute", "gather", [(4, 2), ((3,), INT)], [(3, 2)], [0, 2]),
    ("BadShape", "gather", [(4, 2), ((3,), INT)], [(3, 3)], [0, 0]),
    ("BadShape", "gather", [(4, 2), ((3, 3), INT)], [(3, 3)], [0, 1]),
    ("BadShape", "gather", [(4, 2), ((3,), INT)], [(3,)], [0, 1]),
    ("BadDtype", "gather", [(4, 2), (3,)], [(3, 2)], [0, 0]),
    ("BadShape", "scatter_add", [(3, 2), ((4,), INT)], [(4, 2)], [0, 0]),
    ("BadAttribute", "scatter_add", [(3, 2), ((3,), INT)], [(4, 2)], [2, 0]),
    ("BadShape", "cast", [(3,)], [((4,), INT)], []),
    ("BadShape", "matmul", [(2, 3), (3, 4)], [(2, 4)], [0, 0]),
    ("BadShape", "matmul", [(5, 2, 3), (3, 4)], [(5, 2, 4)], [0, 0]),
    ("BadShape", "matmul", [(5, 2, 3), (4, 3, 4)], [(5, 2, 4)], [0, 0]),
    ("BadShape", "matmul", [(1, 2, 3), (1, 3, 4)], [(5, 2, 4)], [0, 0]),
    ("BadShape", "matmul", [(5, 2, 3), (5, 3, 4)], [(5, 2, 4)], [0, 1]),
    ("BadAttribute", "matmul", [(5, 2, 3), (5, 3, 4)], [(5, 2, 4)], [0, 2]),
    ("BadOperand", "adamw", [(3,), (3,), (), (3,), (3,), ()], [(3,), (3,), (3,)], [0, 0, 0, 0]),
    ("BadOperand", "adamw", [(3,), (3,), (), (3,), (3,), None], [(3,), (3,), (3,)], [0, 0, 0, 0]),
    ("BadOperand", "blend", [(3,), (3,)], [(3,)], [0]),
]


def sealed(op: str, shapes: list, outs: list, attrs: list[int]) -> bytes:
    writer = PlanWriter(workspace_bytes=1 << 20)

    def put(spec: tuple | None) -> int | None:
        if spec is None:
            return None
        shape, dtype = spec if len(spec) == 2 and isinstance(spec[1], str) else (spec, "float32")
        return writer.tensor(f"t{len(writer.tensors)}", shape, TEMPORARY, dtype)

    writer.op(op, [put(s) for s in shapes], [put(s) for s in outs], attrs)
    return writer.seal()


@pytest.mark.parametrize(("rule", "op", "shapes", "outs", "attrs"), REFUSED)
def test_what_does_not_fit_the_operation_is_refused(
    rule: str, op: str, shapes: list, outs: list, attrs: list[int]
) -> None:
    with pytest.raises(plan.RULES[rule]):
        plan.read_plan(sealed(op, shapes, outs, attrs))


@pytest.mark.parametrize(
    ("place", "value"), [(0, 1.0), (0, -0.1), (1, float("nan")), (2, float("inf")), (3, float("nan"))]
)
def test_settings_of_adamw_must_be_in_range(place: int, value: float) -> None:
    attrs = [bits(v) for v in (0.9, 0.99, 1e-8, 0.0)]
    attrs[place] = bits(value)
    writer = PlanWriter()
    param, m, v = (writer.tensor(n, (3,), role) for n, role in (("p", TRAINED), ("m", STATE), ("v", STATE)))
    grad, lr, t = writer.tensor("g", (3,), BATCH), writer.tensor("lr", (), BATCH), writer.tensor("t", (), BATCH)
    writer.op("adamw", [param, grad, lr, m, v, t], [param, m, v], attrs)
    with pytest.raises(plan.BadAttributeError):
        plan.read_plan(writer.seal())


def test_a_strided_copy_must_not_overwrite_its_source() -> None:
    writer = PlanWriter()
    x = writer.tensor("x", (4,), STATE)
    writer.op("strided_copy", [x, None], [x], [0, 3, 0, 4, -1, 1])
    with pytest.raises(plan.OverlapError):
        plan.read_plan(writer.seal())
