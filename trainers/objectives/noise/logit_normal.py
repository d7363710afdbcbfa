# SPDX-License-Identifier: Apache-2.0
"""logit t ~ N(mean, std^2) (Esser et al. 2024, eq. 19; arXiv 2403.03206), on the unshifted time of flow models."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ....registry import check_limits, option
from ...denoiser import Preconditioning
from .. import NOISE


@NOISE.register("logit-normal")
@dataclass(frozen=True)
class LogitNormal:
    """Mostly in the middle, where a flow is hardest to tell; a flow model's own shift does not count."""

    families: ClassVar = ("flow",)
    remedy: ClassVar = "its levels do not end at 1: take log-normal, or model"
    mean: float = option(0.0, "Mean of logit t; above 0 is more noise.", min=-20.0, max=20.0)
    std: float = option(1.0, "Standard deviation of logit t.", min=1e-3, max=20.0)

    def __post_init__(self) -> None:
        check_limits(self)

    def quantile(self, u: torch.Tensor, denoiser: Preconditioning) -> torch.Tensor:
        """sigmoid(mean + std ndtri(u))."""
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u)).float()

    def cdf(self, sigma: torch.Tensor, denoiser: Preconditioning) -> torch.Tensor:
        """ndtr((logit sigma - mean) / std)."""
        return torch.special.ndtr((torch.logit(sigma.cpu().double()) - self.mean) / self.std)
