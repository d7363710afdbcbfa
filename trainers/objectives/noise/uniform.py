# SPDX-License-Identifier: Apache-2.0
"""Uniform in the model's time, without a shift (rectified flow, Liu et al. 2022, eq. 1; arXiv 2209.03003).

The time of flow models is sigma itself. The other families have no shift: their time is the place in their table,
and this law is `model` there.
"""

from dataclasses import dataclass

import torch

from ...denoiser import Preconditioning
from ...facts import facts
from .. import NOISE
from .model import ModelTable


@NOISE.register("uniform")
@dataclass(frozen=True)
class Uniform:
    """Every time as likely as the next; a flow model's own shift does not count."""

    def quantile(self, u: torch.Tensor, denoiser: Preconditioning) -> torch.Tensor:
        """sigma = u for flow models."""
        if facts(denoiser).family != "flow":
            return ModelTable().quantile(u, denoiser)
        return u.float()

    def cdf(self, sigma: torch.Tensor, denoiser: Preconditioning) -> torch.Tensor:
        """P = sigma for flow models."""
        if facts(denoiser).family != "flow":
            return ModelTable().cdf(sigma, denoiser)
        return sigma.cpu().double().clamp(0, 1)
