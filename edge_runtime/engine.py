"""Bind a plan to memory and run it: a thin shell around the compiled interpreter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime import _core
from edge_runtime.errors import LocalError
from edge_runtime.plan import ROLE_CONSTANT, ROLE_STATE, Plan, Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray


class EngineMemoryError(MemoryError):
    """The plan needs more memory than this device may use; nothing was allocated."""


class NumberOutOfRange(LocalError, ValueError):
    """A label or an index of the batch names nothing; the message gives tensor, row and range."""


class TensorMismatchError(ValueError):
    """An array whose dtype or shape is not the tensor's; nothing was written."""


class Engine:
    """One plan in one block of memory; `step` allocates nothing.

    Starts with every tensor zero. The caller writes trained and frozen tensors, scalars and a batch, and calls `step`
    as often as it likes. Not for use by two threads at once.

    Args:
        plan: A checked plan.
        threads: Workers of a step, 1 to 256; results are bit-identical for any number of them.
        isa: "auto", or one of `edge_runtime._core.info()["available"]`.
        memory_limit_bytes: Most that arena, constants and scratch may take together.

    Raises:
        EngineMemoryError: The limit is too low.
        ValueError: `threads` or `isa` cannot be.
    """

    def __init__(
        self, plan: Plan, *, threads: int = 1, isa: str = "auto", memory_limit_bytes: int | None = None
    ) -> None:
        needed = plan.memory_bytes(threads)
        if memory_limit_bytes is not None and needed > memory_limit_bytes:
            raise EngineMemoryError(
                f"plan {plan.sha256[:12]} needs {needed} bytes with {threads} threads, the limit is "
                f"{memory_limit_bytes}; use a smaller batch or model, fewer threads, or a higher limit"
            )
        self.plan = plan
        self.memory_bytes = needed
        self._tensors = {t.name: t for t in plan.tensors if t.name}
        self._core = _core.Engine(plan.data, threads, isa)

    @property
    def isa(self) -> str:
        """The instruction set of the kernels in use."""
        return self._core.isa

    @property
    def threads(self) -> int:
        """Workers of a step."""
        return self._core.threads

    def view(self, name: str) -> NDArray[Any]:
        """An array over a named tensor, in place: writable except for constants. KeyError for an unknown name."""
        return self._core.view(name)

    def read(self, name: str) -> NDArray[Any]:
        """A copy of a named tensor."""
        return self._core.view(name).copy()

    def write(self, name: str, array: NDArray[Any]) -> None:
        """Copy an array into a named tensor.

        Args:
            name: A tensor of any role but temporary and constant.
            array: Of exactly the tensor's dtype and shape; nothing is converted.

        Raises:
            KeyError: The plan has no such tensor.
            TensorMismatchError: Dtype or shape differ, or the tensor is a constant.
        """
        tensor = self._tensors.get(name)
        if tensor is None:
            raise KeyError(f"the plan has no tensor named {name!r}; it has {sorted(self._tensors)}")
        _require_match(tensor, array)
        self._core.view(name)[...] = array

    def step(self) -> None:
        """Run the plan once, without the GIL.

        Raises:
            NumberOutOfRange: A label or an index, naming its row, before any tensor is written.
        """
        try:
            self._core.step()
        except ValueError as error:
            raise NumberOutOfRange(str(error)) from None

    def profile(self, steps: int) -> NDArray[np.float64]:
        """Seconds that each operation takes in each of `steps` further steps of training, (steps, operations).

        Wrong labels are not refused here, they train nothing: `step` first.

        Raises:
            ValueError: `steps` is not in 1 .. 100,000.
        """
        return self._core.timings(steps)

    def release(self) -> None:
        """Give the memory of temporaries and scratch back to the system; a later step takes it again."""
        self._core.release()

    def reset_state(self) -> None:
        """Zero the optimiser's state."""
        for name in self.plan.named(ROLE_STATE):
            self._core.view(name)[...] = 0


def _require_match(tensor: Tensor, array: NDArray[Any]) -> None:
    if tensor.role == ROLE_CONSTANT:
        raise TensorMismatchError(f"{tensor.name!r} is a constant of the plan and cannot be written")
    if array.dtype != np.dtype(tensor.dtype) or array.shape != tensor.shape:
        raise TensorMismatchError(
            f"{tensor.name!r} is {tensor.dtype} {tensor.shape}, got {array.dtype} {array.shape}; convert it first"
        )
