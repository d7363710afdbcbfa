# SPDX-License-Identifier: Apache-2.0
"""The EDM schedule of a discrete model: between the ends of its own table, snapped to it.

Karras et al. 2022, appendix C.3.4 (arXiv 2206.00364): a model that was trained at a table of levels is asked at those.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ...registry import check_limits, option
from ..parts import SCHEDULES, Levels
from ._range import LIMITS, check_ends, powers


@SCHEDULES.register("discrete")
@dataclass(frozen=True)
class Discrete:
    """Karras' levels, each the nearest of the model's."""

    needs_model: ClassVar[bool] = True

    sigma_min: float = option(0.0, "Lowest noise level before 0; 0 is the model's.", **LIMITS)
    sigma_max: float = option(0.0, "Highest noise level; 0 is the model's.", **LIMITS)
    rho: float = option(
        7.0, "Curvature; more puts more of the steps at low noise.", min=1.0, max=100.0
    )
    snap: bool = option(True, "Take the nearest levels of the model's table.")

    def __post_init__(self) -> None:
        check_limits(self)
        check_ends(self, may_be_zero=True)

    def levels(self, steps: int, model: Levels | None) -> torch.Tensor:
        """The level at the beginning of each step ``[steps]``, or fewer."""
        if model is None:
            raise ValueError("The schedule discrete is made of a model's own levels.")
        low = self.sigma_min or float(model.sigmas[0])
        high = self.sigma_max or float(model.sigmas[-1])
        if low >= high:
            raise ValueError(
                f"sigma_min is {low:g} and sigma_max {high:g}: sigma_min must be below it."
            )
        found = powers(high, low, self.rho, steps)
        return torch.unique_consecutive(model.nearest(found)) if self.snap else found
