# SPDX-License-Identifier: Apache-2.0
"""Euler steps of the EDM sampler (Karras et al. 2022, Algorithm 2 without its correction; arXiv 2206.00364)."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ._churn import Churn
from .parts import SAMPLERS, Denoise, Step, Stepped


@SAMPLERS.register("edm-euler")
@dataclass(frozen=True)
class EDMEuler(Churn):
    """x' = x + (sigma' - sigma) d, d = (x - D) / sigma."""

    order: ClassVar[int] = 1
    calls: ClassVar[int] = 1

    def step(self, denoise: Denoise, x: torch.Tensor, at: Step) -> Stepped:
        """Go from ``at.sigma`` to ``at.to``."""
        x, sigma = self.raised(x, at)
        denoised = denoise(x, sigma)
        slope = (x - denoised) / sigma
        return Stepped(x + slope * (at.to - sigma), denoised, x, sigma)
