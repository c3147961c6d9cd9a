"""Three-dimensional windows by two-dimensional ones.

A convolution is a sum of those of its kernel's steps through time, a pool is one over space and then one through time.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import models.compiler.graph as g
from models.compiler.autodiff import gradients
from models.compiler.errors import ModelError
from models.compiler.ir import Value, Window
from models.compiler.onnx_nodes import ModelNode, Terms


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


def conv_transpose_volume(node: ModelNode, x: Value, w: Value) -> Value:
    """The adjoint of conv_volume: x (N, C, T, H, W) is the gradient of its output, w (C, O / groups, KT, KH, KW)."""
    if node.attrs.get("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in node.attrs:
        raise ModelError(
            "auto_pad and output_shape of a three-dimensional ConvTranspose are not supported; give its pads"
        )
    window, reach = _settings(node)
    pads = (reach.before + reach.after, window.pads[0] + window.pads[2], window.pads[1] + window.pads[3])
    extra = node.attrs.get("output_padding", [0, 0, 0])
    strides, dilations = (reach.stride, *window.strides), (reach.dilation, *window.dilations)
    places = [
        s * (n - 1) + d * (k - 1) + 1 + e - p
        for s, n, d, k, e, p in zip(strides, x.shape[2:], dilations, w.shape[2:], extra, pads, strict=True)
    ]
    inner = g.leaf(
        "input of the adjoint", "float32", (x.shape[0], w.shape[1] * int(node.attrs.get("group", 1)), *places)
    )
    # Linear in `inner`, which therefore is no part of the gradient.
    return gradients(g.sum(conv_volume(node, inner, w) * x), [inner])[0]


def pool_volume(node: ModelNode, x: Value, pool: Callable[[ModelNode, Terms], Value]) -> Value:
    """A pool of x (N, C, T, H, W): the extreme of extremes, or the mean of means, is that of the whole window.

    The places of a window are a product of those in space and those in time, whether padding counts or not.
    """
    n, c, t, h, w = x.shape
    space = pool(_of_axes(node, (1, 2)), [g.reshape(x, (n * c, t, h, w))])
    flat = g.reshape(space, (n, c, t, space.shape[2] * space.shape[3]))
    time = pool(_of_axes(node, (0,)), [flat])
    return g.reshape(time, (n, c, time.shape[2], *space.shape[2:]))


def _of_axes(node: ModelNode, axes: tuple[int, ...]) -> ModelNode:
    """A two-dimensional pool with the settings of one or two of three axes; nothing happens along the other."""
    attrs = dict(node.attrs)
    for name, neutral in (("kernel_shape", 1), ("strides", 1), ("dilations", 1)):
        if name in attrs:
            attrs[name] = ([attrs[name][a] for a in axes] + [neutral])[:2]
    if "pads" in attrs:
        pads = attrs["pads"]
        begin, end = ([pads[a + shift] for a in axes] for shift in (0, 3))
        attrs["pads"] = [*[*begin, 0][:2], *[*end, 0][:2]]
    return replace(node, attrs=attrs)
