# SPDX-License-Identifier: Apache-2.0
"""Variance exploding (Karras et al. 2022, Table 1; arXiv 2206.00364): sigma(t) = sqrt t, t geometric."""

from dataclasses import dataclass

import torch

from ...registry import option
from ..parts import SCHEDULES, Levels
from ._range import LIMITS, SIGMA_MAX, SIGMA_MIN, Range, powers


@SCHEDULES.register("ve")
@dataclass(frozen=True)
class VE(Range):
    """t = sigma_max^2 (sigma_min^2 / sigma_max^2)^(i / (N - 1)); the ends are its own, 0.02 and 100."""

    sigma_min: float = option(0.02, SIGMA_MIN, **LIMITS)
    sigma_max: float = option(100.0, SIGMA_MAX, **LIMITS)

    def levels(self, steps: int, model: Levels | None) -> torch.Tensor:
        """The level at the beginning of each step ``[steps]``."""
        return powers(self.sigma_max**2, self.sigma_min**2, 0, steps).sqrt()
