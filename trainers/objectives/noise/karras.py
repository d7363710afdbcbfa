# SPDX-License-Identifier: Apache-2.0
"""Uniform over the ramp of Karras' sampling schedule (Karras et al. 2022, eq. 5; arXiv 2206.00364).

diffusers' EDM schedulers draw the levels of a training this way. sigma_min and sigma_max are the model's.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ....registry import check_limits, option
from ...denoiser import Preconditioning
from .. import NOISE


@NOISE.register("karras")
@dataclass(frozen=True)
class Karras:
    """sigma^(1 / rho) is uniform between the model's lowest and highest level."""

    families: ClassVar = ("eps", "v", "edm", "x0", "other")
    remedy: ClassVar = "its levels are times and not a ramp: take uniform, shifted or logit-normal"
    rho: float = option(7.0, "Curvature of the ramp; more means more low levels.", min=1.0, max=100)

    def __post_init__(self) -> None:
        check_limits(self)

    def quantile(self, u: torch.Tensor, denoiser: Preconditioning) -> torch.Tensor:
        """(a + u (b - a))^rho between a = sigma_min^(1/rho) and b = sigma_max^(1/rho)."""
        a, b = self._ends(denoiser)
        return (a + u * (b - a)).pow(self.rho).float()

    def cdf(self, sigma: torch.Tensor, denoiser: Preconditioning) -> torch.Tensor:
        """(sigma^(1/rho) - a) / (b - a)."""
        a, b = self._ends(denoiser)
        return ((sigma.cpu().double().pow(1 / self.rho) - a) / (b - a)).clamp(0, 1)

    def _ends(self, denoiser: Preconditioning) -> tuple[float, float]:
        low, high = float(denoiser.sigmas[0]), float(denoiser.sigmas[-1])
        return low ** (1 / self.rho), high ** (1 / self.rho)
