# SPDX-License-Identifier: Apache-2.0
"""The design space of schedules (Karras et al. 2022, Table 1; arXiv 2206.00364): sigma(t), and steps in t.

t_i = (t_max^(1 / rho) + i / (N - 1) (t_min^(1 / rho) - t_max^(1 / rho)))^rho. Its corners: time edm with rho 7 is
karras, edm with 0 exponential, vp with 1 vp, ve with 0 ve.
"""

from dataclasses import dataclass

import torch

from ...registry import option
from ..parts import SCHEDULES, Levels
from ._range import Range, powers
from ._vp_time import sigma_at, time_at

_LEAST_RHO = 0.1


@SCHEDULES.register("design-space")
@dataclass(frozen=True)
class DesignSpace(Range):
    """Steps even in t^(1 / rho), or in ln t where rho is 0."""

    time: str = option(
        "edm",
        "What t is. edm: sigma. ve: sigma squared. vp: the time of variance preserving diffusion.",
        choices=("edm", "ve", "vp"),
    )
    rho: float = option(
        7.0, "Steps are even in t to the power 1 / rho; 0: in its logarithm.", min=0.0, max=100.0
    )
    beta_d: float = option(19.9, "Of time vp: how fast the noise grows.", min=0.001, max=1e4)
    beta_min: float = option(0.1, "Of time vp: how fast it grows at the time 0.", min=0.0, max=1e4)

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.rho < _LEAST_RHO:
            raise ValueError(f"rho is {self.rho:g}; it must be 0 or at least {_LEAST_RHO:g}.")

    def levels(self, steps: int, model: Levels | None) -> torch.Tensor:
        """The level at the beginning of each step ``[steps]``."""
        t = powers(self._time(self.sigma_max), self._time(self.sigma_min), self.rho, steps)
        if self.time == "vp":
            return sigma_at(t, self.beta_d, self.beta_min)
        return t.sqrt() if self.time == "ve" else t

    def _time(self, sigma: float) -> float:
        if self.time == "vp":
            return time_at(sigma, self.beta_d, self.beta_min)
        return sigma**2 if self.time == "ve" else sigma
