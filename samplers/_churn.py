# SPDX-License-Identifier: Apache-2.0
"""Noise that is added before a step, to a level above it (Karras et al. 2022, Algorithm 2; arXiv 2206.00364)."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..registry import check_limits, option
from .parts import Step

_GAMMA_MAX = 2**0.5 - 1


@dataclass(frozen=True)
class Churn:
    """gamma = min(s_churn / N, sqrt 2 - 1) where s_tmin <= sigma <= s_tmax, else 0; sigma_hat = (1 + gamma) sigma."""

    noise_option: ClassVar[str] = "s_churn"
    needs_times: ClassVar[bool] = False

    s_churn: float = option(
        0.0,
        "How much noise is added on the way, over all steps; 0 adds none, and the seed's noise decides all. Karras et "
        "al. took 30 to 80 at 256 steps.",
        min=0.0,
        max=10_000.0,
    )
    s_tmin: float = option(
        0.0, "Lowest noise level at which noise is added.", min=0.0, max=1e6, step=0.01
    )
    s_tmax: float = option(
        0.0, "Highest noise level at which noise is added; 0 is no limit.", min=0.0, max=1e6
    )
    s_noise: float = option(
        1.0,
        "How strong the added noise is; slightly above 1 makes up for detail that models smooth away.",
        min=0.0,
        max=10.0,
        step=0.001,
    )

    def __post_init__(self) -> None:
        check_limits(self)
        if self.s_tmax and self.s_tmax < self.s_tmin:
            raise ValueError(
                f"s_tmin is {self.s_tmin:g} and s_tmax {self.s_tmax:g}: s_tmax must be at least s_tmin, or 0 for no "
                "limit."
            )

    @property
    def is_stochastic(self) -> bool:
        """Whether it adds noise."""
        return self.s_churn > 0

    def raised(self, x: torch.Tensor, at: Step) -> tuple[torch.Tensor, float]:
        """x with its noise ``[B, ...]``, and the level it is at then."""
        is_inside = self.s_tmin <= at.sigma and (not self.s_tmax or at.sigma <= self.s_tmax)
        gamma = min(self.s_churn / at.steps, _GAMMA_MAX) if is_inside else 0.0
        if not gamma:
            return x, at.sigma
        sigma = at.sigma * (1 + gamma)
        return x + at.noise() * (self.s_noise * (sigma**2 - at.sigma**2) ** 0.5), sigma
