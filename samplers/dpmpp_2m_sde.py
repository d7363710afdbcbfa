# SPDX-License-Identifier: Apache-2.0
"""SDE-DPM-Solver++(2M) (Lu et al. 2022, appendix; arXiv 2211.01095), with eta between the ODE (0) and the SDE (1)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..registry import check_limits, option
from .parts import SAMPLERS, Denoise, Step, Stepped


@SAMPLERS.register("dpmpp-2m-sde")
@dataclass(frozen=True)
class DPMpp2MSDE:
    """x' = (sigma' / sigma) e^(-eta h) x + (1 - e^(-(1 + eta) h)) (D + ...) + sigma' sqrt(1 - e^(-2 eta h)) z."""

    order: ClassVar[int] = 2
    calls: ClassVar[int] = 1
    noise_option: ClassVar[str] = "eta"
    needs_times: ClassVar[bool] = False

    eta: float = option(1.0, "Share of the SDE's noise; 0 is dpmpp-2m.", min=0.0, max=10.0)
    s_noise: float = option(1.0, "How strong the added noise is.", min=0.0, max=10.0, step=0.001)
    solver: str = option(
        "midpoint",
        "How the change of D since the last step is taken: midpoint or heun.",
        choices=("midpoint", "heun"),
    )

    def __post_init__(self) -> None:
        check_limits(self)

    @property
    def is_stochastic(self) -> bool:
        """Whether it adds noise."""
        return self.eta > 0 and self.s_noise > 0

    def step(self, denoise: Denoise, x: torch.Tensor, at: Step) -> Stepped:
        """Go from ``at.sigma`` to ``at.to``."""
        denoised = denoise(x, at.sigma)
        if at.to == 0:
            return Stepped(denoised, denoised, x, at.sigma)
        h = math.log(at.sigma / at.to)
        share = -math.expm1(-h * (1 + self.eta))
        ahead = x * (at.to / at.sigma * math.exp(-h * self.eta)) + denoised * share
        if at.before is not None:
            sigma_before, denoised_before = at.before
            r = math.log(sigma_before / at.sigma) / h
            by_heun = 1 - share / (h * (1 + self.eta))
            weight = 0.5 * share if self.solver == "midpoint" else by_heun
            ahead = ahead + (denoised - denoised_before) * (weight / r)
        if self.is_stochastic:
            spread = at.to * math.sqrt(-math.expm1(-2 * h * self.eta)) * self.s_noise
            ahead = ahead + at.noise() * spread
        return Stepped(ahead, denoised, x, at.sigma)
