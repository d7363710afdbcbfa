# SPDX-License-Identifier: Apache-2.0
"""Aspect-ratio buckets: which size a picture is trained at, and how it gets there.

As NovelAI's bucketing and sd-scripts' `bucket_no_upscale`, but the size is searched for exactly
instead of taken from a list, so that no more is cropped than the step asks for.
"""

from dataclasses import dataclass

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
        crop: Top and left of the crop in the scaled picture, as diffusers' SDXL scripts pass them.
    """

    pixels: Tensor
    original: tuple[int, int]
    crop: tuple[int, int]

    @property
    def target(self) -> tuple[int, int]:
        """Height and width the picture is trained at."""
        return (self.pixels.shape[0], self.pixels.shape[1])


def step_for(width: int, height: int, resolution: int) -> int:
    """Return the step of both sides of the trained picture: 64 px, or 8 px for small ones."""
    return SMALL_STEP_PX if min(width, height, resolution) < SMALL_PX else STEP_PX


def size_for(width: int, height: int, resolution: int) -> tuple[int, int]:
    """Find the size at which a picture is trained.

    Both are multiples of `step_for`, their area is at most resolution^2, and the picture is never
    scaled up (except where it is smaller than one step). Among those sizes the one that wastes
    the fewest pixels is taken: pixels that centre cropping cuts off the scaled picture, plus
    pixels of the allowed area that stay unused.

    Args:
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.
        resolution: Side of the square whose area is the limit.

    Returns:
        Width and height.

    Raises:
        ValueError: A size is not positive, or the resolution is below one step.
    """
    if min(width, height) < 1:
        raise ValueError(f"a picture cannot be {width} x {height} px")
    step = step_for(width, height, resolution)
    if resolution < step:
        raise ValueError(f"resolution is {resolution} px, the least is {step} px")
    if width < height:
        w, h = size_for(height, width, resolution)
        return (h, w)
    longest = max(step, min(width, resolution * resolution // step))
    sizes = (
        (w, h)
        for w in range(step, longest + 1, step)
        for h in _heights(w, width, height, resolution, step)
    )
    return max(sizes, key=lambda size: (_score(size, width, height), size[0] * size[1], size))


@torch.inference_mode(False)
@torch.no_grad()
def fit(
    pixels: Tensor,
    size: tuple[int, int],
    zoom: float = 1.0,
    place: tuple[float, float] = (0.5, 0.5),
) -> Fitted:
    """Scale a picture until it covers a size, and crop: the centre, or another place.

    The scaling is torch's antialiased bicubic, which equals Pillow's bicubic on fp32: the same on
    files and on graph images, without a detour over 8 bits. A picture that needs no scaling keeps
    its pixels bit for bit.

    Args:
        pixels: The picture, ``[H, W, 3]`` in 0..1.
        size: Width and height to fit, as from `size_for`.
        zoom: How much larger than needed the picture is scaled, from 1.
        place: Where the crop is, down and right, from 0 to 1.

    Returns:
        The picture with ``[h, w, 3]`` fp32 pixels in 0..1, a tensor of its own.

    Raises:
        ValueError: The pixels are not ``[H, W, 3]``.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"pixels are {list(pixels.shape)}, a picture is [height, width, 3]")
    width, height = size
    old_height, old_width = pixels.shape[:2]
    new_width, new_height = _cover(old_width, old_height, round(width * zoom), round(height * zoom))
    picture = pixels.detach().clone().float()
    if (new_width, new_height) != (old_width, old_height):
        picture = F.interpolate(
            picture.permute(2, 0, 1)[None],
            size=(new_height, new_width),
            mode="bicubic",
            align_corners=False,
            antialias=True,
        )[0].permute(1, 2, 0)
        picture = picture.clamp(0, 1)
    top, left = int((new_height - height) * place[0]), int((new_width - width) * place[1])
    picture = picture[top : top + height, left : left + width].contiguous()
    return Fitted(picture, (old_height, old_width), (top, left))


def random_crop(pixels: Tensor, size: tuple[int, int], picture: int, number: int) -> Fitted:
    """One of a picture's random crops (Inception's, Szegedy et al. 2015; arXiv 1409.4842, with the shape kept).

    Args:
        pixels: The picture, ``[H, W, 3]`` in 0..1.
        size: Width and height to fit.
        picture: Number of the picture in its dataset.
        number: Number of the crop; 0 is the whole picture, cropped in the centre.

    Returns:
        As `fit`: 75 to 100 % of the width and height, anywhere; the same for the same numbers.
    """
    if number == 0:
        return fit(pixels, size)
    share, down, right = random.uniform(
        0, picture, range(3 * number, 3 * number + 3), "crop"
    ).tolist()
    return fit(pixels, size, 1 / (LEAST_CROP + (1 - LEAST_CROP) * share), (down, right))


def _heights(w: int, width: int, height: int, resolution: int, step: int) -> set[int]:
    """Return the best heights for a width: the score is concave, its top at the aspect ratio."""
    largest = min(height, resolution * resolution // w) // step * step
    below = w * height // (width * step) * step
    return {max(step, min(h, largest)) for h in (below, below + step)}


def _score(size: tuple[int, int], width: int, height: int) -> int:
    """Return width * height * (2 w h - scaled area): highest where least is wasted; exact."""
    w, h = size
    return 2 * w * h * width * height - max(w * height, h * width) ** 2


def _cover(width: int, height: int, w: int, h: int) -> tuple[int, int]:
    """Return the scaled size that covers (w, h): one side exactly, the other rounded."""
    if w * height >= h * width:
        return (w, max(h, (2 * w * height + width) // (2 * width)))
    return (max(w, (2 * h * width + height) // (2 * height)), h)
