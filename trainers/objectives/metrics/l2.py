# SPDX-License-Identifier: Apache-2.0
"""rho(r) = r^2."""

from dataclasses import dataclass

import torch

from ...denoiser import Preconditioning
from .. import METRICS


@METRICS.register("l2")
@dataclass(frozen=True)
class L2:
    """Squared error."""

    def __call__(
        self, residual: torch.Tensor, sigma: torch.Tensor, denoiser: Preconditioning
    ) -> torch.Tensor:
        """The square."""
        return residual.square()
