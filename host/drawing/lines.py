# SPDX-License-Identifier: Apache-2.0
"""Named lines over one axis, linear or logarithmic, drawn with Pillow: a color for each, a dot for each point."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .charts import level_ticks
from .plots import GRID, INK, MUTED, PAPER, label, make_font, polyline, ticks, write
from .run_plot import COLORS

_COLUMNS = 3
_MOST_LABELS = 9


@dataclass(frozen=True)
class Line:
    """A line through points; a value that is not finite, or not above 0 on a logarithmic axis, is a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Lines:
    """What is drawn.

    Attributes:
        title: Written at the top.
        lines: As many as there are colors at most.
        x_name: What the axis to the right is.
        is_log: Whether the axis upwards is logarithmic.
        labels: Written below places of the axis to the right, instead of numbers.
    """

    title: str
    lines: Sequence[Line]
    x_name: str
    is_log: bool = False
    labels: Sequence[tuple[float, str]] = ()


def draw_lines(what: Lines, *, width: int = 640, height: int = 400) -> torch.Tensor:
    """Draw lines.

    Args:
        what: What to draw.
        width: Width of the picture in pixels.
        height: Height of the picture in pixels.

    Returns:
        IMAGE ``[1, height, width, 3]``, float32 in 0..1.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(picture)
    font = make_font(max(11, height // 28))
    rows = -(-len(what.lines) // _COLUMNS)
    top = height * (0.1 + 0.055 * rows)
    box = (width * 0.11, top, width * 0.96, height * 0.86)
    shown = [_seen(line, what.is_log) for line in what.lines]
    x_range = _x_range(shown)
    marks = _y_ticks([value for line in shown for value in line.y if math.isfinite(value)], what)
    _axes(draw, what, box, x_range, marks, font)
    for line, color in zip(shown, COLORS, strict=False):
        places = [
            _place(x, y, box, x_range, marks, what.is_log) if math.isfinite(y) else None
            for x, y in zip(line.x, line.y, strict=True)
        ]
        polyline(draw, places, color, 2)
        for x, y in filter(None, places):
            draw.ellipse([x - 2.5, y - 2.5, x + 2.5, y + 2.5], fill=color)
    write(draw, (box[0], height * 0.05), what.title, INK, font, "lm")
    _legend(draw, what.lines, box, height, font)
    pixels = np.asarray(picture, dtype=np.float32) / 255.0
    with torch.inference_mode(False):
        return torch.from_numpy(pixels.copy())[None]


def _seen(line: Line, is_log: bool) -> Line:
    y = [math.nan if is_log and not value > 0 else float(value) for value in line.y]
    return Line(line.name, line.x, y)


def _x_range(lines: Sequence[Line]) -> tuple[float, float]:
    every = [float(x) for line in lines for x in line.x] or [0.0]
    low, high = min(every), max(every)
    return low, high if high > low else low + 1.0


def _y_ticks(known: list[float], what: Lines) -> list[float]:
    """The marks of the axis upwards; the first and the last are its ends."""
    if what.is_log:
        low, high = min(known, default=0.1), max(known, default=1.0)
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        return level_ticks(10.0**first, 10.0 ** max(last, first + 1), is_log=True)
    top = max(known, default=1.0)
    return ticks(min(0.0, min(known, default=0.0)), top if top > 0 else 1.0)


def _place(
    x: float, y: float, box: Any, x_range: tuple[float, float], marks: list[float], is_log: bool
) -> tuple[float, float]:
    low, high = marks[0], marks[-1]
    if is_log:
        low, high, y = math.log(low), math.log(high), math.log(y)
    across = (x - x_range[0]) / (x_range[1] - x_range[0])
    up = (y - low) / (high - low)
    return box[0] + across * (box[2] - box[0]), box[3] - up * (box[3] - box[1])


def _axes(
    draw: Any, what: Lines, box: Any, x_range: tuple[float, float], marks: list[float], font: Any
) -> None:
    for mark in marks:
        y = _place(x_range[0], mark, box, x_range, marks, what.is_log)[1]
        draw.line([(box[0], y), (box[2], y)], fill=GRID)
        said = f"{mark:g}" if what.is_log else label(mark, marks)
        write(draw, (box[0] - 6, y), said, MUTED, font, "rm")
    labels = list(what.labels)[:: max(1, -(-len(what.labels) // _MOST_LABELS))]
    if not labels:
        whole = [t for t in ticks(*x_range) if t == int(t) and x_range[0] <= t <= x_range[1]]
        labels = [(t, f"{t:.0f}") for t in whole]
    for x, said in labels:
        place = _place(x, marks[0], box, x_range, marks, what.is_log)[0]
        draw.line([(place, box[3]), (place, box[3] + 4)], fill=MUTED)
        write(draw, (place, box[3] + 7), said, MUTED, font, "ma")
    draw.line([(box[0], box[1]), (box[0], box[3]), (box[2], box[3])], fill=INK)
    write(draw, (box[2], box[3] + 24), what.x_name, MUTED, font, "ra")


def _legend(draw: Any, lines: Sequence[Line], box: Any, height: int, font: Any) -> None:
    room = (box[2] - box[0]) / _COLUMNS
    for i, (line, color) in enumerate(zip(lines, COLORS, strict=False)):
        row, column = divmod(i, _COLUMNS)
        x, y = box[0] + column * room, height * (0.115 + 0.055 * row)
        draw.rectangle([x, y - 4, x + 16, y + 4], fill=color)
        name = line.name
        while name and draw.textlength(name, font=font) > room - 30:
            name = name[:-1]
        write(draw, (x + 22, y), name, INK, font, "lm")
