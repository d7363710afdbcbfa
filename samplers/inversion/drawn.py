# SPDX-License-Identifier: Apache-2.0
"""Inversion without errors: the latent of each level is drawn by itself, and a step keeps what it lacks of the next.

Huberman-Spiegelglas et al. 2023 (arXiv 2304.06140), and LEDITS++ (Brack et al. 2023; arXiv 2311.16711, section 4.1) for
samplers of second order: x_t = y + sigma_t n_t with independent n_t, and z_t = (x_{t-1} - mu(x_t)) / std_t. What is
kept is std_t z_t, all that is added to mu, so that the last step, which has no noise, leads to the picture as well.
"""

from collections.abc import Callable, Sequence

import torch

from ..parts import Denoise, Levels, Noise, Sampler, Step
from .parts import Inversion, Watch, stacked


def drawn(
    sampler: Sampler,
    denoise: Denoise,
    x: torch.Tensor,
    sigmas: Sequence[float],
    noise: Noise,
    *,
    looks_back: bool = False,
    levels: Levels | None = None,
    watch: Watch | None = None,
) -> Inversion:
    """Draw all states, and keep what the steps between them lack.

    Args:
        sampler: One that adds its noise at the end of a step, in proportion.
        denoise: D.
        x: The clean latent ``[B, ...]``.
        sigmas: The levels, falling to 0, each once ``[N + 1]``.
        noise: What the states are drawn from.
        looks_back: Whether the sampler looks at the step before.
        levels: Those of the model, where they are known.
        watch: Told of each step.

    Returns:
        The inversion, with its rests.
    """
    steps = len(sigmas) - 1
    states = [x + noise(x, sigma) * sigma for sigma in sigmas[:-1]] + [x]
    rests: list[torch.Tensor] = []
    denoised: list[torch.Tensor] = []
    for i in range(steps):
        before = (sigmas[i - 1], denoised[i - 1]) if i else None
        at = Step(steps, sigmas[i], sigmas[i + 1], none(x), before, levels)
        done = sampler.step(denoise, states[i], at)
        rests.append(states[i + 1] - done.x)
        denoised.append(done.denoised)
        # Rounded as it will be when the step is gone again, or its rounding would add up.
        states[i + 1] = done.x + rests[i]
        if watch is not None:
            watch(i, steps, done)
    kept = stacked(denoised) if looks_back else None
    return Inversion(sampler, tuple(sigmas), stacked(states), stacked(rests), kept, steps)


def none(like: torch.Tensor) -> Callable[[], torch.Tensor]:
    """The noise of a step that adds none: zeros like ``like``."""
    return lambda: torch.zeros_like(like)
