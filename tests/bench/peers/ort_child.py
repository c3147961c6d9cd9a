"""onnxruntime-training 1.19.2, one thread: `ort_child.py FOLDER LR`, where FOLDER holds model.onnx and batch.npz.

Its SGD knows no momentum, so its step does less than the others'. Its Python package imports torch for parts that this
does not use; a stand-in for the package's `__init__` leaves torch out of the process.
"""

import sys
import types
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from channel import Channel

package = types.ModuleType("onnxruntime.training")
package.__path__ = [str(Path(onnxruntime.__file__).parent / "training")]
sys.modules["onnxruntime.training"] = package
from onnxruntime.training import artifacts  # noqa: E402 (after the stand-in)
from onnxruntime.training.api import CheckpointState, Module, Optimizer  # noqa: E402 (after the stand-in)

ERRORS_ONLY = 3
STATISTICS = ("running_mean", "running_var")


def main() -> None:
    channel, folder = Channel(), Path(sys.argv[1])
    onnxruntime.set_default_logger_severity(ERRORS_ONLY)
    with np.load(folder / "batch.npz") as arrays:
        x, y = arrays["x"], arrays["y"].astype(np.int64)
    generate(folder, len(x))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    state = CheckpointState.load_checkpoint(str(folder / "checkpoint"))
    module = Module(str(folder / "training_model.onnx"), state, None, "cpu", options)
    optimiser = Optimizer(str(folder / "optimizer_model.onnx"), module)
    optimiser.set_learning_rate(float(sys.argv[2]))
    module.train()
    last = [0.0]

    def step() -> None:
        last[0] = module(x, y)
        optimiser.step()
        module.lazy_reset_grad()

    channel.serve(onnxruntime.__version__, step, lambda: float(last[0]))


def generate(folder: Path, batch: int) -> None:
    """The four files that its training API reads, from the model."""
    model = onnx.load(folder / "model.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    for node in model.graph.node:
        # The gradient reads the mean and the deviation; an exporter leaves these optional outputs away.
        if node.op_type == "LayerNormalization" and len(node.output) == 1:
            node.output.extend([f"{node.output[0]}.mean", f"{node.output[0]}.deviation"])
    weights = [t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    trained = [name for name in weights if not name.endswith(STATISTICS)]
    artifacts.generate_artifacts(
        model,
        requires_grad=trained,
        frozen_params=[name for name in weights if name not in trained],
        loss=artifacts.LossType.CrossEntropyLoss,
        optimizer=artifacts.OptimType.SGD,
        artifact_directory=folder,
    )


if __name__ == "__main__":
    main()
