"""The training compiler: an ONNX model and its training become one plan.

import (onnx_import) -> simplify -> autodiff -> freeze and prune -> simplify and fuse -> order and plan memory
(schedule, storage, memory) -> emit. docs/plan-format.md says what comes out.
"""

from models.compiler.errors import CompileError, ModelError, NotDifferentiable, UnsupportedOp
from models.compiler.export import statistics_of, weights_of, with_weights
from models.compiler.ir import Graph
from models.compiler.onnx_import import import_onnx
from models.compiler.onnx_objective import compile_onnx_loss
from models.compiler.report import Report
from models.compiler.training import Compiled, compile_loss, compile_training

__all__ = [
    "CompileError",
    "Compiled",
    "Graph",
    "ModelError",
    "NotDifferentiable",
    "Report",
    "UnsupportedOp",
    "compile_loss",
    "compile_onnx_loss",
    "compile_training",
    "import_onnx",
    "statistics_of",
    "weights_of",
    "with_weights",
]
