# SPDX-License-Identifier: Apache-2.0
"""A contact sheet: the pictures of a dataset as they are trained on, with what is said about them."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .buckets import Fitted
from .dataset import Dataset
from .names import picture_names

INK, MUTED, PAPER, FRAME, OUTLINE = "#1f2328", "#656d76", "#ffffff", "#d0d7de", (255, 0, 128)
SIDE_PX, GAP_PX, MARGIN_PX, LINE_PX, TEXT_PX = 192, 16, 20, 17, 13
CAPTION_LINES = 3
MOST = 400
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@torch.inference_mode(False)
@torch.no_grad()
def contact_sheet(
    dataset: Dataset, count: int = 24, first: int = 0, view: int = 0, columns: int = 6
) -> Tensor:
    """Draw pictures of a dataset in a grid, each with name, bucket, repeats, class and caption.

    Pictures are as they are trained on, after crop and flip; the outline of a mask is drawn where it
    passes one half.

    Args:
        dataset: Whose pictures.
        count: How many, at most.
        first: The first one's number, from 0.
        view: Which view of each; counted round where a picture has fewer.
        columns: Pictures side by side.

    Returns:
        An IMAGE, fp32 ``[1, H, W, 3]`` in 0..1.

    Raises:
        ImageError: A file cannot be read, or a mask is of another size.
        ValueError: A number is out of range.
    """
    if not (0 <= first < len(dataset) and 1 <= count <= MOST and columns >= 1 and view >= 0):
        raise ValueError(
            f"{count} pictures from number {first} in {columns} columns, view {view}: the dataset has {len(dataset)} "
            f"pictures, and a sheet 1 to {MOST}"
        )
    shown = range(first, min(first + count, len(dataset)))
    columns = min(columns, len(shown))
    cell = (SIDE_PX + GAP_PX, SIDE_PX + (CAPTION_LINES + 2) * LINE_PX + GAP_PX)
    rows = -(-len(shown) // columns)
    wide = max(2 * MARGIN_PX + columns * cell[0] - GAP_PX, 480)
    top = MARGIN_PX + 2 * LINE_PX
    sheet = Image.new("RGB", (wide, top + rows * cell[1] + MARGIN_PX - GAP_PX), PAPER)
    draw, font = ImageDraw.Draw(sheet), _font(TEXT_PX)
    draw.text((MARGIN_PX, MARGIN_PX - 4), _title(dataset, shown), INK, _font(TEXT_PX + 4))
    names = picture_names(dataset)
    for place, index in enumerate(shown):
        x = MARGIN_PX + place % columns * cell[0]
        y = top + place // columns * cell[1]
        fitted = dataset.view(index, view % dataset.views(index))
        _paste(sheet, draw, fitted, (x, y))
        texts = [(names[index] + _label(dataset, index), INK), (_facts(dataset, index), MUTED)]
        caption = _wrapped(_captions(dataset, index), font)
        for line, (text, ink) in enumerate(texts + [(text, INK) for text in caption]):
            at = (x, y + SIDE_PX + 4 + line * LINE_PX)
            draw.text(at, _cut(text, font), ink, font)
    return torch.from_numpy(np.asarray(sheet).astype(np.float32) / 255)[None]


def _title(dataset: Dataset, shown: range) -> str:
    source = f", {dataset.source}" if dataset.source else ""
    if len(shown) == len(dataset):
        return f"{len(dataset)} images{source}"
    return f"images {shown[0] + 1} to {shown[-1] + 1} of {len(dataset)}{source}"


def _facts(dataset: Dataset, index: int) -> str:
    item, (width, height) = dataset.items[index], dataset.size(index)
    facts = [f"{width} x {height}", f"x {item.repeats}"]
    if item.weight != 1:
        facts.append(f"weight {item.weight:g}")
    return ", ".join(facts)


def _label(dataset: Dataset, index: int) -> str:
    label, names = dataset.items[index].label, dataset.labels
    if label is None:
        return ""
    return f" ({names[label]})" if label < len(names) else f" (class {label})"


def _captions(dataset: Dataset, index: int) -> str:
    texts = [text for text in dataset.texts(index) if text]
    more = f" (and {len(texts) - 1} more)" if len(texts) > 1 else ""
    return (texts[0] if texts else "no caption") + more


def _paste(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, fitted: Fitted, at: tuple[int, int]
) -> None:
    width, height = fitted.size
    scale = SIDE_PX / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    pixels = (fitted.pixels * 255).round().to(torch.uint8).numpy()
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC
    picture = np.asarray(Image.fromarray(pixels).resize(size, how)).copy()
    if fitted.mask is not None:
        picture[_outline(fitted.mask, size)] = OUTLINE
    x, y = at[0] + (SIDE_PX - size[0]) // 2, at[1] + (SIDE_PX - size[1]) // 2
    sheet.paste(Image.fromarray(picture), (x, y))
    draw.rectangle((x - 1, y - 1, x + size[0], y + size[1]), outline=FRAME)


def _outline(mask: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Return where the edge of a mask is drawn, [h, w], two pixels wide on the inner side."""
    scaled = F.interpolate(mask[None, None], size=size[::-1], mode="bilinear", antialias=True)
    inside = (scaled >= 0.5).float()
    # Beyond the picture counts as inside: no line is drawn where the mask meets its border.
    eroded = 1 - F.max_pool2d(1 - inside, 5, stride=1, padding=2)
    return ((inside - eroded) > 0)[0, 0].numpy()


def _wrapped(text: str, font: Font) -> list[str]:
    """Break a text into at most a few lines, the last one with dots where more was said."""
    lines, words = [""], text.split()
    while words:
        longer = f"{lines[-1]} {words[0]}".strip()
        if not lines[-1] or font.getlength(longer) <= SIDE_PX:
            lines[-1] = longer
            words.pop(0)
        elif len(lines) < CAPTION_LINES:
            lines.append("")
        else:
            lines[-1] += " ..."
            break
    return lines


def _cut(text: str, font: Font) -> str:
    """Shorten a line that is too wide."""
    if font.getlength(text) <= SIDE_PX:
        return text
    text = text[: max(1, SIDE_PX // 2)]
    while len(text) > 1 and font.getlength(f"{text}...") > SIDE_PX:
        text = text[:-1]
    return f"{text.removesuffix(' ...')}..."


def _font(size: int) -> Font:
    try:
        return ImageFont.load_default(size=size)
    except TypeError:  # Pillow before 10.1
        return ImageFont.load_default()
