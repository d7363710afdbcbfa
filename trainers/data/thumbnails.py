# SPDX-License-Identifier: Apache-2.0
"""Small pictures for people: of files and of pixels, with the shape of the whole ones."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from ._conversion import decoded, has_alpha, is_wide, narrow, orientation, rgb, upright
from .images import check_scans, opened
from .item import Item

QUALITY = 80


def thumbnail(item: Item, side: int) -> bytes:
    """A small JPEG of a picture, without anything that its file says beside the pixels.

    Args:
        item: The picture.
        side: Its longest side, in pixels.

    Returns:
        The file's bytes.

    Raises:
        ImageError: The file cannot be read.
    """
    if item.pixels is None:
        pixels = read_small(str(item.path), side)
    else:
        small = Image.fromarray((item.pixels * 255).round().byte().numpy())
        small.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
        pixels = np.asarray(small)
    made = io.BytesIO()
    Image.fromarray(pixels).save(made, "JPEG", quality=QUALITY)
    return made.getvalue()


def read_small(path: str | Path, side: int) -> np.ndarray:
    """Decode a picture for a thumbnail; a JPEG no larger than needed, for speed.

    Args:
        path: The file.
        side: Longest side of the thumbnail, in pixels.

    Returns:
        The upright picture with its shape kept, no side longer than that and none shorter than 1: ``uint8 [h, w, 3]``.

    Raises:
        ImageError: The file is no picture, is damaged, too small or too large.
    """
    with opened(Path(path)) as image:
        check_scans(Path(path), image)
        image.draft(None, (2 * side, 2 * side))
        whole = decoded(image)
        turned = orientation(image)  # of a loaded TIFF 1
        if is_wide(whole):
            whole = Image.fromarray((rgb(whole) * 255).round().astype(np.uint8))
        elif whole.mode not in ("RGB", "RGBA") or has_alpha(whole):
            whole = whole.convert("RGBA" if has_alpha(whole) else "RGB")
        whole.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
        pixels = upright(narrow(whole), turned)
    return (pixels * 255).round().astype(np.uint8)
