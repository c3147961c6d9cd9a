"""Values in fewer bits, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime.kernels.cuda.devices import device_module

if TYPE_CHECKING:
    from typing import Literal

    from edge_runtime.kernels.cuda.devices import DeviceArray

__all__ = ["Quantized", "Quantizer", "convert", "dequantize", "quantize"]


@dataclass(frozen=True)
class Quantizer:
    """How values become fewer bits; each gives the bits of its function in `edge_runtime.kernels`.

    nearest: `quantize_int8`, levels 127; stochastic: `quantize_qsgd` with levels, seed and norm; sign: `quantize_sign`.
    """

    rounding: Literal["nearest", "stochastic", "sign"]
    block: int = 256  # values to a scale; for sign a multiple of 8
    levels: int = 127  # 1..127
    seed: int = 0  # 0..2^64 - 1
    norm: Literal["l2", "max"] = "l2"


@dataclass(frozen=True)
class Quantized:
    """Codes (n,) int8, or for sign (ceil(n / 8),) uint8, and a scale a block, (ceil(n / block),) float32.

    `first_bad`, (1,) int32, receives the place of the first value that is not finite, or -1; the block of such a value
    becomes zeros with a scale of NaN. Reading back does not look at it.
    """

    q: DeviceArray
    scales: DeviceArray
    first_bad: DeviceArray


def convert(x: DeviceArray, out: DeviceArray, stream: int = 0) -> None:
    """Round float32 to float16 or bfloat16, to nearest with ties to even, or widen back: whichever `out` is.

    Args:
        x: (n,) float32, or float16 or bfloat16.
        out: (n,) of the other kind.
        stream: As in `Queue`.
    """
    device_module().convert(x, out, stream)


def quantize(x: DeviceArray, quantizer: Quantizer, out: Quantized, stream: int = 0) -> None:
    """Write the codes and scales of x, (n,) float32 of at most 2^31 - 1 values.

    Bit for bit what the processor gives, so either side can read what the other wrote. A block above 4,096 values is
    one thread block's work, and with norm "l2" or sign its sum 16 threads': blocks should be small here.
    """
    device_module().quantize(
        x=x,
        rounding=quantizer.rounding,
        norm=quantizer.norm,
        block=quantizer.block,
        levels=127 if quantizer.rounding == "nearest" else quantizer.levels,
        seed=quantizer.seed,
        q=out.q,
        scales=out.scales,
        first_bad=out.first_bad,
        stream=stream,
    )


def dequantize(coded: Quantized, quantizer: Quantizer, x: DeviceArray, stream: int = 0) -> None:
    """Write what the codes stand for to x, (n,) float32; of `quantizer` the rounding and block count."""
    sign = quantizer.rounding == "sign"
    device_module().dequantize(coded.q, coded.scales, sign, quantizer.block, x, stream)
