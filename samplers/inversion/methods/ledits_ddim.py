# SPDX-License-Identifier: Apache-2.0
"""Edit-friendly inversion by DDIM with eta (Huberman-Spiegelglas et al. 2023; arXiv 2304.06140)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ....registry import check_limits, option
from ...parts import SAMPLERS, Denoise, Levels, Noise
from ..drawn import drawn
from ..parts import INVERSIONS, Inversion, Watch


@INVERSIONS.register("ledits-ddim")
@dataclass(frozen=True)
class LeditsDDIM:
    """z_t = (x_{t-1} - mu(x_t)) / std_t of DDIM."""

    is_drawn: ClassVar[bool] = True

    eta: float = option(
        1.0, "How much of the noise of ledits-ddim is new at each step.", min=0.01, max=1.0
    )

    def __post_init__(self) -> None:
        check_limits(self)

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
        sampler = SAMPLERS.get("ddim")(eta=self.eta)
        return drawn(sampler, denoise, x, sigmas, noise, levels=levels, watch=watch)
