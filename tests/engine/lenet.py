"""LeNet-5's training step as a plan, written by hand."""

from __future__ import annotations

import numpy as np
from planwriter import (
    ABSENT,
    BATCH,
    OPCODES,
    OUTPUT,
    SCALAR,
    STATE,
    TEMPORARY,
    TRAINED,
    PlanWriter,
    bits,
)

from edge_runtime import _core

MODEL = {
    "w1": (6, 1, 5, 5),
    "b1": (6,),
    "w2": (16, 6, 5, 5),
    "b2": (16,),
    "w3": (120, 400),
    "b3": (120,),
    "w4": (84, 120),
    "b4": (84,),
    "w5": (10, 84),
    "b5": (10,),
}
SAME, VALID = [1, 1, 2, 2, 2, 2, 1, 1, 1], [1, 1, 0, 0, 0, 0, 1, 1, 1]
POOL = [2, 2, 0, 0, 0, 0, 1, 1, 2, 2]


class LeNet:
    """Collects the plan's tensors by name while forward, backward and update are written down."""

    def __init__(self, batch: int) -> None:
        self.writer = PlanWriter(workspace_bytes=0)
        self.batch = batch
        self.t: dict[str, int | None] = {"": None}
        slots = [("x", (batch, 1, 28, 28), BATCH), ("lr", (), SCALAR), ("loss", (), OUTPUT)]
        for name, shape in MODEL.items():
            slots += [(name, shape, TRAINED), (f"momentum/{name}", shape, STATE)]
        for name, shape, role in slots:
            self.t[name] = self.writer.tensor(name, shape, role)
        self.t["y"] = self.writer.tensor("y", (batch,), BATCH, "int32")
        self.t["one"] = self.writer.constant("one", np.array(1, np.float32))
        self.forward()
        self.backward()

    def op(self, name: str, inputs: str, outputs: str, attrs: list[int] | None = None) -> None:
        """Inputs and outputs by name, separated by spaces; '-' for an absent one."""
        sides = [[None if n == "-" else self.t[n] for n in side.split()] for side in (inputs, outputs)]
        self.writer.op(name, sides[0], sides[1], attrs)

    def temporary(self, name: str, *shape: int, dtype: str = "float32") -> None:
        self.t[name] = self.writer.tensor("", (self.batch, *shape), TEMPORARY, dtype)

    def forward(self) -> None:
        for name, shape in [("c1", (6, 28, 28)), ("p1", (6, 14, 14)), ("c2", (16, 10, 10)), ("p2", (16, 5, 5))]:
            self.temporary(name, *shape)
        self.temporary("i1", 6, 14, 14, dtype="uint8")
        self.temporary("i2", 16, 5, 5, dtype="uint8")
        for name, width in [("flat", 400), ("h3", 120), ("h4", 84), ("logits", 10), ("probs", 10)]:
            self.temporary(name, width)
        self.op("conv", "x w1 b1", "c1", [*SAME, 1])
        self.op("maxpool", "c1", "p1 i1", POOL)
        self.op("conv", "p1 w2 b2", "c2", [*VALID, 1])
        self.op("maxpool", "c2", "p2 i2", POOL)
        self.op("copy", "p2", "flat")
        self.op("gemm", "flat w3 b3", "h3", [0, 1, 1])
        self.op("gemm", "h3 w4 b4", "h4", [0, 1, 1])
        self.op("gemm", "h4 w5 b5", "logits", [0, 1, 0])
        self.op("softmax_xent", "logits y", "loss probs")

    def update(self, name: str) -> None:
        self.op("sgd", f"{name} d_{name} lr momentum/{name}", f"{name} momentum/{name}", [bits(0.9), bits(1e-4), 0])

    def dense_backward(self, d_y: str, x: str, layer: int, d_x: str) -> None:
        w, b = f"w{layer}", f"b{layer}"
        for name in (w, b):
            self.t[f"d_{name}"] = self.writer.tensor("", MODEL[name])
        self.op("gemm", f"{d_y} {x} -", f"d_{w}", [1, 0, 0])
        self.op("reduce_sum", d_y, f"d_{b}", [1, bits(1)])
        self.op("gemm", f"{d_y} {w} -", d_x, [0, 0, 0])
        self.update(w)
        self.update(b)

    def conv_backward(self, d_y: str, x: str, layer: int, window: list[int]) -> None:
        w, b = f"w{layer}", f"b{layer}"
        for name in (w, b):
            self.t[f"d_{name}"] = self.writer.tensor("", MODEL[name])
        self.op("conv_grad_w", f"{d_y} {x}", f"d_{w}", [*window, 0])
        self.op("reduce_sum", d_y, f"d_{b}", [0b1101, bits(1)])

    def backward(self) -> None:
        for name, width in [("d_logits", 10), ("d_h4", 84), ("d_h3", 120), ("d_flat", 400)]:
            self.temporary(name, width)
        for name, shape in [("d_c1", (6, 28, 28)), ("d_p1", (6, 14, 14)), ("d_c2", (16, 10, 10)), ("d_p2", (16, 5, 5))]:
            self.temporary(name, *shape)
        self.op("softmax_xent_grad", "probs y one", "d_logits")
        self.dense_backward("d_logits", "h4", 5, "d_h4")
        self.op("relu_grad", "d_h4 h4", "d_h4")
        self.dense_backward("d_h4", "h3", 4, "d_h3")
        self.op("relu_grad", "d_h3 h3", "d_h3")
        self.dense_backward("d_h3", "flat", 3, "d_flat")
        self.op("copy", "d_flat", "d_p2")
        self.op("maxpool_grad", "d_p2 i2", "d_c2", POOL)
        self.op("relu_grad", "d_c2 c2", "d_c2")
        self.conv_backward("d_c2", "p1", 2, VALID)
        self.op("conv_grad_x", "d_c2 w2", "d_p1", [*VALID, 0])
        self.op("maxpool_grad", "d_p1 i1", "d_c1", POOL)
        self.op("relu_grad", "d_c1 c1", "d_c1")
        self.conv_backward("d_c1", "x", 1, SAME)
        for name in ("w2", "b2", "w1", "b1"):
            self.update(name)

    def workspace_bytes(self) -> int:
        """The most that any operation needs."""
        needs = []
        for name, inputs, outputs, attrs in self.writer.ops:
            shapes = [None if n == ABSENT else list(self.writer.tensors[n].shape) for n in (*inputs, *outputs)]
            needs.append(_core.workspace_bytes(OPCODES[name], shapes, attrs))
        return max(needs)


def lenet_plan(batch: int) -> bytes:
    """The plan file, with exactly the scratch it needs."""
    net = LeNet(batch)
    net.writer.workspace_bytes = net.workspace_bytes()
    return net.writer.seal()
