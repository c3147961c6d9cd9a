"""The kernels on an NVIDIA device, for arrays of torch, CuPy and whatever offers DLPack or `__cuda_array_interface__`.

They are in a module of their own, `edge_runtime._cuda`, built by `EDGE_CUDA=ON` where nvcc is. Every function puts its
work on the stream of its `Queue` and returns; nothing here allocates device memory, copies, converts or waits. The
caller gives outputs and a workspace, and reads them after its own synchronisation.
Arrays are C-contiguous, on one device, and do not overlap.

Every function raises
    CudaUnavailable: the module is not built, or there is no device;
    TypeError: an array has another dtype or shape than said, or lies in other memory;
    ValueError: a number is out of range, an output read-only, a workspace too small or not at a multiple of 256 bytes,
        the arrays are on several devices, or share memory;
    RuntimeError: a launch failed; names the CUDA error.
"""

from edge_runtime.kernels.cuda.devices import CudaInfo, CudaUnavailable, Device, Queue, info
from edge_runtime.kernels.cuda.low_rank import (
    Factors,
    PowerFactors,
    Search,
    power_step,
    power_step_workspace_bytes,
    truncated_svd,
    truncated_svd_workspace_bytes,
)
from edge_runtime.kernels.cuda.quantizers import Quantized, Quantizer, convert, dequantize, quantize
from edge_runtime.kernels.cuda.sampled_softmax import (
    Gradients,
    Head,
    Step,
    sampled_softmax,
    sampled_softmax_workspace_bytes,
)
from edge_runtime.kernels.cuda.selection import (
    Reached,
    Selected,
    Velocities,
    above,
    above_workspace_bytes,
    dgc,
    top_k,
    top_k_residual,
    top_k_workspace_bytes,
)

__all__ = [
    "CudaInfo",
    "CudaUnavailable",
    "Device",
    "Factors",
    "Gradients",
    "Head",
    "PowerFactors",
    "Quantized",
    "Quantizer",
    "Queue",
    "Reached",
    "Search",
    "Selected",
    "Step",
    "Velocities",
    "above",
    "above_workspace_bytes",
    "convert",
    "dequantize",
    "dgc",
    "info",
    "power_step",
    "power_step_workspace_bytes",
    "quantize",
    "sampled_softmax",
    "sampled_softmax_workspace_bytes",
    "top_k",
    "top_k_residual",
    "top_k_workspace_bytes",
    "truncated_svd",
    "truncated_svd_workspace_bytes",
]
