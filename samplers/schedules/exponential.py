# SPDX-License-Identifier: Apache-2.0
"""Even in ln sigma: what Karras' schedule becomes as rho grows."""

from dataclasses import dataclass

import torch

from ..parts import SCHEDULES, Levels
from ._range import Range, powers


@SCHEDULES.register("exponential")
@dataclass(frozen=True)
class Exponential(Range):
    """sigma_max (sigma_min / sigma_max)^(i / (N - 1))."""

    def levels(self, steps: int, model: Levels | None) -> torch.Tensor:
        """The level at the beginning of each step ``[steps]``."""
        return powers(self.sigma_max, self.sigma_min, 0, steps)
