# SPDX-License-Identifier: Apache-2.0
"""The EDM sampler, Heun's second-order steps (Karras et al. 2022, Algorithm 2; arXiv 2206.00364)."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ._churn import Churn
from .parts import SAMPLERS, Denoise, Step, Stepped


@SAMPLERS.register("edm-heun")
@dataclass(frozen=True)
class EDMHeun(Churn):
    """An Euler step, and its correction by the mean of the slopes at both ends; a step to 0 is Euler's."""

    order: ClassVar[int] = 2
    calls: ClassVar[int] = 2

    def step(self, denoise: Denoise, x: torch.Tensor, at: Step) -> Stepped:
        """Go from ``at.sigma`` to ``at.to``."""
        x, sigma = self.raised(x, at)
        denoised = denoise(x, sigma)
        slope = (x - denoised) / sigma
        ahead = x + slope * (at.to - sigma)
        if at.to > 0:
            slope_ahead = (ahead - denoise(ahead, at.to)) / at.to
            ahead = x + (slope + slope_ahead) * (0.5 * (at.to - sigma))
        return Stepped(ahead, denoised, x, sigma)
