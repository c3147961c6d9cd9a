"""ONNX RNN, GRU and LSTM, unrolled: the sequence length is known, so every step is ordinary operations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

import models.compiler.graph as g
from models.compiler.errors import ModelError
from models.compiler.ir import Value
from models.compiler.onnx_nodes import Convert, ModelNode, Terms, known, optional, value

MAX_STEPS = 2048
DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
NONLINEAR: dict[str, Callable[[Value], Value]] = {"Tanh": g.tanh, "Relu": g.relu, "Sigmoid": g.sigmoid}


@dataclass(frozen=True)
class Path:
    """One direction's weights: w (gates H, I), r (gates H, H), biases (gates H), peepholes (3H) or none."""

    w: Value
    r: Value
    w_bias: Value
    r_bias: Value
    peepholes: Value | None
    node: ModelNode

    @property
    def hidden(self) -> int:
        """Size of a state."""
        return self.r.shape[1]


State = tuple[Value, ...]  # h (N, H), and c (N, H) of an LSTM
Step = Callable[[Path, Value, State], State]


@dataclass(frozen=True)
class Cell:
    """A kind of cell.

    Attributes:
        gates: matrices stacked in w and r.
        activations: what it uses, by ONNX's names; an alternative follows as another list.
        first: operands of the initial states.
        step: the next states from w x + w_bias (N, gates H) and the states.
    """

    gates: int
    activations: tuple[tuple[str, ...], ...]
    first: tuple[int, ...]
    step: Step


def _unrolled(cell: Cell) -> Convert:
    """All h (T, directions, N, H), then the last of each state (directions, N, H); layout 1 has the batch in front."""

    def convert(node: ModelNode, terms: Terms) -> list[Value]:
        swapped = bool(node.attrs.get("layout", 0))
        x = g.transpose(value(terms, 0), (1, 0, 2)) if swapped else value(terms, 0)
        turned = _checked(node, terms, x, cell)
        initial = [optional(terms, i) for i in cell.first]
        if swapped:
            initial = [None if v is None else g.transpose(v, (1, 0, 2)) for v in initial]
        runs = []
        for number, reverse in enumerate(turned):
            path = _path(node, terms, number, cell.gates)
            nothing = g.constant(np.zeros((x.shape[1], path.hidden), np.float32))
            state = tuple(nothing if v is None else _row(v, number) for v in initial)
            runs.append(_run(cell.step, path, x, state, reverse=reverse))
        every = g.stack([g.stack([state[0] for state in states], 0) for states, _ in runs], 1)
        last = [g.stack([final[i] for _, final in runs], 0) for i in range(len(initial))]
        if not swapped:
            return [every, *last]
        return [g.transpose(every, (2, 0, 1, 3)), *(g.transpose(v, (1, 0, 2)) for v in last)]

    return convert


def _checked(node: ModelNode, terms: Terms, x: Value, cell: Cell) -> tuple[bool, ...]:
    """For each direction, whether it runs from the end; or an error for what is not read."""
    ranks = [len(x.shape), len(value(terms, 1).shape), len(value(terms, 2).shape)]
    if ranks != [3, 3, 3]:
        raise ModelError(f"X, W and R must have three dimensions, they have {ranks}")
    if x.shape[0] > MAX_STEPS:
        raise ModelError(
            f"a sequence of {x.shape[0]} steps is longer than {MAX_STEPS}: each becomes operations of its own"
        )
    direction = node.attrs.get("direction", "forward")
    if direction not in DIRECTIONS:
        raise ModelError(f"direction {direction!r} is unknown")
    activations = tuple(node.attrs.get("activations", cell.activations[0] * len(DIRECTIONS[direction])))
    if activations not in [names * len(DIRECTIONS[direction]) for names in cell.activations]:
        raise ModelError(f"activations {activations} are not supported; {cell.activations} are")
    if "clip" in node.attrs or node.attrs.get("input_forget", 0):
        raise ModelError("clip and input_forget are not supported")
    lengths = known(terms, 4)
    if lengths is not None and (lengths != x.shape[0]).any():
        raise ModelError(
            f"sequence_lens {lengths.tolist()} are not all the {x.shape[0]} steps of the input: sequences of different"
            " lengths in one batch are not supported, pad them and export without lengths"
        )
    return DIRECTIONS[direction]


def _row(x: Value, number: int) -> Value:
    """x[number]."""
    rest = x.shape[1:]
    return g.reshape(g.slice(x, [number, *(0 for _ in rest)], [1, *rest], [1] * len(x.shape)), rest)


def _path(node: ModelNode, terms: Terms, number: int, gates: int) -> Path:
    w, r = (_row(value(terms, i), number) for i in (1, 2))
    size = gates * r.shape[1]
    bias, peepholes = optional(terms, 3), optional(terms, 7)
    both = g.constant(np.zeros(2 * size, np.float32)) if bias is None else _row(bias, number)
    w_bias, r_bias = g.split(both, [size, size])
    return Path(w, r, w_bias, r_bias, None if peepholes is None else _row(peepholes, number), node)


def _run(step: Step, path: Path, x: Value, state: State, *, reverse: bool) -> tuple[list[State], State]:
    """The states after every step, in the order of the sequence, and the last that was computed."""
    projected = g.matmul(x, path.w, trans_b=True) + path.w_bias  # (T, N, gates H): all steps in one product
    steps = range(x.shape[0])
    states = []
    for t in reversed(steps) if reverse else steps:
        state = step(path, _row(projected, t), state)
        states.append(state)
    return states[::-1] if reverse else states, state


def _recurrent(path: Path, h: Value) -> Value:
    return g.matmul(h, path.r, trans_b=True) + path.r_bias


def _rnn(path: Path, inward: Value, state: State) -> State:
    function = NONLINEAR[path.node.attrs.get("activations", ["Tanh"])[0]]
    return (function(inward + _recurrent(path, state[0])),)


def _gru(path: Path, inward: Value, state: State) -> State:
    """Gates in the order update, reset, candidate.

    With linear_before_reset the reset gate acts on the product with r, bias included, as in torch.
    """
    (h,), hidden = state, path.hidden
    in_z, in_r, in_c = g.split(inward, [hidden] * 3, 1)
    if path.node.attrs.get("linear_before_reset", 0):
        z, r, candidate = g.split(_recurrent(path, h), [hidden] * 3, 1)
        new = g.tanh(in_c + g.sigmoid(in_r + r) * candidate)
    else:
        gates, weight = g.split(path.r, [2 * hidden, hidden])
        biases, bias = g.split(path.r_bias, [2 * hidden, hidden])
        z, r = g.split(g.matmul(h, gates, trans_b=True) + biases, [hidden] * 2, 1)
        new = g.tanh(in_c + g.matmul(g.sigmoid(in_r + r) * h, weight, trans_b=True) + bias)
    return (new + g.sigmoid(in_z + z) * (h - new),)


def _lstm(path: Path, inward: Value, state: State) -> State:
    """Gates in the order input, output, forget, cell; peepholes in the order input, output, forget."""
    (h, c), hidden = state, path.hidden
    i, o, f, new = g.split(inward + _recurrent(path, h), [hidden] * 4, 1)
    seen: Sequence[Value | None] = [None] * 3 if path.peepholes is None else g.split(path.peepholes, [hidden] * 3)
    kept = g.sigmoid(_peeped(f, seen[2], c)) * c + g.sigmoid(_peeped(i, seen[0], c)) * g.tanh(new)
    return g.sigmoid(_peeped(o, seen[1], kept)) * g.tanh(kept), kept


def _peeped(gate: Value, weight: Value | None, c: Value) -> Value:
    return gate if weight is None else gate + weight * c


CONVERTERS: dict[str, Convert] = {
    "GRU": _unrolled(Cell(3, (("Sigmoid", "Tanh"),), (5,), _gru)),
    "LSTM": _unrolled(Cell(4, (("Sigmoid", "Tanh", "Tanh"),), (5, 6), _lstm)),
    "RNN": _unrolled(Cell(1, (("Tanh",), ("Relu",)), (5,), _rnn)),
}
