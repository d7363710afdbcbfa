# SPDX-License-Identifier: Apache-2.0
"""The loss of a run as a picture, drawn with Pillow: raw, smoothed and of held-out pictures, readable at 640 x 360."""

import math
from collections.abc import Sequence
from typing import Any

import torch

INK, MUTED, GRID = (40, 44, 52), (110, 116, 128), (222, 226, 232)
RAW, SMOOTH, PAPER = (173, 200, 232), (24, 95, 165), (255, 255, 255)
HELD_OUT = (201, 84, 20)
_TICKS = 5


def loss_plot(
    losses: Sequence[float],
    *,
    width: int = 640,
    height: int = 360,
    title: str = "loss",
    validation: Sequence[tuple[int, float]] = (),
) -> torch.Tensor:
    """Draw losses over steps; values that are not finite are gaps.

    Args:
        losses: One a step, from the first.
        width: Width of the picture in pixels.
        height: Height of the picture in pixels.
        title: Written at the top.
        validation: Steps (0 is before the first) and losses of held-out pictures, a second line.

    Returns:
        IMAGE ``[1, height, width, 3]``, float32 in 0..1.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(picture)
    letters = make_font(max(11, height // 26))
    box = (int(width * 0.11), int(height * 0.12), int(width * 0.97), int(height * 0.86))
    last = max(len(losses), 2)
    known = [loss for loss in losses if math.isfinite(loss)]
    held_out = [(step, loss) for step, loss in validation if math.isfinite(loss)]
    y_ticks = ticks(*_range(known, [loss for _, loss in held_out]))
    low, high = y_ticks[0], y_ticks[-1]

    def place(step: float, loss: float) -> tuple[float, float]:
        x = box[0] + (step - 1) / (last - 1) * (box[2] - box[0])
        return x, box[3] - (min(loss, high) - low) / (high - low) * (box[3] - box[1])

    x_ticks = [t for t in ticks(1, last) if t == int(t) and 1 <= t <= last]
    _axes(draw, box, place, x_ticks, y_ticks, letters)
    smooth = smoothed(losses)
    _curve(draw, losses, place, RAW, 1)
    _curve(draw, smooth, place, SMOOTH, 2)
    if held_out:
        _marks(draw, [place(max(step, 1), loss) for step, loss in held_out])
    heard = losses if known else ()
    _head(draw, box, title, heard, smooth, held_out, letters)
    pixels = np.asarray(picture, dtype=np.float32) / 255.0
    with torch.inference_mode(False):
        return torch.from_numpy(pixels.copy())[None]


def smoothed(losses: Sequence[float], window: float = 0.0) -> list[float]:
    """An exponential mean over about ``window`` steps (0: a twentieth of the run), without a bias at its start."""
    keep = 1.0 - 1.0 / max(1.0, window or smoothing_window(len(losses)))
    total, weight, means = 0.0, 0.0, []
    for loss in losses:
        if math.isfinite(loss):
            total, weight = keep * total + loss, keep * weight + 1.0
            means.append(total / weight)
        else:
            means.append(math.nan)
    return means


def smoothing_window(steps: int) -> float:
    """How many steps a run's losses are smoothed over: a twentieth of it, 50 at most."""
    return max(1.0, min(50.0, steps / 20))


def polyline(
    draw: Any, places: Sequence[tuple[float, float] | None], color: Any, width: int
) -> None:
    """Lines through places; None is a gap, and a place between two gaps a dot."""
    run: list[tuple[float, float]] = []
    for place in [*places, None]:
        if place is not None:
            run.append(place)
            continue
        if len(run) > 1:
            draw.line(run, fill=color, width=width, joint="curve")
        elif run:
            x, y = run[0]
            draw.ellipse([x - width, y - width, x + width, y + width], fill=color)
        run = []


def ticks(low: float, high: float) -> list[float]:
    """Round numbers (1, 2, 5 times a power of ten) from at or below ``low`` to at or above ``high``."""
    raw = (high - low) / _TICKS or 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * (1 - 1e-9))
    start, stop = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(start, max(stop, start + 1) + 1)]


def write(draw: Any, at: tuple[float, float], text: str, fill: Any, font: Any, anchor: str) -> None:
    """Write ``text`` with its ``anchor`` at a place, also with a font that knows no anchors."""
    try:
        draw.text(at, text, fill=fill, font=font, anchor=anchor)
    except ValueError:  # a bitmap font has no anchors
        left = {"l": 0.0, "m": 0.5, "r": 1.0}[anchor[0]] * draw.textlength(text, font=font)
        top = {"a": 0.0, "m": 0.5, "d": 1.0}[anchor[1]] * 11
        draw.text((at[0] - left, at[1] - top), text, fill=fill, font=font)


def make_font(size: int) -> Any:
    """Pillow's own font, in about this size where it can."""
    from PIL import ImageFont

    try:
        return ImageFont.load_default(size=size)
    except TypeError:  # Pillow before 10.1
        return ImageFont.load_default()


def _head(
    draw: Any,
    box: Any,
    title: str,
    losses: Sequence[float],
    smooth: Sequence[float],
    held_out: Sequence[tuple[int, float]],
    font: Any,
) -> None:
    y = box[1] // 2
    write(draw, (box[0], y), title, INK, font, "lm")
    if losses:
        end = next(value for value in reversed(smooth) if math.isfinite(value))
        said = f"last {losses[-1]:.4f}   smoothed {end:.4f}"
        write(draw, (box[2], y), said, SMOOTH, font, "rm")
    if held_out:
        x = box[0] + draw.textlength(f"{title}   ", font=font)
        write(draw, (x, y), f"validation {held_out[-1][1]:.4f}", HELD_OUT, font, "lm")


def _axes(
    draw: Any, box: Any, place: Any, x_ticks: list[float], y_ticks: list[float], font: Any
) -> None:
    low = y_ticks[0]
    for tick in y_ticks:
        y = place(x_ticks[0], tick)[1]
        draw.line([(box[0], y), (box[2], y)], fill=GRID)
        write(draw, (box[0] - 6, y), label(tick, y_ticks), MUTED, font, "rm")
    for tick in x_ticks:
        x = place(tick, low)[0]
        draw.line([(x, box[3]), (x, box[3] + 4)], fill=MUTED)
        write(draw, (x, box[3] + 7), f"{tick:.0f}", MUTED, font, "ma")
    draw.line([(box[0], box[1]), (box[0], box[3]), (box[2], box[3])], fill=INK)
    write(draw, (box[2], box[3] + 22), "step", MUTED, font, "ra")


def _range(known: list[float], held_out: list[float]) -> tuple[float, float]:
    if not known:
        return 0.0, max([1.0, *held_out])
    # A few spikes must not flatten the rest: the top is the 99th percentile of a long run.
    top = max([sorted(known)[-1 - len(known) // 100], *held_out])
    low = min(0.0, min(known))
    return low, top if top > low else low + 1.0


def label(tick: float, all_ticks: list[float]) -> str:
    """A tick's text, with as many decimals as tell it from its neighbours."""
    step = all_ticks[1] - all_ticks[0]
    largest = max(abs(t) for t in all_ticks)
    if largest >= 1e5 or largest < 1e-4:
        return f"{tick:.1e}"
    return f"{tick:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def _marks(draw: Any, places: Sequence[tuple[float, float]]) -> None:
    """A line through the places, each with a dot."""
    if len(places) > 1:
        draw.line(places, fill=HELD_OUT, width=2, joint="curve")
    for x, y in places:
        draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=HELD_OUT)


def _curve(draw: Any, values: Sequence[float], place: Any, color: Any, width: int) -> None:
    places = [
        place(step, value) if math.isfinite(value) else None
        for step, value in enumerate(values, start=1)
    ]
    polyline(draw, places, color, width)
