"""Which stored tensors are parameters; what exporters leave to be known; sequences of tensors."""

import copy
import importlib.util
import io
import warnings
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from numpy.typing import NDArray
from test_onnx_import import assert_equals_onnxruntime, model, weights

from edge_runtime import _core
from models.compiler import ModelError, UnsupportedOp, compile_training, import_onnx, weights_of
from models.compiler.onnx_stored import KIND, MADE_OF
from models.compiler.rules import Sgd

Facts = dict[str, str]
STEPS, BATCH, CLASSES = 6, 5, 4


def told(data: bytes, facts: dict[str, Facts]) -> bytes:
    """The same model, with what an exporter says of some of its tensors."""
    proto = onnx.load_model_from_string(data)
    del proto.graph.value_info[:]
    for name, entries in facts.items():
        info = proto.graph.value_info.add(name=name)
        info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        for key, value in entries.items():
            info.metadata_props.add(key=key, value=value)
    return bytes(proto.SerializeToString())


def scaled(**stored: NDArray[Any]) -> bytes:
    """The product with w, scaled."""
    nodes = [oh.make_node("MatMul", ["in", "w"], ["h"]), oh.make_node("Mul", ["h", "scale"], ["out"])]
    return model(nodes, {"w": weights(4, 3), "scale": weights(3)} | stored, ["N", 4])


def test_a_buffer_that_the_exporter_names_is_a_constant() -> None:
    graph = import_onnx(told(scaled(), {"w": {KIND: "PARAMETER"}, "scale": {KIND: "BUFFER"}}), batch=2)
    assert [p.name for p in graph.parameters] == ["w"]
    assert graph.notes == ("initializer 'scale' is no parameter of the module and is taken as a constant",)


def test_a_tensor_that_is_written_in_a_modules_code_is_a_constant() -> None:
    graph = import_onnx(told(scaled(), {"scale": {KIND: "CONSTANT_TENSOR"}}), batch=2)
    assert [p.name for p in graph.parameters] == ["w"]


def test_running_statistics_stay_tensors_that_travel_though_they_are_buffers() -> None:
    names = ["gain", "bias", "mean", "spread"]
    node = oh.make_node("BatchNormalization", ["in", *names], ["out"])
    stored = {n: np.abs(weights(3)) for n in names}
    data = told(model([node], stored, ["N", 3, 5]), {"mean": {KIND: "BUFFER"}, "spread": {KIND: "BUFFER"}})
    assert set(weights_of(data)) == set(names)


@pytest.mark.parametrize(
    ("sources", "trained"),
    [
        ("['val_3', 'val_12']", ["w"]),
        ("['h', 'val_12']", ["w"]),  # the shape of a value of the graph
        ("['arange', 'mul_3', '_to_copy_12', 'val_1']", ["w"]),
        ("['clone', 'lifted_tensor_0', 'val_1']", ["w"]),
        ("['gain', 'val_12']", ["w", "scale"]),
        ("['gain', 'mul_3', 'arange']", ["w", "scale"]),
        ("['layer.scale']", ["w", "scale"]),
        ("not a list", ["w", "scale"]),
    ],
)
def test_what_the_exporter_computed_of_a_formulas_numbers_is_a_constant(sources: str, trained: list[str]) -> None:
    graph = import_onnx(told(scaled(), {"scale": {MADE_OF: sources}}), batch=2)
    assert [p.name for p in graph.parameters] == trained


def test_a_mask_of_minus_infinities_is_a_constant_and_its_rows_are_ignored() -> None:
    mask = np.triu(np.full((4, 4), -np.inf, np.float32), 1)
    nodes = [
        oh.make_node("MatMul", ["in", "w"], ["h"]),
        oh.make_node("Add", ["h", "mask"], ["open"]),
        oh.make_node("Softmax", ["open"], ["out"], axis=-1),
    ]
    data = model(nodes, {"w": weights(4, 4), "mask": mask}, ["N", 4, 4])
    graph = import_onnx(data, batch=2)
    assert [p.name for p in graph.parameters] == ["w"]
    assert graph.notes == ("initializer 'mask' is a mask of zeros and minus infinities and is taken as a constant",)
    assert_equals_onnxruntime(data, (2, 4, 4))


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_other_values_that_are_not_finite_are_refused_with_what_to_do(bad: float) -> None:
    with pytest.raises(ModelError, match=r"'scale' holds NaN or infinity.*export the model with finite values"):
        weights_of(scaled(scale=np.array([0.0, -np.inf, bad], np.float32)))


def test_a_tensor_that_several_nodes_read_is_noted_since_exporters_merge_equal_ones() -> None:
    nodes = [oh.make_node("MatMul", ["in", "w"], ["h"]), oh.make_node("MatMul", ["h", "w"], ["out"])]
    (note,) = import_onnx(model(nodes, {"w": weights(4, 4)}, ["N", 4]), batch=2).notes
    assert note.startswith("read by several nodes, and trained as one tensor each")
    assert note.endswith(": 'w'")
    assert not import_onnx(scaled(), batch=2).notes


@pytest.mark.parametrize(("bias", "noted"), [("w_bias", True), ("b", False)])
def test_a_normalisation_that_the_exporter_folded_into_a_convolution_is_noted(bias: str, *, noted: bool) -> None:
    data = model(
        [oh.make_node("Conv", ["in", "w", bias], ["out"])], {"w": weights(3, 2, 1), bias: weights(3)}, ["N", 2, 4]
    )
    told_of = [note for note in import_onnx(data, batch=2).notes if "folded into 1 weights, 'w' first" in note]
    assert len(told_of) == noted


@pytest.mark.parametrize(("op", "operand"), [("Expand", [1 << 20, 1 << 20]), ("Tile", [1 << 40])])
def test_known_numbers_are_not_multiplied_without_bound(op: str, operand: list[int]) -> None:
    nodes = [
        oh.make_node(op, ["one", "many"], ["all"]),
        oh.make_node("ReduceSum", ["all"], ["sum"], keepdims=0),
        oh.make_node("Cast", ["sum"], ["number"], to=onnx.TensorProto.FLOAT),
        oh.make_node("Mul", ["in", "number"], ["out"]),
    ]
    stored = {"one": np.ones(1, np.int64), "many": np.array(operand, np.int64)}
    with pytest.raises(ModelError):
        import_onnx(model(nodes, stored, ["N", 4]), batch=2)


def picked(split: NDArray[np.int64] | None, index: int, **attributes: int) -> bytes:
    stored = {"index": np.array(index, np.int64)} | ({} if split is None else {"split": split})
    nodes = [
        oh.make_node("SplitToSequence", ["in", *(["split"] if split is not None else [])], ["all"], **attributes),
        oh.make_node("SequenceAt", ["all", "index"], ["out"], name="pick"),
    ]
    return model(nodes, stored, ["N", 5, 3])


@pytest.mark.parametrize(
    ("split", "index", "attributes"),
    [
        (np.array(2, np.int64), 0, {"axis": 1}),
        (np.array(2, np.int64), 2, {"axis": 1}),  # the last piece is smaller
        (np.array([1, 3, 1], np.int64), 1, {"axis": -2}),
        (None, 4, {"axis": 1, "keepdims": 0}),
        (None, 2, {"axis": 2, "keepdims": 1}),
    ],
)
def test_a_piece_of_a_sequence_is_a_slice(
    split: NDArray[np.int64] | None, index: int, attributes: dict[str, int]
) -> None:
    assert_equals_onnxruntime(picked(split, index, **attributes), (2, 5, 3))


@pytest.mark.parametrize("index", [-1, 3])
def test_a_piece_that_is_not_one_of_those_from_the_start_is_refused_by_the_operators_name(index: int) -> None:
    with pytest.raises(UnsupportedOp, match="SplitToSequence"):
        import_onnx(picked(np.array([1, 3, 1], np.int64), index, axis=1), batch=2)


def everyday(*, normalised: bool) -> Any:
    """Layers of which the newer exporter writes sequences, casts like another tensor, masks and graphs' buffers."""
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Everyday(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.inward, self.group = nn.Conv1d(3, 8, 3, padding=1), nn.GroupNorm(2, 8)
            self.batch = nn.BatchNorm1d(8) if normalised else nn.Identity()
            self.query, self.out = nn.Linear(4, 8), nn.Linear(4, CLASSES)
            self.register_buffer("mask", torch.full((6, 6), float("-inf")).triu(1))
            self.register_buffer("edges", torch.rand(6, 6))

        def forward(self, x: Any) -> Any:
            left, right = nn.functional.relu6(self.group(self.batch(self.inward(x)))).chunk(2, 1)
            rows = (left * torch.sigmoid(right)).transpose(1, 2)
            query, key = self.query(rows + torch.arange(6)[:, None] * 0.1).split(4, -1)
            seen = (query @ key.transpose(1, 2) + self.mask).softmax(-1) @ rows
            return self.out((self.edges @ seen).mean(1))

    torch.manual_seed(4)
    return Everyday()


@pytest.mark.torch
@pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="torch's newer exporter needs onnxscript")
@pytest.mark.parametrize("optimize", [False, True])
def test_a_model_of_the_newer_exporter_trains_what_torch_trains(*, optimize: bool) -> None:
    """Unoptimised it keeps batch normalisation apart; optimised it stores numbers and transposes beside parameters."""
    torch = pytest.importorskip("torch")
    module = everyday(normalised=not optimize).train()
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter announces its own changes
        torch.onnx.export(copy.deepcopy(module), (torch.rand(2, 3, 6),), file, dynamo=True, optimize=optimize)
    data = file.getvalue()
    trained = sum(p.numel() for p in module.parameters()) + (0 if optimize else 16)  # and running statistics
    assert sum(w.size for w in weights_of(data).values()) == trained
    engine = _core.Engine(compile_training(import_onnx(data, batch=BATCH), rule=Sgd(0.9)).plan)
    for name, value in (weights_of(data) | {"lr": np.array(0.05, np.float32)}).items():
        engine.view(name)[...] = value
    twin, rng = module.double(), np.random.default_rng(5)
    optimiser = torch.optim.SGD(twin.parameters(), 0.05, momentum=0.9)
    for _ in range(STEPS):
        x, y = rng.normal(size=(BATCH, 3, 6)).astype(np.float32), rng.integers(0, CLASSES, BATCH)
        engine.view("x")[...], engine.view("y")[...] = x, y
        engine.step()
        loss = torch.nn.functional.cross_entropy(twin(torch.from_numpy(x.astype(np.float64))), torch.from_numpy(y))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        assert abs(float(engine.view("loss")) / float(loss.detach()) - 1) < 1e-5
    for name, parameter in twin.named_parameters():
        if name in weights_of(data):
            np.testing.assert_allclose(engine.view(name), parameter.detach().numpy(), rtol=0, atol=1e-5)
