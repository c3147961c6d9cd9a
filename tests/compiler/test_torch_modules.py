"""Modules exported by torch: the result, and the gradients of parameters and input, equal torch's in float64."""

from __future__ import annotations

import importlib.util
import io
import itertools
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
from forward import run_on_engine

import models.compiler.graph as g
from models.compiler import import_onnx, weights_of
from models.compiler.autodiff import gradients

torch = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional
pytestmark = pytest.mark.torch

if TYPE_CHECKING:
    from collections.abc import Callable


class Last(nn.Module):  # type: ignore[misc, name-defined]
    """One of several outputs of a recurrent network: all states, and the last ones beside them."""

    def __init__(self, network: torch.nn.Module, hidden: int) -> None:
        super().__init__()
        self.network = network
        self.first = nn.Parameter(torch.randn(network.num_layers * (1 + network.bidirectional), 1, hidden) * 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.first.expand(-1, x.shape[0] if self.network.batch_first else x.shape[1], -1).contiguous()
        given = (first, first * 0.7) if isinstance(self.network, nn.LSTM) else first
        states, last = self.network(x, given)
        ends = torch.cat(last, 0) if isinstance(last, tuple) else last
        return states.sum() * 0.3 + (ends * ends).sum() + states.square().sum()


class Equation(nn.Module):  # type: ignore[misc, name-defined]
    """An einsum of the input and parameters."""

    def __init__(self, equation: str, *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.equation = equation
        self.operands = nn.ParameterList([torch.randn(*s) * 0.5 for s in shapes])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum(self.equation, x, *self.operands)


class Picked(nn.Module):  # type: ignore[misc, name-defined]
    """Rows and elements of the input by several lists of places , put into others (ScatterND)."""

    def __init__(self, *, accumulate: bool) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, 5) * 0.5)
        self.accumulate = accumulate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        taken = x[:, torch.tensor([0, 2, 1]), torch.tensor([3, 1, 0])]
        places = (torch.tensor([1, 3, 0]), torch.tensor([4, 0, 4]))
        put = self.table.index_put(places, taken[0], accumulate=self.accumulate)
        return taken.sum(1, keepdim=True) * put.sum(0)[None]


class Scattered(nn.Module):  # type: ignore[misc, name-defined]
    """ScatterElements along an axis, added and in place of what was there; Gather of single elements."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        index = torch.tensor([[3, 0, 1], [2, 2, 0]])
        added = x.scatter_add(1, index, x[:2, 2:5] * 2.0)
        replaced = added.scatter(1, torch.tensor([[4, 1], [0, 3], [1, 2]]), x[:3, :2].square())
        return replaced * torch.gather(x, 1, torch.tensor([[1, 1, 0, 4, 2]]).expand(x.shape[0], -1))


class Gdn(nn.Module):  # type: ignore[misc, name-defined]
    """Generalised divisive normalisation (arXiv 1611.01704, eq. 2), and its inverse."""

    def __init__(self, channels: int, *, inverse: bool) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.ones(channels))
        self.gamma = nn.Parameter(torch.eye(channels) * 0.1 + 0.01)
        self.inverse = inverse

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm = functional.conv2d(x * x, self.gamma[:, :, None, None], self.beta)
        return x * torch.sqrt(norm) if self.inverse else x * torch.rsqrt(norm)


class Factorised(nn.Module):  # type: ignore[misc, name-defined]
    """Bits of a code under a density of each channel by itself (arXiv 1802.01436, appendix 6.1)."""

    def __init__(self, channels: int, widths: tuple[int, ...] = (1, 3, 3, 1)) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(widths))
        self.matrices = nn.ParameterList([torch.randn(channels, b, a) * 0.3 for a, b in pairs])
        self.biases = nn.ParameterList([torch.rand(channels, b, 1) - 0.5 for _, b in pairs])
        self.factors = nn.ParameterList([torch.randn(channels, b, 1) * 0.3 for _, b in pairs[:-1]])

    def cumulative(self, x: torch.Tensor) -> torch.Tensor:
        for k, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            x = torch.matmul(functional.softplus(matrix), x) + bias
            if k < len(self.factors):
                x = x + torch.tanh(self.factors[k]) * torch.tanh(x)
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.permute(1, 0, 2, 3).reshape(x.shape[1], 1, -1)
        low, high = self.cumulative(rows - 0.5), self.cumulative(rows + 0.5)
        sign = -torch.sign(low + high).detach()
        p = torch.abs(torch.sigmoid(sign * high) - torch.sigmoid(sign * low))
        return -torch.log(torch.clamp(p, min=1e-9)).sum() / 10.0


def autoencoder() -> nn.Module:
    """Analysis and synthesis transforms of a learned image codec, and the bits of the code between them."""

    class Codec(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.analysis = nn.Sequential(nn.Conv2d(2, 6, 5, 2, 2), Gdn(6, inverse=False), nn.Conv2d(6, 4, 5, 2, 2))
            self.synthesis = nn.Sequential(
                nn.ConvTranspose2d(4, 6, 5, 2, 2, 1), Gdn(6, inverse=True), nn.ConvTranspose2d(6, 2, 5, 2, 2, 1)
            )
            self.bits = Factorised(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            code = self.analysis(x)
            return self.bits(code) * 0.05 + (self.synthesis(code) - x).square().mean() * 3.0

    return Codec()


@dataclass(frozen=True)
class Row:
    """A module and the shape of its input, whose first dimension is the batch."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]


def recurrent(kind: type[nn.Module], **settings: object) -> Callable[[], nn.Module]:
    return lambda: Last(kind(3, 5, **settings), 5)


ROWS = {
    "lstm": Row(recurrent(nn.LSTM, batch_first=True), (2, 4, 3)),
    "lstm-layers-bidirectional": Row(recurrent(nn.LSTM, num_layers=2, bidirectional=True), (2, 2, 3)),
    "lstm-no-bias": Row(recurrent(nn.LSTM, bias=False), (3, 2, 3)),
    "rnn-tanh-bidirectional": Row(recurrent(nn.RNN, bidirectional=True, batch_first=True), (2, 4, 3)),
    "rnn-relu": Row(recurrent(nn.RNN, nonlinearity="relu"), (4, 1, 3)),
    "gru-layers-bidirectional": Row(recurrent(nn.GRU, num_layers=2, bidirectional=True), (2, 2, 3)),
    "max-pool-volume": Row(lambda: nn.MaxPool3d((2, 3, 2), (2, 1, 2), (1, 1, 0), dilation=(1, 1, 2)), (2, 2, 5, 4, 7)),
    "average-pool-volume": Row(lambda: nn.AvgPool3d((3, 2, 2), 2, 1, count_include_pad=False), (2, 2, 5, 4, 7)),
    "average-pool-volume-ceil": Row(lambda: nn.AvgPool3d(3, 2, 1, ceil_mode=True), (2, 2, 6, 4, 8)),
    "conv-transpose-volume": Row(
        lambda: nn.ConvTranspose3d(4, 6, (2, 3, 3), (2, 1, 2), (0, 1, 1), (1, 0, 1), groups=2, dilation=(1, 2, 1)),
        (2, 4, 3, 3, 4),
    ),
    "conv-transpose-time": Row(lambda: nn.ConvTranspose3d(3, 2, (3, 1, 1), (2, 1, 1), bias=False), (1, 3, 4, 2, 2)),
    "einsum-attention": Row(lambda: Equation("bhqd,bhkd->bhqk", (2, 3, 5, 4)), (2, 3, 2, 4)),
    "einsum-three": Row(lambda: Equation("bi,oij,bj->bo", (4, 3, 2), (5, 2)), (5, 3)),
    "einsum-diagonal": Row(lambda: Equation("bii,ij->bj", (3, 2)), (2, 3, 3)),
    "einsum-outer": Row(lambda: Equation("bi,j->bij", (4,)), (2, 3)),
    "einsum-ellipsis": Row(lambda: Equation("...ij,jk->...ik", (4, 2)), (2, 1, 3, 4)),
    "einsum-sum-of-one": Row(lambda: Equation("bij->jb"), (2, 3, 4)),
    "index": Row(lambda: Picked(accumulate=False), (2, 3, 4)),
    "index-accumulate": Row(lambda: Picked(accumulate=True), (2, 3, 4)),
    "scatter": Row(Scattered, (3, 5)),
    "resize-cubic": Row(lambda: nn.Upsample(scale_factor=(1.5, 2.0), mode="bicubic"), (2, 2, 4, 3)),
    "resize-trilinear": Row(lambda: nn.Upsample(size=(3, 5, 4), mode="trilinear"), (1, 2, 2, 3, 5)),
    "gdn": Row(lambda: Gdn(3, inverse=False), (2, 3, 4, 1)),
    "codec": Row(autoencoder, (2, 2, 8, 12)),
}


def export(module: nn.Module, shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter announces its successor
        training = torch.onnx.TrainingMode.TRAINING  # keeps equal tensors apart
        torch.onnx.export(
            module.train(), (torch.zeros(*shape),), file, dynamo=False, opset_version=18, training=training
        )
    return file.getvalue()


@pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="torch's newer exporter needs onnxscript")
@pytest.mark.parametrize("name", ["lstm", "codec", "index-accumulate", "scatter"])
def test_a_module_from_the_newer_exporter_computes_the_same(name: str) -> None:
    torch.manual_seed(11)
    row = ROWS[name]
    module = row.build().eval()
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter announces its own changes
        torch.onnx.export(module, (torch.zeros(*row.shape),), file, dynamo=True)
    data = file.getvalue()
    graph = import_onnx(data, batch=row.shape[0])
    x = np.random.default_rng(3).normal(size=row.shape).astype(np.float32)
    (got,) = run_on_engine(graph.outputs, {"x": x, **weights_of(data)})
    want = module(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize("name", ROWS)
def test_an_exported_module_and_its_gradients_equal_torch(name: str) -> None:
    torch.manual_seed(11)
    row = ROWS[name]
    module = row.build()
    data = export(module, row.shape)
    graph = import_onnx(data, batch=row.shape[0])
    x = np.random.default_rng(3).normal(size=row.shape).astype(np.float32)
    loss = g.sum(g.square(graph.outputs[0]) * 0.5 + graph.outputs[0] * 0.3)
    wrt = [graph.inputs[0], *graph.parameters]
    given = {"x": x, **weights_of(data)}
    got = run_on_engine([loss, *gradients(loss, wrt)], given)

    wide = module.double()
    xt = torch.from_numpy(x.astype(np.float64)).requires_grad_()
    out = wide(xt)
    expected = (out.square() * 0.5 + out * 0.3).sum()
    expected.backward()
    want = {"loss": expected.detach().numpy(), "x": xt.grad.numpy()}
    np.testing.assert_allclose(got[0], want["loss"], rtol=2e-5)
    np.testing.assert_allclose(got[1], want["x"], rtol=0, atol=2e-5 * np.abs(want["x"]).max())
    torch_sum = sum(float(p.grad.square().sum()) for p in wide.parameters() if p.grad is not None)
    ours_sum = sum(float(np.square(a.astype(np.float64)).sum()) for a in got[2:])
    np.testing.assert_allclose(ours_sum, torch_sum, rtol=1e-4)
    theirs = {n: p.grad.numpy() for n, p in wide.named_parameters() if p.grad is not None}
    for parameter, array in zip(graph.parameters, got[2:], strict=True):
        if parameter.name in theirs:
            target = theirs[parameter.name]
            np.testing.assert_allclose(array, target, rtol=0, atol=3e-5 * max(np.abs(target).max(), 1e-3))
