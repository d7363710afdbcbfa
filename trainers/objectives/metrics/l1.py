# SPDX-License-Identifier: Apache-2.0
"""rho(r) = |r|."""

from dataclasses import dataclass

import torch

from ...denoiser import Preconditioning
from .. import METRICS


@METRICS.register("l1")
@dataclass(frozen=True)
class L1:
    """Absolute error: outliers count no more than in proportion."""

    def __call__(
        self, residual: torch.Tensor, sigma: torch.Tensor, denoiser: Preconditioning
    ) -> torch.Tensor:
        """The absolute value."""
        return residual.abs()
