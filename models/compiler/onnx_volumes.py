"""Three-dimensional convolution as a sum of two-dimensional ones, one for each step of the kernel through time."""

from dataclasses import dataclass

import models.compiler.graph as g
from models.compiler.errors import ModelError
from models.compiler.ir import Value, Window
from models.compiler.onnx_nodes import ModelNode


@dataclass(frozen=True)
class Reach:
    """How a kernel is laid along time."""

    stride: int
    before: int
    after: int
    dilation: int


def conv_volume(node: ModelNode, x: Value, w: Value) -> Value:
    """Cross-correlation of x (N, C, T, H, W) with w (O, C / groups, KT, KH, KW).

    Frames are taken as images of one large batch: y[t] is the sum over k of conv(x[stride * t + dilation * k], w[k]).
    """
    window, reach = _settings(node)
    groups, taps = int(node.attrs.get("group", 1)), w.shape[2]
    if w.shape[3:] == (1, 1) and window == Window():
        return _along_time(x, w, reach, groups)
    frames = g.transpose(x, (0, 2, 1, 3, 4))
    n, t, c, height, width = frames.shape
    places = (t + reach.before + reach.after - reach.dilation * (taps - 1) - 1) // reach.stride + 1
    if places < 1:
        raise ModelError(f"the kernel {list(w.shape[2:])} is longer than {t} frames")
    padded = g.pad(frames, [0, reach.before, 0, 0, 0], [0, reach.after, 0, 0, 0])
    kernels = g.transpose(w, (2, 0, 1, 3, 4))
    total: Value | None = None
    for k in range(taps):
        taken = g.slice(
            padded, [0, k * reach.dilation, 0, 0, 0], [n, places, c, height, width], [1, reach.stride, 1, 1, 1]
        )
        kernel = g.slice(kernels, [k, 0, 0, 0, 0], [1, *kernels.shape[1:]], [1] * 5)
        part = g.conv(
            g.reshape(taken, (n * places, c, height, width)), g.reshape(kernel, kernel.shape[1:]), window, groups
        )
        total = part if total is None else total + part
    assert total is not None
    return g.transpose(g.reshape(total, (n, places, *total.shape[1:])), (0, 2, 1, 3, 4))


def _along_time(x: Value, w: Value, reach: Reach, groups: int) -> Value:
    """A kernel of one place in space: time is the height of an image as wide as a frame has places."""
    n, c, t, height, width = x.shape
    window = Window((reach.stride, 1), (reach.before, 0, reach.after, 0), (reach.dilation, 1))
    y = g.conv(g.reshape(x, (n, c, t, height * width)), g.reshape(w, (*w.shape[:3], 1)), window, groups)
    return g.reshape(y, (n, y.shape[1], y.shape[2], height, width))


def _settings(node: ModelNode) -> tuple[Window, Reach]:
    if node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise ModelError("auto_pad of a three-dimensional convolution is not supported; give its pads")
    strides, dilations = (node.attrs.get(k, [1, 1, 1]) for k in ("strides", "dilations"))
    pads = node.attrs.get("pads", [0] * 6)
    if (len(strides), len(dilations), len(pads)) != (3, 3, 6) or min(*strides, *dilations) < 1 or min(pads) < 0:
        raise ModelError(f"strides {strides}, dilations {dilations} or pads {pads} do not fit three dimensions")
    window = Window((strides[1], strides[2]), (pads[1], pads[2], pads[4], pads[5]), (dilations[1], dilations[2]))
    return window, Reach(strides[0], pads[0], pads[3], dilations[0])
