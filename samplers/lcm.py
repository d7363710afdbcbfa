# SPDX-License-Identifier: Apache-2.0
"""Multistep consistency sampling of latent consistency models (Luo et al. 2023, Algorithm 3; arXiv 2310.04378), over D.

f = c_skip x_vp + c_out D, with x_vp = x / sqrt(1 + sigma^2), c_skip = sd^2 / (u^2 + sd^2),
c_out = u / sqrt(u^2 + sd^2), u = scaling t and sd = 0.5. It solves no ODE: each step is a guess of
the picture, noised anew.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..registry import check_limits, option
from .parts import SAMPLERS, Denoise, Step, Stepped

_SIGMA_DATA = 0.5


@SAMPLERS.register("lcm")
@dataclass(frozen=True)
class LCM:
    """x' = f + sigma' z."""

    order: ClassVar[int] = 0
    calls: ClassVar[int] = 1
    noise_option: ClassVar[str] = "s_noise"
    needs_times: ClassVar[bool] = True

    s_noise: float = option(1.0, "How strong the added noise is.", min=0.0, max=10.0, step=0.001)
    boundary: bool = option(
        True, "Mix D with the latent at the lowest time steps, as these models were trained to."
    )
    scaling: float = option(
        10.0, "What time steps are multiplied by in that mix.", min=0.001, max=1e6
    )

    def __post_init__(self) -> None:
        check_limits(self)

    @property
    def is_stochastic(self) -> bool:
        """Whether it adds noise."""
        return self.s_noise > 0

    def step(self, denoise: Denoise, x: torch.Tensor, at: Step) -> Stepped:
        """Go from ``at.sigma`` to ``at.to``."""
        guess = denoised = denoise(x, at.sigma)
        if self.boundary and at.levels is not None:
            u = self.scaling * at.levels.time(at.sigma)
            c_skip = _SIGMA_DATA**2 / (u**2 + _SIGMA_DATA**2)
            c_out = u / (u**2 + _SIGMA_DATA**2) ** 0.5
            guess = denoised * c_out + x * (c_skip / (1 + at.sigma**2) ** 0.5)
        ahead = guess
        if at.to > 0 and self.s_noise > 0:
            ahead = guess + at.noise() * (at.to * self.s_noise)
        return Stepped(ahead, denoised, x, at.sigma)
