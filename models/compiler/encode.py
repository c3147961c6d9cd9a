"""Floats as the plan format's attributes hold them."""

import struct


def float_bits(value: float) -> int:
    """The bits of a float32 as a signed integer."""
    return int(struct.unpack("<i", struct.pack("<f", value))[0])


def bits_float(bits: int) -> float:
    """What float_bits was given, rounded to float32."""
    return float(struct.unpack("<f", struct.pack("<i", bits))[0])
