"""A torch module that computes what an ONNX graph of simple layers says: the peer for parity and for benches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray


class TorchTwin(torch.nn.Module):
    """Runs the nodes of an ONNX graph in order with torch; its parameters are the graph's float initialisers."""

    def __init__(self, model: bytes, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.graph = onnx.load_from_string(model).graph
        tensors = {t.name: numpy_helper.to_array(t) for t in self.graph.initializer}
        self.constants = {n: torch.from_numpy(a.copy()) for n, a in tensors.items() if a.dtype != np.float32}
        self.names = [n for n, a in tensors.items() if a.dtype == np.float32]
        self.weights = torch.nn.ParameterList(torch.from_numpy(tensors[n].copy()).to(dtype) for n in self.names)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (B, C) of a batch."""
        values = {**self.constants, **dict(zip(self.names, self.weights, strict=True)), self.graph.input[0].name: x}
        for node in self.graph.node:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            values[node.output[0]] = LAYERS[node.op_type]([values[i] for i in node.input], attributes)
        return values[self.graph.output[0].name]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The parameters by their ONNX names."""
        return {n: w.detach().numpy().copy() for n, w in zip(self.names, self.weights, strict=True)}


def _conv(inputs: list[torch.Tensor], a: dict[str, Any]) -> torch.Tensor:
    spatial = inputs[0].ndim - 2
    pads = a.get("pads", [0] * 2 * spatial)
    # torch pads the last axis first; ONNX lists all begins, then all ends.
    around = [pads[side * spatial + axis] for axis in reversed(range(spatial)) for side in (0, 1)]
    run = {1: functional.conv1d, 2: functional.conv2d}[spatial]
    bias = inputs[2] if len(inputs) > 2 else None
    padded = functional.pad(inputs[0], around)
    return run(
        padded,
        inputs[1],
        bias,
        stride=a.get("strides", [1] * spatial),
        dilation=a.get("dilations", [1] * spatial),
        groups=a.get("group", 1),
    )


def _maxpool(inputs: list[torch.Tensor], a: dict[str, Any]) -> torch.Tensor:
    spatial = inputs[0].ndim - 2
    run = {1: functional.max_pool1d, 2: functional.max_pool2d}[spatial]
    return run(inputs[0], a["kernel_shape"], a.get("strides", [1] * spatial))


def _gemm(inputs: list[torch.Tensor], a: dict[str, Any]) -> torch.Tensor:
    left = inputs[0].T if a.get("transA") else inputs[0]
    right = inputs[1].T if a.get("transB") else inputs[1]
    return left @ right + (inputs[2] if len(inputs) > 2 else 0)


LAYERS: dict[str, Callable[[list[torch.Tensor], dict[str, Any]], torch.Tensor]] = {
    "Conv": _conv,
    "MaxPool": _maxpool,
    "Gemm": _gemm,
    "Relu": lambda i, _: torch.relu(i[0]),
    "Flatten": lambda i, _: i[0].flatten(1),
    "Add": lambda i, _: i[0] + i[1],
    "MatMul": lambda i, _: i[0] @ i[1],
    "GlobalAveragePool": lambda i, _: i[0].mean(dim=tuple(range(2, i[0].ndim)), keepdim=True),
    "Reshape": lambda i, _: i[0].reshape([i[0].shape[k] if n == 0 else int(n) for k, n in enumerate(i[1])]),
}


def sgd_epochs(
    twin: TorchTwin,
    batches: Iterable[tuple[NDArray[Any], NDArray[np.int32]]],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """Train with torch.optim.SGD over the given batches, in their order."""
    optimiser = torch.optim.SGD(twin.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    dtype = next(twin.parameters()).dtype
    for x, y in batches:
        optimiser.zero_grad()
        logits = twin(torch.from_numpy(x).to(dtype))
        functional.cross_entropy(logits, torch.from_numpy(y.astype(np.int64))).backward()
        optimiser.step()
