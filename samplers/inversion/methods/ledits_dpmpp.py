# SPDX-License-Identifier: Apache-2.0
"""LEDITS++ inversion by SDE-DPM-Solver++(2M) (Brack et al. 2023, section 4.1; arXiv 2311.16711)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ...parts import SAMPLERS, Denoise, Levels, Noise
from ..drawn import drawn
from ..parts import INVERSIONS, Inversion, Watch


@INVERSIONS.register("ledits-dpmpp")
@dataclass(frozen=True)
class LeditsDPMpp:
    """z_t = (x_{t-1} - mu(x_t, D_t, D_{t+1})) / std_t of SDE-DPM-Solver++, second order."""

    is_drawn: ClassVar[bool] = True

    def invert(
        self,
        denoise: Denoise,
        x: torch.Tensor,
        sigmas: Sequence[float],
        noise: Noise,
        *,
        levels: Levels | None = None,
        watch: Watch | None = None,
    ) -> Inversion:
        """The inversion of a clean latent ``[B, ...]``."""
        return drawn(
            SAMPLERS.get("dpmpp-2m-sde")(),
            denoise,
            x,
            sigmas,
            noise,
            looks_back=True,
            levels=levels,
            watch=watch,
        )
