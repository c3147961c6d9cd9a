"""The kernels on their own, outside plans, and `reference*`: a slow, readable NumPy twin of every one of them.

Every function but the lossless coders takes `workspace`, a `Workspace` that holds its instruction set, its threads and
the memory it works in; made once and handed to every call, it saves the page faults of fresh memory. None makes one
for the call.
Nothing here is imported when a client starts.
"""

from edge_runtime._core import Workspace
from edge_runtime.kernels.coders import (
    RansTables,
    StreamError,
    decode_indices,
    encode_indices,
    quantized_cdf,
    rans_decode,
    rans_encode,
)
from edge_runtime.kernels.dispatch import info
from edge_runtime.kernels.fold import Accumulator, CodedUpdate, Layout, Piece
from edge_runtime.kernels.low_rank import LowRank, as_matrix, power_step, saving_rank, truncated_svd, truncated_svd_tree
from edge_runtime.kernels.quantizers import (
    dequantize_int8,
    dequantize_sign,
    from_bfloat16,
    from_float16,
    quantize_int8,
    quantize_qsgd,
    quantize_sign,
    to_bfloat16,
    to_float16,
)
from edge_runtime.kernels.sampled_softmax import (
    linear_cross_entropy,
    linear_cross_entropy_update,
    sampled_softmax,
    sampled_softmax_update,
)
from edge_runtime.kernels.samplers import Negatives, frequent_negatives, log_uniform_negatives, uniform_negatives
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
    "Accumulator",
    "CodedUpdate",
    "Layout",
    "LowRank",
    "Negatives",
    "NotANumber",
    "Piece",
    "RansTables",
    "SampledSelection",
    "Selection",
    "StreamError",
    "Workspace",
    "above",
    "as_matrix",
    "decode_indices",
    "dequantize_int8",
    "dequantize_sign",
    "dgc",
    "dgc_tree",
    "encode_indices",
    "frequent_negatives",
    "from_bfloat16",
    "from_float16",
    "info",
    "linear_cross_entropy",
    "linear_cross_entropy_update",
    "log_uniform_negatives",
    "power_step",
    "quantize_int8",
    "quantize_qsgd",
    "quantize_sign",
    "quantized_cdf",
    "rans_decode",
    "rans_encode",
    "sampled_softmax",
    "sampled_softmax_update",
    "sampled_threshold",
    "saving_rank",
    "to_bfloat16",
    "to_float16",
    "top_k",
    "top_k_residual",
    "top_k_residual_tree",
    "top_k_tree",
    "truncated_svd",
    "truncated_svd_tree",
    "uniform_negatives",
]
