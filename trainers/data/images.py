# SPDX-License-Identifier: Apache-2.0
"""Picture files as fp32 RGB.

Pillow decodes; what it would clip, invert or pass over in silence (16-bit grey, EXIF rotation,
CMYK profiles, transparency, a truncated file) is done or refused here. RGB values are taken as
they are stored, as ComfyUI's own LoadImage does.
"""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError, features
from torch import Tensor

from ...plain import plain
from ._conversion import (
    UnusableError,
    decoded,
    has_alpha,
    is_wide,
    narrow,
    orientation,
    rgb,
    unit,
    upright,
    upright_size,
)
from .png_chunks import may_be_turned
from .strict import strict

MIN_PX = 8
MAX_PIXELS = 178_956_970
"""Pillow's own limit against decompression bombs, kept even where another pack lifts Pillow's."""
_LESS_PIXELS = {"WEBP": 2**26, "AVIF": 2**26}
"""Of kinds whose decoders keep the picture several times: 8192 x 8192 px take about 1 GB."""
_SCANNED_PIXELS = 2**31
"""Of a JPEG, all its scans counted: a photograph has one to ten, and each takes as long as the whole picture."""

_CODECS = {
    "PNG": ("zlib", (".png",)),
    "JPEG": ("jpg", (".jpg", ".jpeg")),
    "WEBP": ("webp", (".webp",)),
    "BMP": ("", (".bmp",)),
    "GIF": ("", (".gif",)),
    "TIFF": ("", (".tif", ".tiff")),
    "AVIF": ("avif", (".avif",)),
}
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
)


def _has(codec: str) -> bool:
    known = codec in features.codecs or codec in features.modules
    return not codec or (known and bool(features.check(codec)))


EXTENSIONS: tuple[str, ...] = tuple(
    extension for codec, names in _CODECS.values() if _has(codec) for extension in names
)
"""File name endings of pictures that can be read here, in lower case."""

# So that a file of another kind never reaches a decoder such as EPS, which runs Ghostscript.
_FORMATS = tuple(name for name, (codec, _) in _CODECS.items() if _has(codec))


class ImageError(ValueError):
    """A picture file that cannot be trained on: its name, what is wrong and what to do."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = plain(name)
        self.reason = plain(reason)
        super().__init__(f"{self.name}: {self.reason}")


def vanished(path: str | Path) -> ImageError:
    """The error for a file that was there when the dataset was made.

    Args:
        path: The file.

    Returns:
        What is wrong, and what to do.
    """
    path = Path(path)
    return ImageError(
        path.name,
        f"does not exist any more in '{path.parent}': put it back, or change a widget of the node that made the "
        "dataset, so that it is made again",
    )


@dataclass(frozen=True)
class Checked:
    """What `check_image` found.

    Attributes:
        width: Of the upright picture.
        height: Of the upright picture.
        warning: What was passed over; empty as a rule.
        has_alpha: Whether the file has transparency.
    """

    width: int
    height: int
    warning: str = ""
    has_alpha: bool = False


@torch.inference_mode(False)
def read_image(path: str | Path) -> Tensor:
    """Decode a picture file.

    EXIF rotation is applied. Transparency is composited on white. Of an animation or a file of
    several pages the first picture is taken (`check_image` says so). CMYK becomes sRGB by the
    file's own profile where it has one. Sixteen-bit grey keeps its precision; of 16-bit colour
    Pillow keeps the upper 8 bits.

    Args:
        path: The file.

    Returns:
        The upright picture, fp32 ``[H, W, 3]`` in 0..1.

    Raises:
        ImageError: The file is no picture, is damaged, too small or too large.
    """
    with opened(Path(path)) as image:
        pixels = upright(rgb(image), orientation(image))
    return torch.from_numpy(np.ascontiguousarray(pixels))


@torch.inference_mode(False)
def read_alpha(path: str | Path) -> Tensor | None:
    """Decode how opaque a picture is.

    Args:
        path: The file.

    Returns:
        Of the upright picture, fp32 ``[H, W]`` from 0 (transparent) to 1; None where the file has no
        transparency.

    Raises:
        ImageError: The file is no picture, is damaged, too small or too large.
    """
    with opened(Path(path)) as image:
        image.load()
        if not has_alpha(image):
            return None
        alpha = upright(unit(image.convert("RGBA"))[:, :, 3], orientation(image))
    return torch.from_numpy(np.ascontiguousarray(alpha))


def image_size(path: str | Path) -> tuple[int, int]:
    """Return the width and height of the upright picture, from the file's header if possible.

    Args:
        path: The file.

    Returns:
        Width and height in pixels.

    Raises:
        ImageError: The file is no picture, is damaged, too small or too large.
    """
    with opened(Path(path)) as image:
        return upright_size(image)


def check_image(path: str | Path) -> Checked:
    """Decode a picture to find out whether it can be used; a JPEG at an eighth, for speed.

    Args:
        path: The file.

    Returns:
        Its size, and what was passed over.

    Raises:
        ImageError: The file is no picture, is damaged, too small or too large.
    """
    with opened(Path(path)) as image:
        warning = ""
        # A phone's MPO is a photograph with its own thumbnail or depth map behind it.
        if getattr(image, "is_animated", False) and image.format != "MPO":
            what = "of several pages" if image.format == "TIFF" else "animated"
            warning = f"is {what}: only the first picture is used"
            image.seek(0)
        width, height = upright_size(image)
        check_scans(Path(path), image)
        image.draft(None, (1, 1))
        whole = decoded(image)
        if not is_wide(image):  # one pixel shows whether there is a conversion, and takes no memory
            narrow(whole.crop((0, 0, 1, 1)))
        is_clear = has_alpha(image)
    return Checked(width, height, warning, is_clear)


def check_header(path: str | Path) -> Checked:
    """As `check_image`, of what the beginning of the file says: a damaged picture passes.

    Args:
        path: The file.

    Returns:
        Its size, and whether it has transparency.

    Raises:
        ImageError: The file is no picture, too small or too large.
    """
    with opened(Path(path)) as image:
        is_plain = image.format == "PNG" and not may_be_turned(Path(path))
        size = image.size if is_plain else upright_size(image)
        return Checked(*size, has_alpha=has_alpha(image))


def rgb_pixels(image: Tensor) -> Tensor:
    """Return a graph image as RGB: grey is spread, transparency is composited on white.

    Args:
        image: ``[..., C]`` in 0..1 with 1 (grey), 3 (RGB) or 4 (RGB and alpha) channels.

    Returns:
        ``[..., 3]``.

    Raises:
        ValueError: There is another number of channels.
    """
    channels = image.shape[-1]
    if channels == 1:
        return image.expand(*image.shape[:-1], 3)
    if channels == 3:
        return image
    if channels == 4:
        alpha = image[..., 3:]
        return image[..., :3] * alpha + (1 - alpha)
    raise ValueError(f"an image has {channels} channels: 1, 3 or 4 can be used")


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture strictly; whatever goes wrong in the block becomes an ImageError."""
    try:
        if path.stat().st_size == 0:
            raise ImageError(path.name, "is empty (0 bytes): copy it again or remove it")
        with strict(), Image.open(path, formats=_FORMATS) as image:
            _check_size(path.name, image)
            yield image
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise vanished(path) from error
    except PermissionError as error:
        raise ImageError(path.name, "may not be read: look at its permissions") from error
    except UnidentifiedImageError as error:
        reason = f"is not a picture of a kind that is read here ({', '.join(_FORMATS)}), "
        raise ImageError(path.name, reason + "or its beginning is damaged") from error
    except Image.DecompressionBombError as error:
        raise ImageError(path.name, _too_large("its size")) from error
    except UnusableError as error:
        raise ImageError(path.name, str(error)) from error
    except _DAMAGED as error:
        reason = f"is damaged or cut short ({error}): copy it again or remove it"
        raise ImageError(path.name, reason) from error


def _check_size(name: str, image: Image.Image) -> None:
    width, height = image.size
    most = _LESS_PIXELS.get(image.format or "", MAX_PIXELS)
    if width * height > most:
        raise ImageError(name, _too_large(f"{width} x {height} px", most))
    if min(width, height) < MIN_PX:
        reason = f"is {width} x {height} px, the least is {MIN_PX} px a side: remove it"
        raise ImageError(name, reason)


def check_scans(path: Path, image: Image.Image) -> None:
    """Refuse a JPEG of thousands of passes, each of a few bytes; beside the pixels' data the marker hardly occurs."""
    if image.format not in ("JPEG", "MPO"):
        return
    scans = path.read_bytes().count(b"\xff\xda")
    if scans * image.width * image.height > _SCANNED_PIXELS:
        raise UnusableError(f"is a JPEG of {scans} scans, more than any camera makes: save it anew")


def _too_large(size: str, most: int = MAX_PIXELS) -> str:
    return f"is too large ({size}, the most is {most // 10**6} million pixels): scale it down"
