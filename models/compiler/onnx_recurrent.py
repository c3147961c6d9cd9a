"""ONNX GRU, unrolled: the sequence length is known, so every step is ordinary operations."""

from dataclasses import dataclass

import numpy as np

import models.compiler.graph as g
from models.compiler.errors import ModelError
from models.compiler.ir import Value
from models.compiler.onnx_nodes import Convert, ModelNode, Terms, known, optional, value

DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


@dataclass(frozen=True)
class Cell:
    """One direction's weights, gates in the order update, reset, candidate: w (3H, I), r (3H, H), biases (3H)."""

    w: Value
    r: Value
    w_bias: Value
    r_bias: Value
    reset_after: bool  # whether the reset gate acts on the product with r, bias included, as in torch


def gru(node: ModelNode, terms: Terms) -> list[Value]:
    """All states (T, directions, N, H), and the last of each direction (directions, N, H)."""
    x = value(terms, 0)
    turned = _checked(node, terms, x)
    hidden = value(terms, 2).shape[2]
    first = optional(terms, 5)
    paths, last = [], []
    for number, reverse in enumerate(turned):
        cell = _cell(node, terms, number, hidden)
        h = g.constant(np.zeros((x.shape[1], hidden), np.float32)) if first is None else _row(first, number)
        states = _run(cell, x, h, reverse=reverse)
        last.append(states[0 if reverse else -1])
        paths.append(g.stack(states, 0))
    return [g.stack(paths, 1), g.stack(last, 0)]


def _checked(node: ModelNode, terms: Terms, x: Value) -> tuple[bool, ...]:
    """For each direction, whether it runs from the end; or an error for what is not read."""
    direction = node.attrs.get("direction", "forward")
    if direction not in DIRECTIONS:
        raise ModelError(f"direction {direction!r} is unknown")
    activations = list(node.attrs.get("activations", []))
    if activations and activations != ["Sigmoid", "Tanh"] * len(DIRECTIONS[direction]):
        raise ModelError(f"activations {activations} are not supported; Sigmoid and Tanh are")
    if "clip" in node.attrs or node.attrs.get("layout", 0):
        raise ModelError("clip and layout 1 are not supported")
    lengths = known(terms, 4)
    if lengths is not None and (lengths != x.shape[0]).any():
        raise ModelError("sequences of different lengths in one batch are not supported")
    return DIRECTIONS[direction]


def _row(x: Value, number: int) -> Value:
    """x[number]."""
    rest = x.shape[1:]
    return g.reshape(g.slice(x, [number, *(0 for _ in rest)], [1, *rest], [1] * len(x.shape)), rest)


def _cell(node: ModelNode, terms: Terms, number: int, hidden: int) -> Cell:
    bias = optional(terms, 3)
    both = g.constant(np.zeros(6 * hidden, np.float32)) if bias is None else _row(bias, number)
    w_bias, r_bias = g.split(both, [3 * hidden, 3 * hidden])
    after = bool(node.attrs.get("linear_before_reset", 0))
    return Cell(_row(value(terms, 1), number), _row(value(terms, 2), number), w_bias, r_bias, after)


def _run(cell: Cell, x: Value, h: Value, *, reverse: bool) -> list[Value]:
    """The state after every step, in the order of the sequence."""
    hidden = h.shape[1]
    projected = g.matmul(x, cell.w, trans_b=True) + cell.w_bias  # (T, N, 3H): all steps in one product
    steps = range(x.shape[0])
    states: list[Value | None] = [None] * x.shape[0]
    for t in reversed(steps) if reverse else steps:
        h = states[t] = _step(cell, _row(projected, t), h, hidden)
    return [s for s in states if s is not None]


def _step(cell: Cell, inward: Value, h: Value, hidden: int) -> Value:
    in_z, in_r, in_c = g.split(inward, [hidden] * 3, 1)
    if cell.reset_after:
        z, r, candidate = g.split(g.matmul(h, cell.r, trans_b=True) + cell.r_bias, [hidden] * 3, 1)
        new = g.tanh(in_c + g.sigmoid(in_r + r) * candidate)
    else:
        gates, weight = g.split(cell.r, [2 * hidden, hidden])
        biases, bias = g.split(cell.r_bias, [2 * hidden, hidden])
        z, r = g.split(g.matmul(h, gates, trans_b=True) + biases, [hidden] * 2, 1)
        new = g.tanh(in_c + g.matmul(g.sigmoid(in_r + r) * h, weight, trans_b=True) + bias)
    return new + g.sigmoid(in_z + z) * (h - new)


CONVERTERS: dict[str, Convert] = {"GRU": gru}
