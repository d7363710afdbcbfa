# SPDX-License-Identifier: Apache-2.0
"""Where an edit acts (LEDITS++, section 4.2): the places of a picture that are among the strongest, each by itself."""

import math

import torch
import torch.nn.functional as F

_NEAR = math.exp(-1.0)  # of a neighbour to the middle: exp(-(1 / (2 s))^2) with s = 0.5


def strongest(values: torch.Tensor, threshold: float) -> torch.Tensor:
    """1 where a value is at or above a quantile of its own sample's, else 0.

    Args:
        values: ``[B, ...]``.
        threshold: The quantile, 0 to 1.

    Returns:
        ``[B, ...]``, fp32.
    """
    flat = values.detach().float().reshape(values.shape[0], -1)
    limit = torch.quantile(flat, threshold, dim=1)
    return (flat >= limit[:, None]).float().reshape(values.shape)


def of_difference(change: torch.Tensor, threshold: float) -> torch.Tensor:
    """Where a change is large, summed over channels.

    Args:
        change: ``[B, C, ...]``.
        threshold: The quantile.

    Returns:
        ``[B, 1, ...]``.
    """
    return strongest(change.abs().sum(dim=1, keepdim=True), threshold)


def of_attention(maps: torch.Tensor, threshold: float, size: tuple[int, int]) -> torch.Tensor:
    """Where words are looked at.

    Args:
        maps: Attention on the words, ``[B, h, w]``.
        threshold: The quantile.
        size: Height and width of the latents.

    Returns:
        ``[B, 1, H, W]``.
    """
    mask = strongest(smoothed(maps.float()[:, None]), threshold)
    return F.interpolate(mask, size, mode="nearest")


def smoothed(maps: torch.Tensor) -> torch.Tensor:
    """A map with the gaussian of 3 x 3 that LEDITS++ has.

    Args:
        maps: ``[B, 1, h, w]``.

    Returns:
        Of the same shape; beyond the edges it is mirrored, or goes on where one place is all there is.
    """
    line = maps.new_tensor([_NEAR, 1.0, _NEAR])
    kernel = torch.outer(line, line)
    mode = "reflect" if min(maps.shape[2:]) > 1 else "replicate"
    padded = F.pad(maps, (1, 1, 1, 1), mode=mode)
    return F.conv2d(padded, (kernel / kernel.sum())[None, None])


def of_user(masks: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A mask drawn by hand, at the size of latents.

    Args:
        masks: ``[b, H, W]`` in 0..1; sample i of a batch has mask i modulo b.
        like: Latents ``[B, C, ..., h, w]``.

    Returns:
        ``[B, 1, ..., h, w]``.
    """
    height, width = like.shape[-2:]
    small = F.interpolate(masks.to(like)[:, None], (height, width), mode="area")
    rows = [small[index % len(small)] for index in range(like.shape[0])]
    return torch.stack(rows).reshape(like.shape[0], *[1] * (like.ndim - 3), height, width)
