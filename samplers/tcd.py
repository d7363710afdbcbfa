# SPDX-License-Identifier: Apache-2.0
"""Trajectory consistency sampling with gamma (Zheng et al. 2024, Algorithm 2; arXiv 2402.19159), over D.

Deterministic to the time s = (1 - gamma) t', then noise up to t'. diffusers calls gamma eta.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..registry import check_limits, option
from .parts import SAMPLERS, Denoise, Levels, Step, Stepped

_ROUNDING = 1e-9  # (1 - 0.3) 490 is a little less than 343 in binary


@SAMPLERS.register("tcd")
@dataclass(frozen=True)
class TCD:
    """x' = D + sigma_s eps + sqrt(sigma'^2 - sigma_s^2) z, eps = (x - D) / sigma."""

    order: ClassVar[int] = 1
    calls: ClassVar[int] = 1
    noise_option: ClassVar[str] = "gamma"
    needs_times: ClassVar[bool] = True

    gamma: float = option(
        0.3,
        "How far each step overshoots before noise is added: 0 is ddim, 1 is full multistep consistency.",
        min=0.0,
        max=1.0,
    )

    def __post_init__(self) -> None:
        check_limits(self)

    @property
    def is_stochastic(self) -> bool:
        """Whether it adds noise."""
        return self.gamma > 0

    def step(self, denoise: Denoise, x: torch.Tensor, at: Step) -> Stepped:
        """Go from ``at.sigma`` to ``at.to``."""
        denoised = denoise(x, at.sigma)
        eps = (x - denoised) / at.sigma
        low = self._below(at.to, at.levels)
        ahead = denoised + eps * low
        up = (at.to**2 - low**2) ** 0.5
        if up > 0:
            ahead = ahead + at.noise() * up
        return Stepped(ahead, denoised, x, at.sigma)

    def _below(self, to: float, levels: Levels | None) -> float:
        """sigma_s for the level that the step ends at."""
        if self.gamma == 0 or to == 0 or levels is None:
            return to
        time = math.floor((1 - self.gamma) * levels.time(to) + _ROUNDING)
        return min(levels.sigma(time), to)
