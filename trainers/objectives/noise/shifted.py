# SPDX-License-Identifier: Apache-2.0
"""Uniform time with a shift of its own: shift t / (1 + (shift - 1) t) (Esser et al. 2024, eq. 23; arXiv 2403.03206).

The shift that a flow model on the wire has takes no part: with the same shift this law is `model`, continuous.
Flux names the logarithm of it.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ....registry import check_limits, option
from ...denoiser import Preconditioning
from .. import NOISE


@NOISE.register("shifted")
@dataclass(frozen=True)
class Shifted:
    """More noise for more pixels; in place of a flow model's own shift, not on top of it."""

    families: ClassVar = ("flow",)
    remedy: ClassVar = "its levels have no shift: take log-normal, or model"
    shift: float = option(3.0, "Above 1 is more noise; 1 is uniform.", min=1e-3, max=1e3)

    def __post_init__(self) -> None:
        check_limits(self)

    def quantile(self, u: torch.Tensor, denoiser: Preconditioning) -> torch.Tensor:
        """shift u / (1 + (shift - 1) u)."""
        return (self.shift * u / (1 + (self.shift - 1) * u)).float()

    def cdf(self, sigma: torch.Tensor, denoiser: Preconditioning) -> torch.Tensor:
        """The inverse, sigma / (shift - (shift - 1) sigma)."""
        sigma = sigma.cpu().double()
        return (sigma / (self.shift - (self.shift - 1) * sigma)).clamp(0, 1)
