# SPDX-License-Identifier: Apache-2.0
"""Pictures for people: labelled grids of samples, enlarged without smoothing."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

INK, MUTED, PAPER, BEFORE, AFTER = "#1f2328", "#656d76", "#ffffff", "#8c959f", "#1a7f37"
ZOOM = 3
GAP, MARGIN, LINE = 10, 24, 22

Pair = tuple[str, Image.Image, Image.Image]


def pairs(
    rows: Sequence[Pair],
    title: str,
    columns: int = 2,
    labels: tuple[str, str] = ("before", "after"),
) -> Image.Image:
    """A picture of pictures: before and after side by side, the prompt under them.

    Args:
        rows: Prompt, picture before and picture after.
        title: Written at the top.
        columns: Pairs side by side.
        labels: What stands over the left and over the right picture of a pair.
    """
    width, height = (ZOOM * side for side in rows[0][1].size)
    cell = (2 * width + GAP, height + 2 * LINE + GAP)
    lines = -(-len(rows) // columns)
    top = MARGIN + 2 * LINE
    wide = 2 * MARGIN + columns * cell[0] + (columns - 1) * MARGIN
    made = Image.new("RGB", (wide, top + lines * (cell[1] + GAP) + MARGIN - GAP), PAPER)
    draw = ImageDraw.Draw(made)
    draw.text((MARGIN, MARGIN - 4), title, INK, font(20))
    for number, (prompt, before, after) in enumerate(rows):
        left = MARGIN + number % columns * (cell[0] + MARGIN)
        high = top + number // columns * (cell[1] + GAP)
        for place, (picture, label) in enumerate(zip((before, after), labels, strict=True)):
            x = left + place * (width + GAP)
            draw.text((x, high), label, (BEFORE, AFTER)[place], font(15))
            enlarged = picture.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
            made.paste(enlarged, (x, high + LINE))
        draw.text((left, high + LINE + height + 3), fitted(prompt, cell[0], 15), INK, font(15))
    return made


def fitted(text: str, width: int, size: int) -> str:
    """``text``, cut with dots where it is wider than ``width`` pixels."""
    if font(size).getlength(text) <= width:
        return text
    while text and font(size).getlength(f"{text} ...") > width:
        text = text[:-1]
    return f"{text} ..."


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font; old versions have one size only."""
    try:
        return ImageFont.load_default(size)
    except TypeError:
        return ImageFont.load_default()


def save(picture: Image.Image, path: Path) -> Path:
    """Write a PNG with few colours, so that it is small."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=256).save(path, optimize=True)
    return path
