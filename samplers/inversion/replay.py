# SPDX-License-Identifier: Apache-2.0
"""An inversion gone down again: with the D that it was made with it leads to its picture, with another near it."""

import torch

from ..loop import Watch
from ..parts import Denoise, Levels, Step
from .drawn import none
from .parts import Inversion


def replay(
    inversion: Inversion,
    denoise: Denoise,
    *,
    first: int = 0,
    mask: torch.Tensor | None = None,
    device: "torch.device | str" = "cpu",
    levels: Levels | None = None,
    watch: Watch | None = None,
) -> torch.Tensor:
    """Go down from a step on.

    Args:
        inversion: The inversion.
        denoise: D.
        first: The step to begin with.
        mask: 1 where the picture may become another, 0 where it stays, ``[B, 1, ...]`` or like a latent.
        device: Where D is asked.
        levels: Those of the model, where they are known.
        watch: Told the number of each step, from 0 for the first that is gone, and what it came to.

    Returns:
        The latent at the last level ``[B, ...]``.
    """
    sigmas, rests, kept = inversion.sigmas, inversion.rests, inversion.denoised
    x = inversion.states[first].to(device)
    before: tuple[float, torch.Tensor] | None = None
    if first and kept is not None:
        before = sigmas[first - 1], kept[first - 1].to(device)
    for i in range(first, inversion.steps):
        at = Step(inversion.steps, sigmas[i], sigmas[i + 1], none(x), before, levels)
        done = inversion.sampler.step(denoise, x, at)
        x = done.x if rests is None else done.x + rests[i].to(device)
        if mask is not None:
            x = x * mask + inversion.states[i + 1].to(device) * (1 - mask)
        before = sigmas[i], done.denoised
        if watch is not None:
            watch(i - first, done)
    return x
