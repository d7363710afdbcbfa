# SPDX-License-Identifier: Apache-2.0
"""The probability flow ODE upward by Heun's steps (Karras et al. 2022, Algorithm 1; arXiv 2206.00364)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ...parts import SAMPLERS, Denoise, Levels, Noise
from ..backward import backward
from ..parts import INVERSIONS, Inversion, Watch
from ._solving import Solving


@INVERSIONS.register("edm-heun")
@dataclass(frozen=True)
class InvertHeun(Solving):
    """x with S(x) = x', S a step of edm-heun down."""

    is_drawn: ClassVar[bool] = False

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
        return backward(
            SAMPLERS.get("edm-heun")(),
            denoise,
            x,
            sigmas,
            self.effort(),
            levels=levels,
            watch=watch,
        )
