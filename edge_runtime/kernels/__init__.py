"""The kernels on their own, outside plans, and `reference*`: a slow, readable NumPy twin of every one of them.

Every function takes `workspace`, a `Workspace` that holds its instruction set, its threads and the memory it works in;
made once and handed to every call, it saves the page faults of fresh memory. None makes one for the call.
Nothing here is imported when a client starts.
"""

from edge_runtime._core import Workspace
from edge_runtime.kernels.dispatch import info
from edge_runtime.kernels.selection import (
    NotANumber,
    SampledSelection,
    Selection,
    above,
    dgc,
    dgc_tree,
    sampled_threshold,
    top_k,
    top_k_residual,
    top_k_residual_tree,
    top_k_tree,
)

__all__ = [
    "NotANumber",
    "SampledSelection",
    "Selection",
    "Workspace",
    "above",
    "dgc",
    "dgc_tree",
    "info",
    "sampled_threshold",
    "top_k",
    "top_k_residual",
    "top_k_residual_tree",
    "top_k_tree",
]
