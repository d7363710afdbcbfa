# SPDX-License-Identifier: Apache-2.0
"""Variance preserving (Song et al. 2020; Karras et al. 2022, Table 1; arXiv 2206.00364): even in time."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ...registry import check_limits, option
from ..parts import SCHEDULES, Levels
from ._range import LIMITS, check_ends, ramp
from ._vp_time import sigma_at, time_at


@SCHEDULES.register("vp")
@dataclass(frozen=True)
class VP:
    """t = 1 + i / (N - 1) (epsilon - 1), between other ends where sigma_max and sigma_min say so."""

    needs_model: ClassVar[bool] = False

    sigma_min: float = option(
        0.0, "Lowest noise level before 0; 0 is that at the time epsilon.", **LIMITS
    )
    sigma_max: float = option(0.0, "Highest noise level; 0 is that at the time 1.", **LIMITS)
    beta_d: float = option(19.9, "How fast the noise grows with time.", min=0.001, max=1e4)
    beta_min: float = option(0.1, "How fast it grows at the time 0.", min=0.0, max=1e4)
    epsilon: float = option(0.001, "The last time before 0.", min=1e-9, max=0.999)

    def __post_init__(self) -> None:
        check_limits(self)
        check_ends(self, may_be_zero=True)
        last, first = self._ends()
        if last >= first:
            raise ValueError(
                f"sigma_min is {self.sigma_min:g} and sigma_max {self.sigma_max:g} (0 is vp's own): sigma_min must be "
                "below it."
            )

    def levels(self, steps: int, model: Levels | None) -> torch.Tensor:
        """The level at the beginning of each step ``[steps]``."""
        last, first = self._ends()
        return sigma_at(first + ramp(steps) * (last - first), self.beta_d, self.beta_min)

    def _ends(self) -> tuple[float, float]:
        betas = self.beta_d, self.beta_min
        last = time_at(self.sigma_min, *betas) if self.sigma_min else self.epsilon
        return last, time_at(self.sigma_max, *betas) if self.sigma_max else 1.0
