"""For every test: ONNX Runtime reports nothing to its makers, neither here nor in the processes that tests start."""

import os

# Read when onnxruntime is first imported, so it stands before any test module.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
