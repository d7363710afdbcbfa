# SPDX-License-Identifier: Apache-2.0
"""Even in sigma^(1 / rho) (Karras et al. 2022, eq. 5 and Table 1, EDM; arXiv 2206.00364)."""

from dataclasses import dataclass

import torch

from ...registry import option
from ..parts import SCHEDULES, Levels
from ._range import Range, powers


@SCHEDULES.register("karras")
@dataclass(frozen=True)
class Karras(Range):
    """(sigma_max^(1 / rho) + i / (N - 1) (sigma_min^(1 / rho) - sigma_max^(1 / rho)))^rho."""

    rho: float = option(
        7.0, "Curvature; more puts more of the steps at low noise.", min=1.0, max=100.0
    )

    def levels(self, steps: int, model: Levels | None) -> torch.Tensor:
        """The level at the beginning of each step ``[steps]``."""
        return powers(self.sigma_max, self.sigma_min, self.rho, steps)
