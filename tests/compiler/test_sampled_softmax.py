"""Sampled softmax in training plans: written in the graph language and read from ONNX, against torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

import models.compiler.graph as g
from edge_runtime import _core
from models.compiler import ModelError, UnsupportedOp, import_onnx
from models.compiler.onnx_objective import compile_onnx_loss
from models.compiler.rules import Sgd
from models.compiler.training import compile_loss

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.compiler.ir import Graph
    from models.compiler.training import Compiled

torch = pytest.importorskip("torch")
functional = torch.nn.functional
pytestmark = pytest.mark.torch

BATCH, IN, WIDTH, CLASSES, OWN, SCALE, LR, STEPS = 12, 9, 10, 70, 6, 5.0, 0.3, 6
FLOAT = onnx.TensorProto.FLOAT
F32 = np.float32


def operands() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    correction = np.where(np.arange(CLASSES) < OWN, 0.0, 1.7).astype(F32)
    return {
        "encoder": rng.standard_normal((IN, WIDTH)).astype(F32),
        "rows": rng.standard_normal((CLASSES, WIDTH)).astype(F32),
        "correction": correction,
    }


def written() -> Compiled:
    x, y = g.leaf("x", "float32", (BATCH, IN)), g.leaf("y", "int32", (BATCH,))
    encoder, rows = g.leaf("encoder", "float32", (IN, WIDTH)), g.leaf("rows", "float32", (CLASSES, WIDTH))
    correction = g.constant(operands()["correction"])
    loss = g.sampled_softmax(g.tanh(x @ encoder), rows, y, correction, scale=SCALE, own=OWN)
    return compile_loss(loss, (x, y), rule=Sgd(momentum=0.0))


def encoder_graph() -> Graph:
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("MatMul", ["in", "encoder"], ["h"]),
            onnx.helper.make_node("Tanh", ["h"], ["features"]),
        ],
        "encoder",
        [onnx.helper.make_tensor_value_info("in", FLOAT, ["N", IN])],
        [onnx.helper.make_tensor_value_info("features", FLOAT, ["N", WIDTH])],
        [onnx.numpy_helper.from_array(operands()["encoder"], "encoder")],
    )
    return import_onnx(model_of(graph), batch=BATCH)


def model_of(graph: onnx.GraphProto) -> bytes:
    opsets = [
        onnx.helper.make_opsetid("", 17),
        *(onnx.helper.make_opsetid(d, 1) for d in ("edge_runtime", "elsewhere")),
    ]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def onnx_loss(op: str, inputs: list[str], domain: str = "edge_runtime", **attrs: float) -> bytes:
    stored = operands()
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, inputs, ["loss"], "head", domain=domain, **attrs)],
        "loss",
        [
            onnx.helper.make_tensor_value_info("features", FLOAT, ["N", WIDTH]),
            onnx.helper.make_tensor_value_info("labels", onnx.TensorProto.INT64, ["N"]),
        ],
        [onnx.helper.make_tensor_value_info("loss", FLOAT, [])],
        [onnx.numpy_helper.from_array(stored[name], name) for name in inputs if name in stored],
    )
    return model_of(graph)


def imported() -> Compiled:
    names = ["features", "rows", "labels", "correction"]
    loss = onnx_loss("SampledSoftmax", names, scale=SCALE, own_positives=OWN)
    return compile_onnx_loss(encoder_graph(), loss, frozen=["correction"], rule=Sgd(momentum=0.0))


def torch_loss(x: torch.Tensor, y: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The formula, with an example's own label as its only positive."""
    features = functional.normalize(torch.tanh(x @ tensors["encoder"]))
    logits = SCALE * features @ functional.normalize(tensors["rows"]).T + tensors["correction"]
    hidden = (torch.arange(CLASSES)[None] < OWN) & (torch.arange(CLASSES)[None] != y[:, None])
    return functional.cross_entropy(logits.masked_fill(hidden, -torch.inf), y, ignore_index=-1)


@pytest.mark.parametrize("make", [written, imported])
@pytest.mark.parametrize("threads", [1, 3])
def test_training_equals_torch(make: Callable[[], Compiled], threads: int) -> None:
    plan = make().plan
    engine = _core.Engine(plan, threads)
    tensors = {name: torch.from_numpy(array.copy()) for name, array in operands().items()}
    trained = [tensors["encoder"].requires_grad_(), tensors["rows"].requires_grad_()]
    names = {t["name"] for t in _core.describe(plan)["tensors"]}
    for name in names & set(tensors):
        engine.view(name)[...] = tensors[name].detach().numpy()
    engine.view("lr")[...] = LR
    rng = np.random.default_rng(8)
    for _ in range(STEPS):
        x, y = rng.standard_normal((BATCH, IN)).astype(F32), rng.integers(-1, OWN, BATCH).astype(np.int32)
        engine.poison()
        engine.view("x")[...], engine.view("y")[...] = x, y
        engine.step()
        loss = torch_loss(torch.from_numpy(x), torch.from_numpy(y).long(), tensors)
        loss.backward()
        with torch.no_grad():
            for tensor in trained:
                tensor.sub_(tensor.grad, alpha=LR)
                tensor.grad = None
        assert float(engine.view("loss").reshape(())) == pytest.approx(loss.item(), rel=1e-5)
    for name in ("encoder", "rows"):
        np.testing.assert_allclose(engine.view(name), tensors[name].detach().numpy(), rtol=1e-4, atol=1e-5)


def test_a_linear_cross_entropy_is_read_without_corrections() -> None:
    loss = onnx_loss("LinearCrossEntropy", ["features", "rows", "labels"])
    ops = _core.describe(compile_onnx_loss(encoder_graph(), loss, rule=Sgd(momentum=0.0)).plan)["ops"]
    (op,) = [op for op in ops if op["op"] == "sampled_softmax"]
    assert op["attrs"] == [0, 0]
    assert op["inputs"][3] is None


def test_a_label_that_names_no_row_is_refused_before_the_step() -> None:
    engine = _core.Engine(written().plan)
    engine.view("y")[...] = CLASSES
    engine.view("rows")[...] = 2.0
    engine.view("lr")[...] = 1.0
    with pytest.raises(ValueError, match="70"):
        engine.step()
    assert (engine.view("rows") == 2.0).all()


def test_an_operator_of_another_domain_is_not_taken_for_ours() -> None:
    with pytest.raises(UnsupportedOp, match=r"elsewhere\.SampledSoftmax"):
        compile_onnx_loss(encoder_graph(), onnx_loss("SampledSoftmax", ["features", "rows", "labels"], "elsewhere"))
    with pytest.raises(UnsupportedOp, match=r"edge_runtime\.Relu"):
        compile_onnx_loss(encoder_graph(), onnx_loss("Relu", ["features"]))


def test_rows_that_do_not_fit_the_features_are_refused_by_the_nodes_name() -> None:
    with pytest.raises(ModelError, match=r"head.*rows must be"):
        compile_onnx_loss(encoder_graph(), onnx_loss("LinearCrossEntropy", ["features", "correction", "labels"]))
