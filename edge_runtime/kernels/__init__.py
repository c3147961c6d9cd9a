"""What the compiled kernels compute: `reference` holds a slow, readable NumPy twin of every operation.

Nothing here is imported when a client starts; the kernels themselves live in `edge_runtime._core`.
"""
