"""A small writer of ONNX models: layers in a row, weights from a counter-based generator.

Weights follow He et al., 2015 ("Delving deep into rectifiers"), eq. 10, as a uniform distribution: variance
2 / fan_in. The draws come from a hash of (seed, tensor number, element), so they are the same on every
machine and NumPy version.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx.checker
import onnx.helper as oh
import onnx.numpy_helper
from numpy.typing import NDArray

from edge_runtime.rng import hash64

OPSET = 17
IR_VERSION = 8  # read by every ONNX Runtime since 1.10
PRODUCER = "edge-runtime"


class ZooError(ValueError):
    """A network that cannot be built for the shape asked for."""


def he_uniform(seed: int, number: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Weights uniform in (-b, b), b = sqrt(6 / fan_in), where fan_in counts all axes but the first.

    Args:
        seed: of the model.
        number: of the tensor within the model; it makes its stream.
        shape: (outputs, inputs, ...).
    """
    count = math.prod(shape)
    bits = hash64(seed, number, np.arange(count, dtype=np.uint64))
    # The upper 24 bits, centred in their cell: exact in float32, never at a border.
    unit = ((bits >> np.uint64(40)).astype(np.float64) + 0.5) / 2.0**24
    bound = math.sqrt(6.0 / math.prod(shape[1:]))
    return ((2.0 * unit - 1.0) * bound).reshape(shape).astype(np.float32)


@dataclass
class Layers:
    """A network under construction: the nodes so far and the shape at its end, without the batch."""

    seed: int
    shape: tuple[int, ...]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    last: str = "x"

    def conv(self, name: str, channels: int, kernel: int, pad: int) -> None:
        """A convolution with bias and relu, over one or two axes."""
        rank = len(self.shape) - 1
        self._parameters(name, (channels, self.shape[0], *(kernel,) * rank))
        self._node("Conv", name, kernel_shape=[kernel] * rank, pads=[pad] * (2 * rank))
        self._node("Relu", f"{name}_relu")
        self.shape = (channels, *(n + 2 * pad - kernel + 1 for n in self.shape[1:]))

    def max_pool(self, name: str) -> None:
        """Halve every axis."""
        rank = len(self.shape) - 1
        self._node("MaxPool", name, kernel_shape=[2] * rank, strides=[2] * rank)
        self.shape = (self.shape[0], *(n // 2 for n in self.shape[1:]))

    def global_average_pool(self, name: str) -> None:
        """The mean of every channel."""
        self._node("GlobalAveragePool", name)
        self.shape = (self.shape[0], *(1 for _ in self.shape[1:]))

    def flatten(self) -> None:
        """Everything but the batch in one axis."""
        self._node("Flatten", "flatten")
        self.shape = (math.prod(self.shape),)

    def dense(self, name: str, features: int, *, relu: bool) -> None:
        """A fully connected layer with bias."""
        self._parameters(name, (features, self.shape[0]))
        self._node("Gemm", name, transB=1)
        if relu:
            self._node("Relu", f"{name}_relu")
        self.shape = (features,)

    def _parameters(self, name: str, shape: tuple[int, ...]) -> None:
        weight = he_uniform(self.seed, len(self.weights), shape)
        bias = np.zeros(shape[0], np.float32)
        self.weights.append(onnx.numpy_helper.from_array(weight, f"{name}.weight"))
        self.weights.append(onnx.numpy_helper.from_array(bias, f"{name}.bias"))

    def _node(self, op: str, name: str, **attributes: int | list[int]) -> None:
        own = [f"{name}.weight", f"{name}.bias"] if op in ("Conv", "Gemm") else []
        node = oh.make_node(op, [self.last, *own], [name], name=name)
        node.attribute.extend(oh.make_attribute(key, value) for key, value in sorted(attributes.items()))
        self.nodes.append(node)
        self.last = name

    def model(self, name: str, input_shape: tuple[int, ...]) -> bytes:
        """The ONNX bytes: input "x" (N, ...), output "logits" (N, classes); equal networks give equal bytes."""
        self.nodes[-1].output[0] = "logits"
        x = oh.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", *input_shape])
        logits = oh.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", *self.shape])
        graph = oh.make_graph(self.nodes, name, [x], [logits], self.weights)
        opsets = [oh.make_opsetid("", OPSET)]
        model = oh.make_model(graph, producer_name=PRODUCER, ir_version=IR_VERSION, opset_imports=opsets)
        onnx.checker.check_model(model)
        return bytes(model.SerializeToString(deterministic=True))
