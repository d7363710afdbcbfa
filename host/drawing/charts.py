# SPDX-License-Identifier: Apache-2.0
"""Bars over noise levels with a curve on a scale of its own, drawn with Pillow as the loss is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .plots import GRID, INK, MUTED, PAPER, RAW, SMOOTH, label, make_font, ticks, write

CURVE = (201, 98, 21)
_MOST_DECADES = 4  # beyond these only powers of ten are written


@dataclass(frozen=True)
class Chart:
    """What is drawn.

    Attributes:
        title: Written at the top.
        edges: Edges of the bins, one more than there are bars.
        is_log: Whether the x axis is logarithmic.
        bars: Heights, on the left scale; nan is no bar.
        curve: Heights of a curve over the bins' middles, on the right scale; nan is a gap.
        bar_name: What the bars are.
        curve_name: What the curve is.
        above: Written over each bar, in one row above all of them.
        has_one_scale: Whether the curve is on the left scale, too.
    """

    title: str
    edges: Sequence[float]
    is_log: bool
    bars: Sequence[float]
    curve: Sequence[float]
    bar_name: str
    curve_name: str
    above: Sequence[str] = ()
    has_one_scale: bool = False


def draw_chart(chart: Chart, *, width: int = 640, height: int = 360) -> torch.Tensor:
    """Draw a chart.

    Args:
        chart: What to draw.
        width: Width of the picture in pixels.
        height: Height of the picture in pixels.

    Returns:
        IMAGE ``[1, height, width, 3]``, float32 in 0..1.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(picture)
    font, small = make_font(max(11, height // 26)), make_font(max(8, height // 42))
    box = (int(width * 0.11), int(height * 0.2), int(width * 0.9), int(height * 0.84))
    left = scale([*chart.bars, *(chart.curve if chart.has_one_scale else ())])
    right = left if chart.has_one_scale else scale(chart.curve)
    _frame(draw, chart, box, left, right, font)
    for i, value in enumerate(chart.bars):
        if not math.isfinite(value):
            continue
        x0, x1 = (place_x(chart, edge, box) for edge in chart.edges[i : i + 2])
        y = _place_y(value, left, box)
        draw.rectangle([x0 + 1, min(y, box[3] - 1), max(x1 - 1, x0 + 1), box[3]], fill=RAW)
        if chart.above:
            write(draw, ((x0 + x1) / 2, box[1] - 3), chart.above[i], MUTED, small, "md")
    _curve(draw, chart, right, box)
    write(draw, (box[0], height * 0.06), chart.title, INK, font, "lm")
    write(draw, (box[0], height * 0.13), chart.bar_name, SMOOTH, font, "lm")
    write(draw, (box[2], height * 0.13), chart.curve_name, CURVE, font, "rm")
    pixels = np.asarray(picture, dtype=np.float32) / 255.0
    with torch.inference_mode(False):
        return torch.from_numpy(pixels.copy())[None]


def scale(values: Sequence[float]) -> list[float]:
    """Round numbers from 0 to at least the largest of the values that are finite."""
    top = max((value for value in values if math.isfinite(value)), default=1.0)
    return ticks(0.0, top if top > 0 else 1.0)


def level_ticks(low: float, high: float, is_log: bool) -> list[float]:
    """Round levels to write on an axis from ``low`` to ``high``."""
    if not is_log:
        return [t for t in ticks(low, high) if low <= t <= high]
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1,) if last - first > _MOST_DECADES else (1, 2, 5)
    found = [m * 10.0**power for power in range(first, last + 1) for m in steps]
    return [t for t in found if low * (1 - 1e-9) <= t <= high * (1 + 1e-9)]


def place_x(chart: Chart, sigma: float, box: tuple[int, int, int, int]) -> float:
    """The pixel column of a level."""
    low, high = chart.edges[0], chart.edges[-1]
    if chart.is_log:
        low, high, sigma = math.log(low), math.log(high), math.log(sigma)
    return box[0] + (sigma - low) / (high - low) * (box[2] - box[0])


def _place_y(value: float, marks: list[float], box: tuple[int, int, int, int]) -> float:
    return box[3] - value / marks[-1] * (box[3] - box[1])


def _frame(
    draw: Any, chart: Chart, box: Any, left: list[float], right: list[float], font: Any
) -> None:
    for tick in left:
        y = _place_y(tick, left, box)
        draw.line([(box[0], y), (box[2], y)], fill=GRID)
        write(draw, (box[0] - 6, y), label(tick, left), MUTED, font, "rm")
    for tick in right if not chart.has_one_scale else ():
        y = _place_y(tick, right, box)
        draw.line([(box[2], y), (box[2] + 4, y)], fill=CURVE)
        write(draw, (box[2] + 7, y), label(tick, right), CURVE, font, "lm")
    for tick in level_ticks(chart.edges[0], chart.edges[-1], chart.is_log):
        x = place_x(chart, tick, box)
        draw.line([(x, box[3]), (x, box[3] + 4)], fill=MUTED)
        write(draw, (x, box[3] + 7), f"{tick:g}", MUTED, font, "ma")
    draw.line([(box[0], box[1]), (box[0], box[3]), (box[2], box[3])], fill=INK)
    write(draw, (box[2], box[3] + 24), "sigma", MUTED, font, "ra")


def _curve(draw: Any, chart: Chart, marks: list[float], box: Any) -> None:
    run: list[tuple[float, float]] = []
    for i, value in enumerate([*chart.curve, math.nan]):
        if math.isfinite(value):
            ends = [place_x(chart, edge, box) for edge in chart.edges[i : i + 2]]
            run.append((sum(ends) / 2, _place_y(value, marks, box)))
            continue
        if len(run) > 1:
            draw.line(run, fill=CURVE, width=2, joint="curve")
        elif run:
            x, y = run[0]
            draw.ellipse([x - 2, y - 2, x + 2, y + 2], fill=CURVE)
        run = []
