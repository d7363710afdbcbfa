# SPDX-License-Identifier: Apache-2.0
"""Aspect-ratio buckets: which size a picture is trained at, and how it gets there.

As NovelAI's bucketing and sd-scripts' `bucket_no_upscale`, but the size is searched for exactly
instead of taken from a list, so that no more is cropped than the step asks for.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import random

STEP_PX = 64
SMALL_STEP_PX = 8
SMALL_PX = 256
LEAST_CROP = 0.75


@dataclass(frozen=True, eq=False)
class Fitted:
    """A picture at its bucket's size, and what SDXL's size conditioning wants to know.

    Attributes:
        pixels: The picture, fp32 ``[h, w, 3]`` in 0..1.
        original: Height and width before.
        crop: Top and left of the crop in the scaled picture, as diffusers' SDXL scripts pass them;
            of a flipped picture in the scaled and flipped one.
        mask: How much each place counts, fp32 ``[h, w]`` in 0..1; None where all counts.
    """

    pixels: Tensor
    original: tuple[int, int]
    crop: tuple[int, int]
    mask: Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height the picture is trained at."""
        return (self.pixels.shape[1], self.pixels.shape[0])

    @property
    def target(self) -> tuple[int, int]:
        """Height and width the picture is trained at."""
        return (self.pixels.shape[0], self.pixels.shape[1])


def step_for(width: int, height: int, resolution: int) -> int:
    """Return the step of both sides of the trained picture: 64 px, or 8 px for small ones."""
    return SMALL_STEP_PX if min(width, height, resolution) < SMALL_PX else STEP_PX


def size_for(
    width: int,
    height: int,
    resolution: int,
    step: int = 0,
    sides: tuple[int, int] = (0, 0),
    upscale: bool = False,
) -> tuple[int, int]:
    """Find the size at which a picture is trained.

    Both sides are multiples of the step, their area is at most resolution^2, and the picture is
    never scaled up (except where it is smaller than the least side, or where that is asked for).
    Among those sizes the one that wastes the fewest pixels is taken: pixels that centre cropping
    cuts off the scaled picture, plus pixels of the allowed area that stay unused.

    Args:
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.
        resolution: Side of the square whose area is the limit.
        step: Of both sides; 0 takes `step_for`.
        sides: The least and the largest side, in pixels; 0 for one step and for no limit.
        upscale: Whether a picture smaller than the area is scaled up to it.

    Returns:
        Width and height.

    Raises:
        ValueError: A size is not positive, the resolution is below one step or the least side, or no
            multiple of the step lies between the sides.
    """
    if min(width, height) < 1:
        raise ValueError(f"a picture cannot be {width} x {height} px")
    if upscale:  # as a picture of the same shape that is large enough
        factor = -(-resolution * resolution // min(width, height))
        width, height = width * factor, height * factor
    step = step or step_for(width, height, resolution)
    if resolution < step:
        raise ValueError(f"resolution is {resolution} px, the least is {step} px")
    least = max(step, -(-sides[0] // step) * step)
    most = (sides[1] or resolution * resolution) // step * step
    if not least <= min(most, resolution):
        raise ValueError(
            f"no side that {step} px divide is between {sides[0]} and {sides[1] or resolution} px at resolution "
            f"{resolution}: lower the least side or the step, or raise the largest side"
        )
    if width < height:
        h, w = _largest_score(height, width, resolution, step, (least, most))
        return (w, h)
    return _largest_score(width, height, resolution, step, (least, most))


def covering(width: int, height: int, size: tuple[int, int]) -> tuple[int, int]:
    """The size to which a picture is scaled to cover another one: one side exactly, the other rounded.

    Args:
        width: Of the picture.
        height: Of the picture.
        size: Width and height to cover.

    Returns:
        Width and height.
    """
    w, h = size
    if w * height >= h * width:
        return (w, max(h, (2 * w * height + width) // (2 * width)))
    return (max(w, (2 * h * width + height) // (2 * height)), h)


@torch.inference_mode(False)
@torch.no_grad()
def fit(
    pixels: Tensor,
    size: tuple[int, int],
    zoom: float = 1.0,
    place: tuple[float, float] = (0.5, 0.5),
    mask: Tensor | None = None,
    flip: bool = False,
) -> Fitted:
    """Scale a picture until it covers a size, and crop: the centre, or another place.

    The scaling is torch's antialiased bicubic, which equals Pillow's bicubic on fp32: the same on
    files and on graph images, without a detour over 8 bits. A picture that needs no scaling keeps
    its pixels bit for bit. A mask is scaled bilinearly, also antialiased, so that it does not ring.

    Args:
        pixels: The picture, ``[H, W, 3]`` in 0..1.
        size: Width and height to fit, as from `size_for`.
        zoom: How much larger than needed the picture is scaled, from 1.
        place: Where the crop is, down and right, from 0 to 1, before it is flipped.
        mask: How much each place counts, ``[H, W]`` in 0..1; goes where the picture goes.
        flip: Whether left and right change places.

    Returns:
        The picture with ``[h, w, 3]`` fp32 pixels in 0..1 and the mask ``[h, w]``, tensors of its own.

    Raises:
        ValueError: The pixels are not ``[H, W, 3]``, or the mask is not ``[H, W]``.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"pixels are {list(pixels.shape)}, a picture is [height, width, 3]")
    if mask is not None and mask.shape != pixels.shape[:2]:
        raise ValueError(f"the mask is {list(mask.shape)}, its picture {list(pixels.shape)}")
    width, height = size
    old_height, old_width = pixels.shape[:2]
    zoomed = (round(width * zoom), round(height * zoom))
    new_width, new_height = covering(old_width, old_height, zoomed)
    top, left = int((new_height - height) * place[0]), int((new_width - width) * place[1])
    layers = [(pixels, "bicubic")]
    if mask is not None:
        layers.append((mask[:, :, None], "bilinear"))
    parts = []
    for layer, mode in layers:
        part = _scaled(layer.detach().clone().float(), (new_height, new_width), mode)
        part = part[top : top + height, left : left + width]
        parts.append((part.flip(1) if flip else part).contiguous())
    if flip:
        left = new_width - width - left
    moved = parts[1][:, :, 0] if mask is not None else None
    return Fitted(parts[0], (old_height, old_width), (top, left), moved)


def random_crop(pixels: Tensor, size: tuple[int, int], picture: int, number: int) -> Fitted:
    """One of a picture's random crops.

    Args:
        pixels: The picture, ``[H, W, 3]`` in 0..1.
        size: Width and height to fit.
        picture: Number of the picture in its dataset.
        number: Number of the crop; 0 is the whole picture, cropped in the centre.

    Returns:
        As `fit`: 75 to 100 % of the width and height, anywhere; the same for the same numbers.
    """
    zoom, place = random_place(picture, number) if number else (1.0, (0.5, 0.5))
    return fit(pixels, size, zoom, place)


def random_place(
    picture: int, number: int, least: float = LEAST_CROP
) -> tuple[float, tuple[float, float]]:
    """Draw a random crop (Inception's, Szegedy et al. 2015; arXiv 1409.4842, with the shape kept).

    Args:
        picture: Number of the picture in its dataset.
        number: Number of the crop.
        least: The least share of width and height that it shows.

    Returns:
        Zoom and place for `fit`; the same for the same numbers.
    """
    slots = range(3 * number, 3 * number + 3)
    share, down, right = random.uniform(0, picture, slots, "crop").tolist()
    return 1 / (least + (1 - least) * share), (down, right)


@lru_cache(maxsize=4096)
def _largest_score(
    width: int, height: int, resolution: int, step: int, sides: tuple[int, int]
) -> tuple[int, int]:
    """Return the best size of a picture that is at least as wide as high."""
    least, most = sides
    area = resolution * resolution
    longest = max(least, min(width, most, area // least))
    sizes = (
        (w, h)
        for w in range(least, longest + 1, step)
        for h in _heights(w, width, height, step, (least, min(height, most, area // w)))
    )
    return max(sizes, key=lambda size: (_score(size, width, height), size[0] * size[1], size))


def _heights(w: int, width: int, height: int, step: int, sides: tuple[int, int]) -> set[int]:
    """Return the best heights for a width: the score is concave, its top at the aspect ratio."""
    least, largest = sides[0], sides[1] // step * step
    below = w * height // (width * step) * step
    return {max(least, min(h, largest)) for h in (below, below + step)}


def _score(size: tuple[int, int], width: int, height: int) -> int:
    """Return width * height * (2 w h - scaled area): highest where least is wasted; exact."""
    w, h = size
    return 2 * w * h * width * height - max(w * height, h * width) ** 2


def _scaled(picture: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Scale [H, W, C] in 0..1 to a height and width; the tensor itself where it has them."""
    if picture.shape[:2] == size:
        return picture
    planes = picture.permute(2, 0, 1)[None]
    scaled = F.interpolate(planes, size=size, mode=mode, align_corners=False, antialias=True)
    return scaled[0].permute(1, 2, 0).clamp(0, 1)
