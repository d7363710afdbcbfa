# SPDX-License-Identifier: Apache-2.0
"""DPM-Solver++(2M) backward; its steps look at the one before, so that they are solved in sweeps (Hong et al. 2024)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ....registry import option
from ...parts import SAMPLERS, Denoise, Levels, Noise
from ..backward import backward
from ..parts import INVERSIONS, Inversion, Watch
from ._solving import Solving


@INVERSIONS.register("dpmpp-2m")
@dataclass(frozen=True)
class InvertDPMpp2M(Solving):
    """x with S(x, D of the level above) = x', S a step of dpmpp-2m down."""

    is_drawn: ClassVar[bool] = False

    sweeps: int = option(
        6,
        "How often dpmpp-2m goes over all levels, for D of the level above that its steps look at; each more "
        "brings the way down nearer to the picture.",
        min=1,
        max=100,
    )

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
        """The inversion of a latent ``[B, ...]``; it draws nothing."""
        effort = self.effort(self.sweeps)
        return backward(
            SAMPLERS.get("dpmpp-2m")(),
            denoise,
            x,
            sigmas,
            effort,
            looks_back=True,
            levels=levels,
            watch=watch,
        )
