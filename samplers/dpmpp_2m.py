# SPDX-License-Identifier: Apache-2.0
"""DPM-Solver++(2M): two-step, data prediction (Lu et al. 2022, Algorithm 2; arXiv 2211.01095), in sigma coordinates."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from .parts import SAMPLERS, Denoise, Step, Stepped


@SAMPLERS.register("dpmpp-2m")
@dataclass(frozen=True)
class DPMpp2M:
    """x' = (sigma' / sigma) x + (1 - sigma' / sigma) (D + (D - D_before) / (2 r)), r of steps in ln sigma."""

    order: ClassVar[int] = 2
    calls: ClassVar[int] = 1
    noise_option: ClassVar[str] = ""
    needs_times: ClassVar[bool] = False
    is_stochastic: ClassVar[bool] = False

    def step(self, denoise: Denoise, x: torch.Tensor, at: Step) -> Stepped:
        """Go from ``at.sigma`` to ``at.to``."""
        denoised = denoise(x, at.sigma)
        ahead = denoised
        if at.before is not None and at.to > 0:
            sigma_before, denoised_before = at.before
            r = math.log(sigma_before / at.sigma) / math.log(at.sigma / at.to)
            ahead = denoised + (denoised - denoised_before) * (0.5 / r)
        ratio = at.to / at.sigma
        return Stepped(x * ratio + ahead * (1 - ratio), denoised, x, at.sigma)
