# SPDX-License-Identifier: Apache-2.0
"""Picture files as fp32 RGB.

Pillow decodes; what it would clip, invert or pass over in silence (16-bit grey, EXIF rotation,
CMYK profiles, transparency, a truncated file) is done or refused here. RGB values are taken as
they are stored, as ComfyUI's own LoadImage does.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFile, UnidentifiedImageError, features
from torch import Tensor

from ...plain import plain

try:
    from PIL import ImageCms
except ImportError:  # Pillow can be built without LittleCMS
    ImageCms = None  # type: ignore[assignment]

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
_ORIENTATION = 0x0112
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
    with _opened(Path(path)) as image:
        pixels = _upright(_rgb(image), _orientation(image))
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
    with _opened(Path(path)) as image:
        image.load()
        if not _has_alpha(image):
            return None
        alpha = _upright(_unit(image.convert("RGBA"))[:, :, 3], _orientation(image))
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
    with _opened(Path(path)) as image:
        return _upright_size(image)


def check_image(path: str | Path) -> Checked:
    """Decode a picture to find out whether it can be used; a JPEG at an eighth, for speed.

    Args:
        path: The file.

    Returns:
        Its size, and what was passed over.

    Raises:
        ImageError: The file is no picture, is damaged, too small or too large.
    """
    with _opened(Path(path)) as image:
        warning = ""
        # A phone's MPO is a photograph with its own thumbnail or depth map behind it.
        if getattr(image, "is_animated", False) and image.format != "MPO":
            what = "of several pages" if image.format == "TIFF" else "animated"
            warning = f"is {what}: only the first picture is used"
            image.seek(0)
        width, height = _upright_size(image)
        _check_scans(Path(path), image)
        image.draft(None, (1, 1))
        whole = _decoded(image)
        if not _is_wide(
            image
        ):  # one pixel shows whether there is a conversion, and takes no memory
            _narrow(whole.crop((0, 0, 1, 1)))
        has_alpha = _has_alpha(image)
    return Checked(width, height, warning, has_alpha)


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
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture strictly; whatever goes wrong in the block becomes an ImageError."""
    lenient = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # other packs switch it on, for the whole process
    try:
        if path.stat().st_size == 0:
            raise ImageError(path.name, "is empty (0 bytes): copy it again or remove it")
        with Image.open(path, formats=_FORMATS) as image:
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
    except _UnusableError as error:
        raise ImageError(path.name, str(error)) from error
    except _DAMAGED as error:
        reason = f"is damaged or cut short ({error}): copy it again or remove it"
        raise ImageError(path.name, reason) from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


class _UnusableError(Exception):
    """A whole picture of a kind that has no right conversion."""


def _check_size(name: str, image: Image.Image) -> None:
    width, height = image.size
    most = _LESS_PIXELS.get(image.format or "", MAX_PIXELS)
    if width * height > most:
        raise ImageError(name, _too_large(f"{width} x {height} px", most))
    if min(width, height) < MIN_PX:
        reason = f"is {width} x {height} px, the least is {MIN_PX} px a side: remove it"
        raise ImageError(name, reason)


def _check_scans(path: Path, image: Image.Image) -> None:
    """Refuse a JPEG of thousands of passes, each of a few bytes; beside the pixels' data the marker hardly occurs."""
    if image.format not in ("JPEG", "MPO"):
        return
    scans = path.read_bytes().count(b"\xff\xda")
    if scans * image.width * image.height > _SCANNED_PIXELS:
        raise _UnusableError(
            f"is a JPEG of {scans} scans, more than any camera makes: save it anew"
        )


def _too_large(size: str, most: int = MAX_PIXELS) -> str:
    return f"is too large ({size}, the most is {most // 10**6} million pixels): scale it down"


def _rgb(image: Image.Image) -> np.ndarray:
    """Return fp32 [H, W, 3] in 0..1, not yet turned upright."""
    if _is_wide(image):
        # Image.convert would clip these at 255.
        grey = np.asarray(image).astype(np.float32)
        grey /= 65535
        if getattr(image, "tag_v2", {}).get(262) == 0:  # a TIFF that stores white as 0
            grey = 1 - grey
        return np.repeat(grey[:, :, None], 3, axis=2)
    return _narrow(_decoded(image))


def _is_wide(image: Image.Image) -> bool:
    """Whether it is grey of 16 bits."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")


def _decoded(image: Image.Image) -> Image.Image:
    if _is_wide(image):
        image.load()
        return image
    if image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floating-point values"
        raise _UnusableError(f"holds {kind}, whose white is not defined: save it with 8 or 16 bits")
    image.load()
    return _from_cmyk(image) if image.mode == "CMYK" else image


def _narrow(image: Image.Image) -> np.ndarray:
    if _has_alpha(image):
        rgba = _unit(image.convert("RGBA"))
        alpha = rgba[:, :, 3:]
        return rgba[:, :, :3] * alpha + (1 - alpha)
    return _unit(image.convert("RGB"))


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info


def _unit(image: Image.Image) -> np.ndarray:
    values = np.asarray(image).astype(np.float32)
    values /= 255
    return values


def _from_cmyk(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if not profile or ImageCms is None:
        return image.convert("RGB")
    try:
        inks = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        srgb = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, inks, srgb, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError) as error:
        text = f"carries a CMYK colour profile that cannot be used ({error}): save it as RGB"
        raise _UnusableError(text) from error
    return image.convert("RGB") if converted is None else converted


def _orientation(image: Image.Image) -> int:
    """Return EXIF's 1..8; of a loaded TIFF 1, as Pillow has turned it already."""
    value = image.getexif().get(_ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def _upright_size(image: Image.Image) -> tuple[int, int]:
    if image.format == "TIFF":  # whether Pillow has swapped the sides depends on its version
        image.load()
    width, height = image.size
    return (height, width) if _orientation(image) >= 5 else (width, height)


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation: 5..8 are transposed, the flips come after."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
