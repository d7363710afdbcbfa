# SPDX-License-Identifier: Apache-2.0
"""DDIM with eta (Song et al. 2020, eq. 12 and 16; arXiv 2010.02502), written over D in sigma coordinates.

With alpha_bar = 1 / (1 + sigma^2) and x over its root, eq. 16 reads up = eta sigma' sqrt(1 - sigma'^2 / sigma^2).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..registry import check_limits, option
from .parts import SAMPLERS, Denoise, Step, Stepped


@SAMPLERS.register("ddim")
@dataclass(frozen=True)
class DDIM:
    """x' = D + sqrt(sigma'^2 - up^2) eps + up z, eps = (x - D) / sigma."""

    order: ClassVar[int] = 1
    calls: ClassVar[int] = 1
    noise_option: ClassVar[str] = "eta"
    needs_times: ClassVar[bool] = False

    eta: float = option(
        0.0, "How much of the noise is new at each step: 0 is none, 1 is DDPM.", min=0.0, max=1.0
    )

    def __post_init__(self) -> None:
        check_limits(self)

    @property
    def is_stochastic(self) -> bool:
        """Whether it adds noise."""
        return self.eta > 0

    def step(self, denoise: Denoise, x: torch.Tensor, at: Step) -> Stepped:
        """Go from ``at.sigma`` to ``at.to``."""
        denoised = denoise(x, at.sigma)
        eps = (x - denoised) / at.sigma
        up = self.eta * at.to * (1 - (at.to / at.sigma) ** 2) ** 0.5
        ahead = denoised + eps * (at.to**2 - up**2) ** 0.5
        if up > 0:
            ahead = ahead + at.noise() * up
        return Stepped(ahead, denoised, x, at.sigma)
