# SPDX-License-Identifier: Apache-2.0
"""The model's own noise levels, each as likely as the next (Ho et al. 2020, Algorithm 1).

For flow models the table already holds the shift.
"""

from dataclasses import dataclass

import torch

from ...denoiser import Preconditioning
from .. import NOISE


@NOISE.register("model")
@dataclass(frozen=True)
class ModelTable:
    """Uniform over the model's table of sigmas."""

    def quantile(self, u: torch.Tensor, denoiser: Preconditioning) -> torch.Tensor:
        """The table's entry at index floor(u N)."""
        table = denoiser.sigmas
        index = (u * len(table)).long().clamp(max=len(table) - 1)
        return table[index.to(table.device)].float()

    def cdf(self, sigma: torch.Tensor, denoiser: Preconditioning) -> torch.Tensor:
        """The share of the table that is at most ``sigma``."""
        table = denoiser.sigmas.cpu()
        below = torch.searchsorted(table, sigma.cpu().to(table.dtype), right=True)
        return below.double() / len(table)
