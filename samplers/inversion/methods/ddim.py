# SPDX-License-Identifier: Apache-2.0
"""DDIM inversion (Song et al. 2020, section 4.3; arXiv 2010.02502): the probability flow ODE upward, by Euler steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ...parts import SAMPLERS, Denoise, Levels, Noise
from ..backward import backward
from ..parts import INVERSIONS, Inversion, Watch
from ._solving import Solving


@INVERSIONS.register("ddim")
@dataclass(frozen=True)
class InvertDDIM(Solving):
    """x with S(x) = x', S a step of ddim down."""

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
            SAMPLERS.get("ddim")(), denoise, x, sigmas, self.effort(), levels=levels, watch=watch
        )
