"""The arena over one step as a picture: which bytes hold what while each operation runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.profile.anatomy import PHASES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_runtime.profile.anatomy import Anatomy

FREE, OWNED = 0, 1
FIRST_PHASE = 2  # then one value for each of PHASES
BLOCKS, ASCII = " ░▓▒█", " .#+@"  # free, owned, written in the forward part, the backward part, the update
LABEL_COLUMNS = 11


def sample(anatomy: Anatomy, rows: int, columns: int) -> NDArray[np.uint8]:
    """What lies in the arena, at the middle of each of rows x columns cells of bytes x operations.

    Returns:
        (rows, columns): FREE, OWNED, or FIRST_PHASE + the place in PHASES of the phase that wrote the bytes.
    """
    picture = np.zeros((rows, columns), np.uint8)
    bytes_at = (np.arange(rows) + 0.5) * anatomy.arena_bytes / rows
    ops_at = np.floor((np.arange(columns) + 0.5) * len(anatomy.operations) / columns)
    for offset, nbytes in anatomy.owned:
        top, bottom = np.searchsorted(bytes_at, [offset, offset + nbytes])
        picture[top:bottom] = OWNED
    for life in anatomy.lives:
        top, bottom = np.searchsorted(bytes_at, [life.offset, life.offset + life.nbytes])
        left, right = np.searchsorted(ops_at, [life.first, life.last + 1])
        picture[top:bottom, left:right] = FIRST_PHASE + PHASES.index(life.phase)
    return picture


def draw_text(anatomy: Anatomy, width: int, *, rows: int = 24, blocks: bool = True) -> list[str]:
    """The picture as lines of text.

    Args:
        anatomy: Of the plan.
        width: Columns of the terminal; at least 40 are used.
        rows: Lines of bytes.
        blocks: Unicode's shades; False for plain ASCII.
    """
    glyphs = BLOCKS if blocks else ASCII
    columns = max(width, 40) - LABEL_COLUMNS
    picture = sample(anatomy, rows, columns)
    lines = [f"{'':{LABEL_COLUMNS}}{_phase_line(anatomy, columns)}"]
    for row, cells in enumerate(picture):
        label = mebibytes(anatomy.arena_bytes * row // rows) if row % 4 == 0 else ""
        lines.append(f"{label:>{LABEL_COLUMNS - 1}} " + "".join(glyphs[cell] for cell in cells))
    kinds = ["free", "named tensors", *(f"written by {phase}" for phase in PHASES)]
    legend = "   ".join(f"{glyph} {kind}" for glyph, kind in zip(glyphs, kinds, strict=True) if glyph != " ")
    return [*lines, f"{'':{LABEL_COLUMNS}}{legend}"]


def mebibytes(nbytes: int) -> str:
    """Bytes as people read them."""
    return f"{nbytes / (1 << 20):.2f} MiB"


def _phase_line(anatomy: Anatomy, columns: int) -> str:
    """f, b or u above each column: the phase of the operation there."""
    at = (np.arange(columns) * 2 + 1) * len(anatomy.operations) // (2 * columns)
    return "".join(anatomy.operations[i].phase[0] for i in at)
