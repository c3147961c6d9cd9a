"""What the compiler refuses; every message names the thing, the value and what to do."""

from collections.abc import Iterable


class CompileError(ValueError):
    """A graph that cannot become a plan."""


class ModelError(CompileError):
    """An ONNX model that is malformed or outside what the compiler reads."""


class UnsupportedOp(ModelError):
    """An ONNX node whose operator the compiler does not have.

    Attributes:
        op: operator type, with its domain where that is not the default one.
        node: name of the node, or of its first output where it has none.
        supported: every operator the compiler reads, sorted.
    """

    def __init__(self, op: str, node: str, supported: Iterable[str]) -> None:
        self.op = op
        self.node = node
        self.supported = tuple(sorted(supported))
        listing = ", ".join(self.supported)
        super().__init__(f"operator {op} of node {node!r} is not supported; supported: {listing}")


class NotDifferentiable(CompileError):
    """A gradient was asked of an operation that has none."""

    def __init__(self, op: str, reason: str) -> None:
        self.op = op
        super().__init__(f"no gradient for {op}: {reason}")
