# SPDX-License-Identifier: Apache-2.0
"""Parts of a picture as CLIP sees them, differentiable: cut out, scaled, turned and mirrored at random."""

import math

import torch
import torch.nn.functional as F

_RATIO = math.log(4 / 3)  # of width to height, either way


def whole(picture: torch.Tensor, side: int) -> torch.Tensor:
    """The largest square in the middle of a picture.

    Args:
        picture: ``[1, 3, h, w]``.
        side: Pixels a side of the result.

    Returns:
        ``[1, 3, side, side]``.
    """
    return fitted(picture, side, side)


def fitted(picture: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """A picture scaled to cover a size, and its middle.

    Args:
        picture: ``[1, 3, h, w]``.
        height: Pixels of the result.
        width: Pixels of the result.

    Returns:
        ``[1, 3, height, width]``.
    """
    scale = max(height / picture.shape[2], width / picture.shape[3])
    wanted = [round(size * scale) for size in picture.shape[2:]]
    top, left = (wanted[0] - height) // 2, (wanted[1] - width) // 2
    return _scaled(picture, *wanted)[:, :, top : top + height, left : left + width]


def random(
    picture: torch.Tensor,
    count: int,
    side: int,
    smallest: float,
    turn: float,
    flip: bool,
    generator: torch.Generator | None,
) -> torch.Tensor:
    """Parts of random size, shape and place, turned and mirrored.

    Args:
        picture: ``[1, 3, h, w]``.
        count: How many.
        side: Pixels a side of each.
        smallest: Share of the picture in the smallest one.
        turn: Most degrees of a turn.
        flip: Whether half of them are mirrored.
        generator: On the CPU.

    Returns:
        ``[count, 3, side, side]``.
    """
    draws = torch.rand((count, 6), generator=generator, dtype=torch.float64).tolist()
    height, width = picture.shape[2:]
    parts = []
    for area, ratio, down, right, angle, mirror in draws:
        size = math.sqrt((smallest + (1 - smallest) * area) * height * width)
        stretch = math.exp((ratio - 0.5) * _RATIO)
        h = min(height, max(1, round(size / stretch)))
        w = min(width, max(1, round(size * stretch)))
        top, left = round(down * (height - h)), round(right * (width - w))
        part = _scaled(picture[:, :, top : top + h, left : left + w], side, side)
        parts.append(_turned(part, (2 * angle - 1) * turn, flip and mirror < 0.5))
    return torch.cat(parts)


def _scaled(picture: torch.Tensor, height: int, width: int) -> torch.Tensor:
    if picture.shape[2:] == (height, width):
        return picture
    return F.interpolate(picture, (height, width), mode="bilinear", antialias=True)


def _turned(picture: torch.Tensor, degrees: float, is_mirrored: bool) -> torch.Tensor:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    side = -1.0 if is_mirrored else 1.0
    turn = picture.new_tensor([[[side * cos, -sin, 0.0], [side * sin, cos, 0.0]]])
    grid = F.affine_grid(turn, list(picture.shape), align_corners=False)
    return F.grid_sample(picture, grid, padding_mode="border", align_corners=False)
