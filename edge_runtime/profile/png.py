"""The arena's picture as a PNG file, with nothing but numpy and zlib: a board can write it."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.profile.anatomy import PHASES
from edge_runtime.profile.arena_map import FIRST_PHASE, FREE, OWNED, mebibytes, sample

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_runtime.profile.anatomy import Anatomy

WIDTH, HEIGHT = 1000, 480  # of the arena, in pixels
LEFT, TOP, BOTTOM, RIGHT = 110, 34, 34, 10
STRIP = 8  # the phase of each operation, above the arena
INK, PAPER = 5, 6
PALETTE = (
    (238, 240, 242),  # free
    (158, 166, 174),  # owned
    (66, 125, 184),  # forward
    (226, 140, 60),  # backward
    (92, 158, 90),  # update
    (40, 44, 48),  # ink
    (255, 255, 255),  # paper
)
# Five rows of three pixels each, from the top: one octal digit a row.
LETTERS = "0123456789.abcdefghiklmnoprstuwxyM"
BITMAPS = (
    "75557 26227 71747 71717 55711 74717 74757 71122 75757 75717 00002 03577 46556 07447 13557 07747 34644 07571 46555 "
    "20222 45655 22223 05755 06555 07557 06564 06444 07627 27223 05557 05577 05255 05522 57755"
)
GLYPHS = {letter: int(rows, 8) for letter, rows in zip(LETTERS, BITMAPS.split(), strict=True)}


def draw_png(anatomy: Anatomy) -> bytes:
    """A picture with bytes downwards, operations to the right, and a legend."""
    canvas = np.full((TOP + STRIP + HEIGHT + BOTTOM, LEFT + WIDTH + RIGHT), PAPER, np.uint8)
    arena = canvas[TOP + STRIP : TOP + STRIP + HEIGHT, LEFT : LEFT + WIDTH]
    arena[...] = _outlined(anatomy)
    at = (np.arange(WIDTH) * 2 + 1) * len(anatomy.operations) // (2 * WIDTH)
    canvas[TOP : TOP + STRIP, LEFT : LEFT + WIDTH] = [
        FIRST_PHASE + PHASES.index(anatomy.operations[i].phase) for i in at
    ]
    for quarter in range(5):
        label = mebibytes(anatomy.arena_bytes * quarter // 4)[:-1]
        _write(canvas, label, LEFT - 8 * len(label) - 8, TOP + STRIP + quarter * (HEIGHT - 10) // 4)
    x = LEFT
    for kind, colour in zip(("free", "named tensors", *PHASES), (FREE, OWNED, 2, 3, 4), strict=True):
        canvas[10:20, x : x + 14] = colour
        _write(canvas, kind, x + 20, 10)
        x += 8 * len(kind) + 50
    _write(canvas, f"{len(anatomy.operations)} operations of one step", LEFT, TOP + STRIP + HEIGHT + 12)
    return _png(canvas)


def _outlined(anatomy: Anatomy) -> NDArray[np.uint8]:
    """The sampled arena, every temporary with a line on top and to the left so that neighbours can be told apart."""
    picture = sample(anatomy, HEIGHT, WIDTH)
    for life in anatomy.lives:
        top, bottom = (n * HEIGHT // anatomy.arena_bytes for n in (life.offset, life.offset + life.nbytes))
        left, right = (n * WIDTH // len(anatomy.operations) for n in (life.first, life.last + 1))
        if bottom - top > 3 and right - left > 3:
            picture[top, left:right] = PAPER
            picture[top:bottom, left] = PAPER
    return picture


def _write(canvas: NDArray[np.uint8], text: str, x: int, y: int) -> None:
    """Text of ten pixels' height, eight a character; a character without a glyph is a space."""
    for character in text:
        bits = [GLYPHS.get(character, 0) >> shift & 1 for shift in range(14, -1, -1)]
        glyph = np.repeat(np.repeat(np.reshape(bits, (5, 3)), 2, axis=0), 2, axis=1)
        canvas[y : y + 10, x : x + 6][glyph == 1] = INK
        x += 8


def _png(pixels: NDArray[np.uint8]) -> bytes:
    """Pixels of the palette as a PNG (ISO/IEC 15948): header, palette, one deflated block of rows."""
    height, width = pixels.shape
    rows = np.pad(pixels, ((0, 0), (1, 0)))  # filter 0 before every row
    chunks = (
        (b"IHDR", struct.pack(">2I5B", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", bytes(np.array(PALETTE, np.uint8))),
        (b"IDAT", zlib.compress(rows.tobytes(), 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
