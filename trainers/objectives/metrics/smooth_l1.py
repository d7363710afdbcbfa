# SPDX-License-Identifier: Apache-2.0
"""rho(r) = r^2 / (2 beta) where |r| < beta, else |r| - beta / 2 (Girshick 2015, eq. 3; arXiv 1504.08083)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ....registry import check_limits, option
from ...denoiser import Preconditioning
from .. import METRICS


@METRICS.register("smooth-l1")
@dataclass(frozen=True)
class SmoothL1:
    """The absolute error with a round bottom."""

    beta: float = option(1.0, "Where the square ends and the line begins.", min=1e-6, max=1e6)

    def __post_init__(self) -> None:
        check_limits(self)

    def __call__(
        self, residual: torch.Tensor, sigma: torch.Tensor, denoiser: Preconditioning
    ) -> torch.Tensor:
        """torch's smooth L1 against 0."""
        return F.smooth_l1_loss(
            residual, torch.zeros_like(residual), reduction="none", beta=self.beta
        )
