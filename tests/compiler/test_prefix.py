"""Training above a frozen prefix: torch in eval mode below, and the features are each example's own."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import models.compiler.graph as g
from edge_runtime import _core
from models.compiler import CompileError, compile_training, import_onnx, weights_of
from models.compiler.evaluate import evaluate
from models.compiler.fold import fold
from models.compiler.ir import Value, topological
from models.compiler.prefix import Split, compile_split, find_cut
from models.compiler.rows import example_axes
from models.compiler.rules import AdamW, Rule, Sgd
from models.compiler.simplify import simplify
from models.compiler.training import Objective

torch = pytest.importorskip("torch")
from support.networks import NETWORKS, Network, export  # noqa: E402 - needs torch

nn, functional = torch.nn, torch.nn.functional
pytestmark = pytest.mark.torch
BATCH, STEPS = 5, 3
# Softmax takes out what the bias adds to every key: its gradient is zero, and AdamW divides rounding noise by itself.
NO_GRADIENT = {"blocks.5.qkv.bias"}


@dataclass(frozen=True)
class Case:
    """What is trained: patterns over tensor names, and the modules of torch that stay in training mode."""

    network: str
    trainable: tuple[str, ...]
    modules: tuple[str, ...]
    tolerance: float = 1e-4


CASES = [
    Case("lenet5", ("7.*", "9.*", "11.*"), ("7", "9", "11")),
    Case("har_cnn", ("11.*",), ("11",)),
    Case("resnet8", ("5.*", "8.*"), ("5", "8")),
    Case("resnet8", ("4.bn2.*", "5.*", "8.*"), ("4.bn2", "5", "8")),
    Case("resnet8", ("4.conv1.weight", "8.*"), ("4.conv1", "8")),
    Case("mobilenet_v2", ("2?.*",), ("20", "21", "25")),
    Case("r2plus1d_10", ("6.*", "9.*"), ("6", "9")),
    Case("vit_tiny", ("blocks.5.*", "norm.*", "head.*"), ("blocks.5", "norm", "head")),
]


def built(name: str) -> "nn.Module":
    """A network whose running statistics are not those it was made with."""
    torch.manual_seed(3)
    model = NETWORKS[name].build().train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(6, *NETWORKS[name].shape) * 0.7 + 0.2)
    return model


def ids(case: Case) -> str:
    return f"{case.network}-{case.trainable[0]}"


def freeze(model: "nn.Module", case: Case) -> "nn.Module":
    """What torch users do: no gradients below, and the modules there in eval mode."""
    model.eval()
    for name, module in model.named_modules():
        if any(name == m or name.startswith(m + ".") for m in case.modules):
            module.train()
    for name, p in model.named_parameters():
        p.requires_grad_(any(name.startswith(m + ".") for m in case.modules))
    return model


class Board:
    """Both engines of a split, and the weights in them."""

    def __init__(self, split: Split, weights: dict[str, NDArray[np.float32]]) -> None:
        self.training = _core.Engine(split.training.plan)
        assert split.prefix is not None, split.note
        self.prefix = _core.Engine(split.prefix.plan)
        self.features = tuple(split.features)
        self.report = split.training.report
        for name in (*self.report.trained, *self.report.frozen):
            self.training.view(name)[...] = weights[name]
        for name in split.prefix.report.frozen:
            self.prefix.view(name)[...] = weights[name]

    def compute(self, x: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """The features of any number of examples, a few at a time; other rows are NaN."""
        rows, size = self.prefix.view("x"), len(self.prefix.view("x"))
        parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in self.features}
        for first in range(0, len(x), size):
            taken = x[first : first + size]
            rows[...] = np.nan
            rows[: len(taken)] = taken
            self.prefix.step()
            for name, into in parts.items():
                into.append(self.prefix.view(name)[: len(taken)].copy())
        return {name: np.concatenate(into) for name, into in parts.items()}

    def step(self, x: NDArray[np.float32], y: NDArray[np.int32], lr: float) -> float:
        for name, array in self.compute(x).items():
            view = self.training.view(name)
            view[: len(x)] = array
            view[len(x) :] = 0
        labels = self.training.view("y")
        labels[...] = -1
        labels[: len(y)] = y
        self.training.view("lr")[...] = lr
        self.training.step()
        return float(self.training.view("loss"))


def batches(case: Case) -> list[tuple[NDArray[np.float32], NDArray[np.int32]]]:
    """The last one is short."""
    rng, network = np.random.default_rng(11), NETWORKS[case.network]
    sizes = [BATCH] * (STEPS - 1) + [BATCH - 2]
    return [
        (
            rng.normal(size=(n, *network.shape)).astype(np.float32),
            rng.integers(0, network.classes, n).astype(np.int32),
        )
        for n in sizes
    ]


@pytest.mark.parametrize(
    ("case", "rule"),
    [(case, Sgd(momentum=0.9)) for case in CASES] + [(CASES[0], AdamW()), (CASES[2], AdamW())],
    ids=[f"{ids(case)}-sgd" for case in CASES] + [f"{ids(CASES[i])}-adamw" for i in (0, 2)],
)
def test_training_above_a_frozen_prefix_follows_torch_in_eval_mode_below(case: Case, rule: Rule) -> None:
    network = NETWORKS[case.network]
    model = built(case.network)
    onnx = export(copy.deepcopy(model), network)
    weights = weights_of(onnx)
    board = Board(compile_split(onnx, batch=BATCH, trainable=case.trainable, rule=rule, prefix_batch=2), weights)
    model.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in weights.items()}, strict=False)
    freeze(model, case)
    trained = [p for p in model.parameters() if p.requires_grad]
    lr = 0.005 if isinstance(rule, Sgd) else 1e-4
    optimiser = torch.optim.SGD(trained, lr, momentum=0.9) if isinstance(rule, Sgd) else torch.optim.AdamW(trained, lr)
    for x, y in batches(case):
        optimiser.zero_grad()
        loss = functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y.astype(np.int64)))
        loss.backward()
        optimiser.step()
        assert board.step(x, y, lr) == pytest.approx(loss.item(), rel=case.tolerance)
    state = {name: t.detach().numpy() for name, t in model.state_dict().items()}
    for name in set(board.report.trained) - NO_GRADIENT:
        moved, wanted = board.training.view(name) - weights[name], state[name] - weights[name]
        assert np.linalg.norm(moved - wanted) <= 0.02 * np.linalg.norm(wanted) + 1e-6, name
    untouched = set(weights) - set(board.report.trained)
    assert all(np.array_equal(state[name], weights[name]) for name in untouched)


@pytest.mark.parametrize("case", [case for case in CASES if case.trainable[0] not in ("4.bn2.*", "7.*")], ids=ids)
def test_features_are_the_same_bits_whatever_stands_beside_an_example(case: Case) -> None:
    onnx = export(built(case.network), NETWORKS[case.network])
    rng = np.random.default_rng(5)
    x = rng.normal(size=(7, *NETWORKS[case.network].shape)).astype(np.float32)
    order = rng.permutation(7)
    split = compile_split(onnx, batch=BATCH, trainable=case.trainable, rule=Sgd(), prefix_batch=3)
    board = Board(split, weights_of(onnx))
    one, other = board.compute(x), board.compute(x[order])
    for name, bytes_of_one in split.features.items():
        assert one[name].nbytes == 7 * bytes_of_one
        assert np.array_equal(one[name][order], other[name])


def test_the_training_plan_holds_no_frozen_product_below_what_is_trained() -> None:
    onnx = export(built("resnet8"), NETWORKS["resnet8"])
    whole = compile_training(import_onnx(onnx, batch=8)).report
    split = compile_split(onnx, batch=8, trainable=("5.*", "8.*"), rule=Sgd())
    assert split.prefix is not None
    below, above = split.prefix.report, split.training.report
    assert below.forward_multiply_adds + above.forward_multiply_adds == whole.forward_multiply_adds
    assert set(split.features) == {"features/0"}  # behind the activation, where both branches of the block begin
    assert not set(below.frozen) & set(above.trained)
    assert above.temporaries_bytes < whole.temporaries_bytes / 4


def test_training_everything_or_the_first_layer_leaves_no_prefix() -> None:
    onnx = export(built("lenet5"), NETWORKS["lenet5"])
    for trainable in (("*",), ("0.*",)):
        split = compile_split(onnx, batch=2, trainable=trainable, rule=Sgd())
        assert split.prefix is None
        assert "no convolution" in split.note
        assert split.training.sha256 == compile_training(import_onnx(onnx, batch=2), trainable=trainable).sha256


def test_a_prefix_batch_below_one_is_refused() -> None:
    onnx = export(built("lenet5"), NETWORKS["lenet5"])
    with pytest.raises(CompileError, match="prefix_batch must be at least 1"):
        compile_split(onnx, batch=2, trainable=("11.*",), rule=Sgd(), prefix_batch=0)


def objective_of(logits: Value, x: Value, trained: Sequence[str]) -> Objective:
    labels = g.leaf("y", "int32", (x.shape[0],))
    return Objective(g.softmax_cross_entropy(logits, labels), (x,), labels, (), tuple(trained))


def test_every_value_that_crosses_the_cut_becomes_a_feature() -> None:
    x = g.leaf("x", "float32", (4, 6))
    low = g.relu(x @ g.leaf("a", "float32", (6, 3)))
    side = g.tanh(x @ g.leaf("b", "float32", (6, 3)))
    total = g.sum(x, [1], keepdims=True)
    cut = find_cut(objective_of(g.relu(low @ g.leaf("w", "float32", (3, 3))) * side + total, x, ["w"]))
    assert set(cut.values) == {low, side, total}


def test_what_is_cheap_and_grows_the_data_stays_behind_the_cut() -> None:
    x = g.leaf("x", "float32", (4, 6))
    small = x @ g.leaf("a", "float32", (6, 2))
    wide = g.broadcast_to(g.reshape(small, (4, 2, 1)), (4, 2, 50))
    cut = find_cut(objective_of(g.reshape(wide, (4, 100)) @ g.leaf("w", "float32", (100, 3)), x, ["w"]))
    assert [v.type.nbytes for v in cut.values] == [small.type.nbytes]


MIXING = {
    "a sum over the batch": lambda h: h - g.sum(h, [0], keepdims=True),
    "a maximum over the batch": lambda h: h - g.max(h, [0], keepdims=True),
    "rows in reverse": lambda h: g.flip(h, [0]),
    "rows moved by one": lambda h: g.concat([g.slice(h, [1, 0], [3, 6], [1, 1]), g.slice(h, [0, 0], [1, 6], [1, 1])]),
    "examples against examples": lambda h: h @ g.transpose(h) @ h,
    "a running sum": lambda h: g.cumsum(h, 0),
    "columns taken for rows": lambda h: g.reshape(g.transpose(h), (4, 6)),
}


@pytest.mark.parametrize("name", MIXING)
def test_a_prefix_that_mixes_examples_is_left_in_the_training_plan(name: str) -> None:
    x = g.leaf("x", "float32", (4, 6))
    mixed = MIXING[name](x @ g.leaf("a", "float32", (6, 6)))
    cut = find_cut(
        objective_of(g.relu(mixed @ g.leaf("b", "float32", (6, 6))) @ g.leaf("w", "float32", (6, 3)), x, "w")
    )
    assert not cut.values
    assert "mix the examples" in cut.reason


APART = {
    "attention": lambda h: g.attention(h, h, h),
    "tokens as rows": lambda h: g.reshape(g.relu(g.reshape(h, (12, 6))), (4, 3, 6)),
    "there and back": lambda h: g.transpose(g.exp(g.transpose(h, (1, 0, 2))), (1, 0, 2)),
    "pieces": lambda h: g.concat(g.split(h, [2, 4], 2)[::-1], 2),
    "padding": lambda h: g.pad(h, [0, 1, 0], [0, 0, 2], 0.5),
    "a maximum": lambda h: g.max(h, [1]),
    "heads": lambda h: g.slice(
        g.transpose(g.reshape(h, (4, 3, 2, 3)), (2, 0, 1, 3)), [1, 0, 0, 0], [1, 4, 3, 3], [1] * 4
    ),
}


@pytest.mark.parametrize("name", APART)
def test_a_proof_is_found_and_holds(name: str) -> None:
    x = g.leaf("x", "float32", (4, 3, 6))
    y = APART[name](x)
    axis = example_axes([y], [x], 4)[y]
    rng = np.random.default_rng(2)
    first = rng.normal(size=x.shape)
    second = np.where(np.arange(4)[:, None, None] == 2, rng.normal(size=x.shape), first)
    before, after = (evaluate([y], {"x": array})[0] for array in (first, second))
    parts = y.shape[axis] // 4
    changed = np.any(before != after, axis=tuple(a for a in range(before.ndim) if a != axis)).reshape(4, parts)
    assert changed.any(axis=1).tolist() == [False, False, True, False]


@pytest.mark.parametrize("bias", [0, 1])
def test_folding_a_scale_into_a_product_keeps_the_values(bias: int) -> None:
    rng = np.random.default_rng(8)
    x, w = g.leaf("x", "float32", (3, 4, 5, 5)), g.leaf("w", "float32", (6, 2, 3, 3))
    s, b, c = (g.leaf(n, "float32", (6,)) for n in "sbc")
    y = g.conv(x, w, groups=2)
    y = y + g.reshape(c, (6, 1, 1)) if bias else y
    y = y * g.reshape(s, (6, 1, 1)) + g.reshape(b, (6, 1, 1))
    z = (g.reshape(g.sum(y, [2, 3]), (3, 6)) @ g.leaf("v", "float32", (6, 5))) * g.leaf("t", "float32", (1, 5))
    given: dict[str, Any] = {v.name: rng.normal(size=v.shape) for v in (x, w, s, b, c)}
    given |= {"v": rng.normal(size=(6, 5)), "t": rng.normal(size=(1, 5))}
    outputs = simplify([z])
    folded = simplify(fold(outputs, [x]))
    scaled = [node for node in topological(folded) if node.op == "mul"]
    assert all(x.node not in topological([node.out()]) for node in scaled)
    assert np.allclose(evaluate(folded, given)[0], evaluate(outputs, given)[0], rtol=1e-12)


def streams(plan: bytes) -> set[int]:
    """The streams a plan draws from; one may be drawn again rather than kept."""
    return {op["attrs"][1] for op in _core.describe(plan)["ops"] if op["op"] == "random"}


def test_dropout_of_frozen_layers_is_off_and_that_beside_what_is_trained_is_not() -> None:
    layers = nn.Sequential(
        nn.Linear(6, 5), nn.Dropout(0.5), nn.Linear(5, 4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 3)
    )
    onnx = export(layers, Network(lambda: layers, (6,), 4, 3))
    split = compile_split(onnx, batch=4, trainable=("5.*",), rule=Sgd())
    assert split.prefix is not None
    weights = weights_of(onnx)
    board = Board(split, weights)
    x = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)
    (features,) = board.compute(x).values()
    wanted = layers[:4].eval()(torch.from_numpy(x)).detach().numpy()
    assert np.allclose(features, wanted, atol=1e-6)
    assert streams(split.training.plan) == {1}
    assert streams(compile_training(import_onnx(onnx, batch=4)).plan) == {0, 1}
