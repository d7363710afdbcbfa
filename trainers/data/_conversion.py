# SPDX-License-Identifier: Apache-2.0
"""Opened pictures as upright RGB: wide greys, transparency, CMYK and EXIF's turns, as `images` promises them."""

import io

import numpy as np
from PIL import Image

try:
    from PIL import ImageCms
except ImportError:  # Pillow can be built without LittleCMS
    ImageCms = None  # type: ignore[assignment]

_ORIENTATION = 0x0112


class UnusableError(Exception):
    """A whole picture of a kind that has no right conversion."""


def rgb(image: Image.Image) -> np.ndarray:
    """Return fp32 [H, W, 3] in 0..1, not yet turned upright."""
    if is_wide(image):
        # Image.convert would clip these at 255.
        grey = np.asarray(image).astype(np.float32)
        grey /= 65535
        if getattr(image, "tag_v2", {}).get(262) == 0:  # a TIFF that stores white as 0
            grey = 1 - grey
        return np.repeat(grey[:, :, None], 3, axis=2)
    return narrow(decoded(image))


def is_wide(image: Image.Image) -> bool:
    """Whether it is grey of 16 bits."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")


def decoded(image: Image.Image) -> Image.Image:
    if is_wide(image):
        image.load()
        return image
    if image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floating-point values"
        raise UnusableError(f"holds {kind}, whose white is not defined: save it with 8 or 16 bits")
    image.load()
    return from_cmyk(image) if image.mode == "CMYK" else image


def narrow(image: Image.Image) -> np.ndarray:
    if has_alpha(image):
        rgba = unit(image.convert("RGBA"))
        alpha = rgba[:, :, 3:]
        return rgba[:, :, :3] * alpha + (1 - alpha)
    return unit(image.convert("RGB"))


def has_alpha(image: Image.Image) -> bool:
    return image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info


def unit(image: Image.Image) -> np.ndarray:
    values = np.asarray(image).astype(np.float32)
    values /= 255
    return values


def from_cmyk(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if not profile or ImageCms is None:
        return image.convert("RGB")
    try:
        inks = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        srgb = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, inks, srgb, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError) as error:
        text = f"carries a CMYK colour profile that cannot be used ({error}): save it as RGB"
        raise UnusableError(text) from error
    return image.convert("RGB") if converted is None else converted


def orientation(image: Image.Image) -> int:
    """Return EXIF's 1..8; of a loaded TIFF 1, as Pillow has turned it already."""
    value = image.getexif().get(_ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    if image.format == "TIFF":  # whether Pillow has swapped the sides depends on its version
        image.load()
    width, height = image.size
    return (height, width) if orientation(image) >= 5 else (width, height)


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation: 5..8 are transposed, the flips come after."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
