"""`edge-runtime bench freeze`: training the last block of each network, its frozen layers below as a plan of their own.

T18     a step of the last block: the frozen prefix computed in it, beside torch that trains the last block
T19     a step from the second epoch on: features taken from the cache, beside torch that trains everything
prefix  the prefix alone, beside ONNX Runtime running the same layers

One thread, float32, SGD with momentum. Ours and theirs alternate in one process; a time is the median over the
blocks of processor time a step, the spread of a ratio is that of the blocks. torch runs the frozen layers in eval
mode, without their gradients, in the better of its two memory formats. The bound is the peer's time over the
multiply-adds of ours at the peak rate of this machine.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from bench.recording import machine, save
from bench.timing import alternate, judged, timed
from bench.training_products import peak_rate
from coordinator.evaluate import ort
from edge_runtime.data import Dataset
from edge_runtime.engine import Engine
from edge_runtime.features import Budget, Features
from edge_runtime.plan import read_plan
from models.compiler import weights_of
from models.compiler.prefix import Split, compile_split
from models.compiler.rules import Sgd
from support.networks import NETWORKS, Network, Vit, export

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

LR, MOMENTUM = 0.001, 0.9
Steps = dict[str, "Callable[[], object]"]


@dataclass(frozen=True)
class Last:
    """The last block of a network: patterns of its tensors, its modules in torch, and what is asked for."""

    network: str
    trainable: tuple[str, ...]
    modules: tuple[str, ...]
    t18: float
    t19: float


LAST = (
    Last("lenet5", ("7.*", "9.*", "11.*"), ("7", "9", "11"), 2.7, 20.0),
    Last("har_cnn", ("9.*", "11.*"), ("9", "11"), 1.1, 15.0),
    Last("resnet8", ("5.*", "8.*"), ("5", "8"), 1.4, 4.5),
    Last("mobilenet_v2", ("19.*", "2?.*"), ("19", "20", "21", "25"), 2.3, 12.0),
    Last("r2plus1d_10", ("6.*", "9.*"), ("6", "9"), 1.5, 25.0),
    Last("vit_tiny", ("blocks.5.*", "norm.*", "head.*"), ("blocks.5", "norm", "head"), 1.05, 6.5),
)


class Bottom(nn.Module):
    """The frozen layers of a network alone."""

    def __init__(self, model: nn.Module, last: Last) -> None:
        super().__init__()
        self.model = model if isinstance(model, Vit) else model[: int(last.modules[0])]  # type: ignore[index]
        if isinstance(model, Vit):
            model.blocks, model.norm, model.head = model.blocks[:-1], nn.Identity(), nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the last block takes."""
        if not isinstance(self.model, Vit):
            return self.model(x)
        rows = self.model.patches(x).flatten(2).transpose(1, 2)
        rows = torch.cat([self.model.token.expand(x.shape[0], -1, -1), rows], dim=1) + self.model.positions
        return self.model.blocks(rows)


@dataclass(frozen=True)
class Setting:
    """One network with a batch, compiled and exported."""

    network: Network
    last: Last
    model: nn.Module
    weights: dict[str, NDArray[np.float32]]
    split: Split
    x: NDArray[np.float32]
    y: NDArray[np.int32]


def setting_of(last: Last) -> Setting:
    """The same weights and batch for everybody; running statistics have seen some data."""
    network = NETWORKS[last.network]
    torch.manual_seed(1)
    model = network.build().train()
    with torch.no_grad():
        model(torch.randn(8, *network.shape))
    onnx = export(copy.deepcopy(model), network)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((network.batch, *network.shape)).astype(np.float32)
    y = rng.integers(0, network.classes, network.batch).astype(np.int32)
    split = compile_split(onnx, batch=network.batch, trainable=last.trainable, rule=Sgd(momentum=MOMENTUM))
    weights = weights_of(onnx)
    model.load_state_dict({n: torch.from_numpy(a.copy()) for n, a in weights.items()}, strict=False)
    return Setting(network, last, model, weights, split, x, y)


def ours(setting: Setting, *, cached: bool) -> Callable[[], object]:
    """A step as a board makes it: batch columns filled, then the training plan."""
    assert setting.split.prefix is not None
    dataset, rows = Dataset(setting.x, setting.y), np.random.default_rng(2).permutation(len(setting.y))
    features = Features(read_plan(setting.split.prefix.plan), setting.weights, dataset, 1, lambda: None)
    if cached:
        features.keep(Budget(len(setting.y), "memory", complete=True), None, print)
    engine = Engine(read_plan(setting.split.training.plan))
    report = setting.split.training.report
    for name in (*report.trained, *report.frozen):
        engine.write(name, setting.weights[name])
    engine.write("lr", np.array(LR, np.float32))
    columns, y = {name: engine.view(name) for name in setting.split.features}, engine.view("y")

    def step() -> None:
        features.fill(rows, columns)
        y[...] = setting.y[rows]
        engine.step()

    return step


def torch_steps(setting: Setting, *, frozen: bool) -> Steps:
    """Torch's step in each memory format it may prefer."""
    formats = {"nchw": torch.contiguous_format}
    if len(setting.network.shape) == 3:
        formats["nhwc"] = torch.channels_last
    return {f"torch {name}": _torch_step(setting, layout, frozen=frozen) for name, layout in formats.items()}


def _torch_step(setting: Setting, layout: torch.memory_format, *, frozen: bool) -> Callable[[], object]:
    model = copy.deepcopy(setting.model).train(not frozen)
    for name, module in model.named_modules():
        if frozen and any(name == m or name.startswith(m + ".") for m in setting.last.modules):
            module.train()
    for name, p in model.named_parameters():
        p.requires_grad_(not frozen or any(name.startswith(m + ".") for m in setting.last.modules))
    x = torch.from_numpy(setting.x)
    if layout is torch.channels_last:
        model, x = model.to(memory_format=layout), x.to(memory_format=layout)
    y = torch.from_numpy(setting.y.astype(np.int64))
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], LR, momentum=MOMENTUM)

    def step() -> None:
        optimiser.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimiser.step()

    return step


def prefix_steps(setting: Setting) -> Steps:
    """The frozen layers over one batch: our plan, and ONNX Runtime on the same layers; they must agree."""
    assert setting.split.prefix is not None
    features = Features(
        read_plan(setting.split.prefix.plan), setting.weights, Dataset(setting.x, setting.y), 1, lambda: None
    )
    rows = np.arange(len(setting.y))
    (name,) = setting.split.features
    made = np.empty((len(rows), setting.split.features[name] // 4), np.float32)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    bottom = Bottom(copy.deepcopy(setting.model), setting.last).eval()
    session = ort.InferenceSession(_inference_onnx(bottom, setting), options, providers=["CPUExecutionProvider"])
    steps: Steps = {
        "ours": lambda: features.fill(rows, {name: made}),
        f"onnxruntime {ort.__version__}": lambda: session.run(None, {"input": setting.x}),
    }
    steps["ours"]()
    # Sorted, since the cut may lie behind a change of layout.
    theirs = np.sort(session.run(None, {"input": setting.x})[0].reshape(len(rows), -1))
    if theirs.shape == made.shape and not np.allclose(np.sort(made), theirs, atol=1e-3 * np.abs(theirs).max()):
        raise RuntimeError(f"{setting.last.network}: the prefix and ONNX Runtime disagree")
    return steps


def _inference_onnx(bottom: nn.Module, setting: Setting) -> bytes:
    import io  # noqa: PLC0415 - as the exporter below, of this one function
    import warnings  # noqa: PLC0415

    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter announces its successor
        torch.onnx.export(bottom, (torch.from_numpy(setting.x),), file, dynamo=False, input_names=["input"])
    return file.getvalue()


def t18_rows(peak: float) -> list[dict[str, Any]]:
    """A step of the last block, prefix included; `peak` is in multiply-adds a second."""
    return [_row("T18", setting_of(last), peak, cached=False) for last in LAST]


def t19_rows(peak: float) -> list[dict[str, Any]]:
    """A step on kept features beside torch's whole step; `peak` is in multiply-adds a second."""
    return [_row("T19", setting_of(last), peak, cached=True) for last in LAST]


def _row(row: str, setting: Setting, peak: float, *, cached: bool) -> dict[str, Any]:
    steps = {"ours": ours(setting, cached=cached), **torch_steps(setting, frozen=not cached)}
    times = alternate({name: timed(step) for name, step in steps.items()})
    best = min((name for name in times if name != "ours"), key=lambda name: statistics.median(times[name]))
    target = setting.last.t19 if cached else setting.last.t18
    what = "kept features" if cached else "frozen prefix"
    return {
        "id": row,
        "work": f"{setting.last.network} last block, {what}, batch {setting.network.batch}",
        "peer": f"{best} {torch.__version__}" + (", whole network" if cached else ", last block"),
        **judged(times["ours"], times[best], target, _products(setting, cached=cached) / peak),
    }


def _products(setting: Setting, *, cached: bool) -> int:
    assert setting.split.prefix is not None
    below = setting.split.prefix.report.forward_multiply_adds
    rows = min(8, setting.network.batch)
    return sum(setting.split.training.report.multiply_adds) + (0 if cached else below * setting.network.batch // rows)


def prefix_rows(peak: float) -> list[dict[str, Any]]:
    """The prefix alone, ours beside ONNX Runtime; `peak` is in multiply-adds a second."""
    rows = []
    for last in LAST:
        setting = setting_of(last)
        times = alternate({name: timed(step) for name, step in prefix_steps(setting).items()})
        peer = next(name for name in times if name != "ours")
        products = _products(setting, cached=False) - _products(setting, cached=True)
        rows.append(
            {
                "id": "prefix",
                "work": f"{last.network} frozen prefix, batch {setting.network.batch}",
                "peer": peer,
                **judged(times["ours"], times[peer], None, products / peak),
            }
        )
    return rows


def main(argv: list[str] | None = None) -> int:
    """Run the bench, print a table or one JSON object, and keep it in tests/bench/results/."""
    parser = argparse.ArgumentParser(
        prog="edge-runtime bench freeze", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    peak = peak_rate()
    rows = [*t18_rows(peak), *t19_rows(peak), *prefix_rows(peak)]
    result = {"bench": "freeze", "machine": {**machine(), "peak_gflops": round(2e-9 * peak, 1)}, "rows": rows}
    save(result)
    if options.json:
        print(json.dumps(result))
        return 0
    for row in rows:
        print(
            f"{row['id']:7}{1e3 * row['ours_s']:9.2f} ms{1e3 * row['peer_s']:9.2f} ms{row['ratio']:7.2f} x"
            f"  target {row['target'] or '-'}{'' if row['met'] else ' (missed)'}  {row['work']}, {row['peer']}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
