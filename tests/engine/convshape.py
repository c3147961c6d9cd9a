"""Convolutions in few words, and the operations each stands for."""

from __future__ import annotations

from dataclasses import dataclass

from opcase import F32, Case
from planwriter import bits

LIMIT = bits(4.0)


@dataclass(frozen=True)
class ConvShape:
    """A convolution in few words."""

    images: int
    groups: int
    channels: int
    filters: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)

    @property
    def x(self) -> tuple[int, ...]:
        return (self.images, self.groups * self.channels, *self.size)

    @property
    def w(self) -> tuple[int, ...]:
        return (self.groups * self.filters, self.channels, *self.kernel)

    @property
    def y(self) -> tuple[int, ...]:
        padded = (self.size[0] + self.pads[0] + self.pads[2], self.size[1] + self.pads[1] + self.pads[3])
        extent = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True)]
        spatial = [(p - e) // s + 1 for p, e, s in zip(padded, extent, self.stride, strict=True)]
        return (self.images, self.groups * self.filters, *spatial)

    def attrs(self, last: int) -> tuple[int, ...]:
        return (*self.stride, *self.pads, *self.dilation, self.groups, last)


def conv_cases(s: ConvShape) -> list[Case]:
    taps = s.kernel[0] * s.kernel[1]
    limited = [
        Case("conv", (s.x, s.w, (s.w[0],)), ((s.y, F32),), s.attrs(LIMIT), 16 * s.channels)
    ]  # errors are those of sums before the limit
    return [
        *(limited if taps == 1 and not any(s.pads) and (s.channels, s.filters) != (1, 1) else []),
        Case("conv", (s.x, s.w, (s.w[0],)), ((s.y, F32),), s.attrs(0), s.channels * taps),
        Case("conv", (s.x, s.w, None), ((s.y, F32),), s.attrs(1), s.channels * taps),
        Case("conv_grad_x", (s.y, s.w), ((s.x, F32),), s.attrs(0), s.filters * taps),
        Case("conv_grad_w", (s.y, s.x), ((s.w, F32),), s.attrs(0), s.images * s.y[2] * s.y[3]),
    ]
