# SPDX-License-Identifier: Apache-2.0
"""ln sigma ~ N(P_mean, P_std^2) (Karras et al. 2022, Table 1; arXiv 2206.00364), cut off at the model's levels."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ....registry import check_limits, option
from ...denoiser import Preconditioning
from .. import NOISE


@NOISE.register("log-normal")
@dataclass(frozen=True)
class LogNormal:
    """Mostly where a network can learn something: neither almost clean nor almost noise."""

    families: ClassVar = ("eps", "v", "edm", "x0", "other")
    remedy: ClassVar = "its levels lie between 0 and 1: take logit-normal"
    p_mean: float = option(-1.2, "Mean of ln sigma.", min=-20.0, max=20.0)
    p_std: float = option(1.2, "Standard deviation of ln sigma.", min=1e-3, max=20.0)

    def __post_init__(self) -> None:
        check_limits(self)

    def quantile(self, u: torch.Tensor, denoiser: Preconditioning) -> torch.Tensor:
        """exp(P_mean + P_std ndtri(u))."""
        return (self.p_mean + self.p_std * torch.special.ndtri(u)).exp().float()

    def cdf(self, sigma: torch.Tensor, denoiser: Preconditioning) -> torch.Tensor:
        """ndtr((ln sigma - P_mean) / P_std)."""
        return torch.special.ndtr((sigma.cpu().double().log() - self.p_mean) / self.p_std)
