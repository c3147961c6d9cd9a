"""The compiled part, the devices it can run on, and where work is queued."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, TypedDict

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["CudaInfo", "CudaUnavailable", "Device", "DeviceArray", "Queue", "device_module", "info", "module"]

BUILD = "pip install --config-settings=cmake.define.EDGE_CUDA=ON . (needs nvcc 12 or newer)"


class DeviceArray(Protocol):
    """An array in CUDA memory."""

    def __dlpack_device__(self) -> tuple[int, int]: ...


class CudaUnavailable(RuntimeError):
    """The module is not built, or there is no device to run on; the message says which, and what to do."""


class Device(TypedDict):
    """One device."""

    name: str
    capability: str  # compute capability, as "8.7"
    memory_bytes: int


class CudaInfo(TypedDict):
    """What `kernels.info()["cuda"]` says."""

    built: bool
    compiled_for: list[str]  # compute capabilities: "75-real" runs there alone, "90" on what came later too
    devices: list[Device]
    why: str  # why there are no devices, or ""


@dataclass(frozen=True)
class Queue:
    """Where work goes: a workspace, uint8, of the bytes that the function asks for, and a stream.

    0 is the default stream; another is its handle (`torch.cuda.current_stream().cuda_stream`,
    `cupy.cuda.get_current_stream().ptr`). Work queued on one stream may share a workspace.
    """

    workspace: DeviceArray
    stream: int = 0


def module() -> ModuleType:
    """The compiled part; CudaUnavailable where it is not there."""
    try:
        return import_module("edge_runtime._cuda")
    except ImportError as error:
        message = f"edge_runtime._cuda is not built ({error}); {BUILD}"
        raise CudaUnavailable(message) from error


@cache
def device_module() -> ModuleType:
    """The compiled part, where it has a device to run on; looked for until there is one."""
    built = module()
    try:
        built.devices()
    except RuntimeError as error:
        message = f"no CUDA device can be used: {error}"
        raise CudaUnavailable(message) from error
    return built


def info() -> CudaInfo:
    """Say whether the device kernels are built, for what, and which devices they can run on."""
    try:
        built = module()
    except CudaUnavailable as error:
        return {"built": False, "compiled_for": [], "devices": [], "why": str(error)}
    found: CudaInfo = {"built": True, "compiled_for": built.compiled_for.split(), "devices": [], "why": ""}
    try:
        found["devices"] = built.devices()
    except RuntimeError as error:
        found["why"] = str(error)
    return found
