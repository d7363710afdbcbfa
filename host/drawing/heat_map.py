# SPDX-License-Identifier: Apache-2.0
"""A table of numbers as colours, with the numbers written in, drawn with Pillow."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .plots import INK, MUTED, PAPER, make_font, write

# From dark to light and even in lightness: cividis (Nunez et al. 2018), at six places.
_COLORS = (
    (0, 32, 76), (49, 68, 107), (102, 105, 112),
    (149, 143, 120), (203, 186, 105), (255, 233, 69),
)  # fmt: skip
_CELL, _ROW, _EDGE = 58, 24, 12


@dataclass(frozen=True)
class Table:
    """What is drawn.

    Attributes:
        title: Written at the top.
        rows: Names of the rows.
        columns: Names of the columns.
        values: A value for each row and column; nan is an empty cell.
        low: What the darkest colour stands for.
        high: What the lightest one does.
        corner: What rows and columns are.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]
    low: float
    high: float
    corner: str = ""


def heat_map(table: Table) -> torch.Tensor:
    """Draw a table.

    Args:
        table: What to draw.

    Returns:
        IMAGE ``[1, height, width, 3]``, float32 in 0..1, as large as the table needs.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    font, small = make_font(14), make_font(11)
    left = _EDGE + 8 + max(8 * len(name) for name in (*table.rows, table.corner))
    top = 64
    width = left + max(_CELL * len(table.columns), 8 * len(table.title) - left) + _EDGE
    height = top + _ROW * len(table.rows) + _EDGE
    picture = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(picture)
    write(draw, (_EDGE, 18), table.title, INK, font, "lm")
    write(draw, (left - 8, top - 12), table.corner, MUTED, small, "rm")
    for j, name in enumerate(table.columns):
        write(draw, (left + _CELL * (j + 0.5), top - 12), name, MUTED, small, "mm")
    for i, (name, values) in enumerate(zip(table.rows, table.values, strict=True)):
        y = top + _ROW * i
        write(draw, (left - 8, y + _ROW / 2), name, INK, small, "rm")
        for j, value in enumerate(values):
            if not math.isfinite(value):
                continue
            share = (value - table.low) / max(table.high - table.low, 1e-12)
            color, x = shade(share), left + _CELL * j
            draw.rectangle([x, y, x + _CELL - 2, y + _ROW - 2], fill=color)
            letters = PAPER if sum(color) < 330 else INK
            write(draw, (x + _CELL / 2 - 1, y + _ROW / 2 - 1), f"{value:.3f}", letters, small, "mm")
    pixels = np.asarray(picture, dtype=np.float32) / 255.0
    with torch.inference_mode(False):
        return torch.from_numpy(pixels.copy())[None]


def shade(share: float) -> tuple[int, int, int]:
    """The colour of a share from 0 to 1, what is outside as what is at the end."""
    place = min(max(share, 0.0), 1.0) * (len(_COLORS) - 1)
    first = min(int(place), len(_COLORS) - 2)
    part = place - first
    red, green, blue = (
        round(a + part * (b - a)) for a, b in zip(_COLORS[first], _COLORS[first + 1], strict=True)
    )
    return red, green, blue
