# SPDX-License-Identifier: Apache-2.0
"""Several runs on one axis, drawn with Pillow: smoothed, raw behind it, and the held-out pictures as dots.

With all limits given, the axis is the same whatever is drawn on it, so that two pictures can be compared.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...registry import check_limits, option
from ..runs.curves import Curve
from . import plots
from .plots import GRID, INK, MUTED, PAPER, label, make_font, ticks, write

# Okabe and Ito 2008, without yellow and with a grey: they can be told apart with any eyes.
COLORS = (
    (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167),
    (86, 180, 233), (230, 159, 0), (90, 90, 90), (130, 80, 40),
)  # fmt: skip
_COLUMNS = 4
_FAINT = 0.72  # share of white in the raw losses
_FAR = 20  # in boxes: how far out a point may lie before its place is cut, as Pillow's numbers end


@dataclass(frozen=True)
class Limits:
    """What the axis shows."""

    lowest: float = option(0.0, "Loss at the bottom of the axis.", min=-1e9, max=1e9)
    highest: float = option(
        0.0, "Loss at the top of the axis; 0 takes what fits the runs.", min=-1e9, max=1e9
    )
    first_step: int = option(0, "Step at the left of the axis.", min=0, max=1_000_000_000)
    last_step: int = option(
        0,
        "Step at the right of the axis; 0 takes that of the longest run.",
        min=0,
        max=1_000_000_000,
    )

    def __post_init__(self) -> None:
        check_limits(self)
        if self.highest and self.highest <= self.lowest:
            raise ValueError(
                f"highest is {self.highest:g} and lowest {self.lowest:g}: highest must be above it, or 0 for what fits."
            )
        if self.last_step and self.last_step <= self.first_step:
            raise ValueError(
                f"last_step is {self.last_step} and first_step {self.first_step}: last_step must be after it, or 0."
            )


@dataclass(frozen=True)
class _Axis:
    """From steps and losses to pixels of a box that is ``width`` by ``height``."""

    steps: tuple[float, float]
    losses: tuple[float, float]
    width: int
    height: int

    def place(self, step: float, loss: float) -> tuple[float, float] | None:
        if not math.isfinite(loss):
            return None
        (left, right), (low, high) = self.steps, self.losses
        x, y = (step - left) / (right - left), 1 - (loss - low) / (high - low)
        near = (max(-_FAR, min(_FAR, x)), max(-_FAR, min(_FAR, y)))
        return near[0] * self.width, near[1] * self.height


def run_plot(
    curves: Sequence[Curve],
    limits: Limits,
    window: float,
    *,
    width: int = 960,
    height: int = 540,
) -> torch.Tensor:
    """Draw runs over their steps.

    Args:
        curves: The runs, as many as there are ``COLORS`` at most.
        limits: Of the axis.
        window: Steps that losses are smoothed over.
        width: Width of the picture in pixels.
        height: Height of the picture in pixels.

    Returns:
        IMAGE ``[1, height, width, 3]``, float32 in 0..1.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(picture)
    font = make_font(max(11, height // 34))
    box = (int(width * 0.08), int(height * 0.2), int(width * 0.97), int(height * 0.87))
    axis = _Axis(_steps(curves, limits), _losses(curves, limits), box[2] - box[0], box[3] - box[1])
    # A picture of its own cuts off what is outside of the limits.
    inner = Image.new("RGB", (axis.width + 1, axis.height + 1), PAPER)
    _grid(draw, ImageDraw.Draw(inner), axis, box, font)
    _curves(ImageDraw.Draw(inner), curves, axis, window)
    picture.paste(inner, box[:2])
    draw.line([(box[0], box[1]), (box[0], box[3]), (box[2], box[3])], fill=INK)
    write(draw, (box[0], height * 0.045), "loss", INK, font, "lm")
    said = f"line: smoothed over {window:.0f} steps, faint: each step, dots: validation"
    write(draw, (box[2], height * 0.045), said, MUTED, font, "rm")
    write(draw, (box[2], height * 0.95), "step", MUTED, font, "rm")
    _legend(draw, curves, box, height, font)
    pixels = np.asarray(picture, dtype=np.float32) / 255.0
    with torch.inference_mode(False):
        return torch.from_numpy(pixels.copy())[None]


def _steps(curves: Sequence[Curve], limits: Limits) -> tuple[float, float]:
    last = limits.last_step or max(
        [curve.steps[-1] for curve in curves]
        + [step for curve in curves for step, _ in curve.held_out]
    )
    return float(limits.first_step), float(max(last, limits.first_step + 1))


def _losses(curves: Sequence[Curve], limits: Limits) -> tuple[float, float]:
    if limits.highest:
        return limits.lowest, limits.highest
    tops = []
    for curve in curves:
        known = sorted(loss for loss in curve.losses if math.isfinite(loss))
        if known:  # a few spikes must not flatten the rest
            tops.append(known[-1 - len(known) // 100])
        tops += [loss for _, loss in curve.held_out if math.isfinite(loss)]
    top = max([limits.lowest, *tops])
    top = top if top > limits.lowest else limits.lowest + 1.0
    return limits.lowest, ticks(limits.lowest, top)[-1]


def _grid(draw: Any, inner: Any, axis: _Axis, box: Any, font: Any) -> None:
    every = ticks(*axis.losses)
    for tick in every:
        if axis.losses[0] <= tick <= axis.losses[1]:
            y = round(axis.height * (axis.losses[1] - tick) / (axis.losses[1] - axis.losses[0]))
            inner.line([(0, y), (axis.width, y)], fill=GRID)
            write(draw, (box[0] - 6, box[1] + y), label(tick, every), MUTED, font, "rm")
    for tick in ticks(*axis.steps):
        if tick == int(tick) and axis.steps[0] <= tick <= axis.steps[1]:
            x = box[0] + axis.width * (tick - axis.steps[0]) / (axis.steps[1] - axis.steps[0])
            draw.line([(x, box[3]), (x, box[3] + 4)], fill=MUTED)
            write(draw, (x, box[3] + 7), f"{tick:.0f}", MUTED, font, "ma")


def _curves(draw: Any, curves: Sequence[Curve], axis: _Axis, window: float) -> None:
    colored = list(zip(curves, COLORS, strict=False))
    for curve, color in colored:
        faint = tuple(round(_FAINT * 255 + (1 - _FAINT) * part) for part in color)
        raw = [axis.place(*point) for point in zip(curve.steps, curve.losses, strict=True)]
        plots.polyline(draw, raw, faint, 1)
    for curve, color in colored:
        smooth = plots.smoothed(curve.losses, window)
        line = [axis.place(*point) for point in zip(curve.steps, smooth, strict=True)]
        plots.polyline(draw, line, color, 2)
    for curve, color in colored:
        dots = [place for row in curve.held_out if (place := axis.place(*row)) is not None]
        if len(dots) > 1:
            draw.line(dots, fill=color, width=1)
        for x, y in dots:
            draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill=color, outline=PAPER)


def _legend(draw: Any, curves: Sequence[Curve], box: Any, height: int, font: Any) -> None:
    width = (box[2] - box[0]) / _COLUMNS
    for i, (curve, color) in enumerate(zip(curves, COLORS, strict=False)):
        row, column = divmod(i, _COLUMNS)
        x, y = box[0] + column * width, height * (0.1 + 0.055 * row)
        draw.rectangle([x, y - 4, x + 16, y + 4], fill=color)
        write(draw, (x + 22, y), _short(draw, curve.name, width - 30, font), INK, font, "lm")


def _short(draw: Any, name: str, room: float, font: Any) -> str:
    """The name on one line, cut where there is no room for more."""
    text = " ".join(name.split())[:200]
    if draw.textlength(text, font=font) <= room:
        return text
    while text and draw.textlength(f"{text}...", font=font) > room:
        text = text[:-1]
    return f"{text}..."
