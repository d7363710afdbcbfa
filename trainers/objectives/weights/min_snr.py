# SPDX-License-Identifier: Apache-2.0
"""Min-SNR-gamma: min(SNR, gamma) on the error of the denoised latent (Hang et al. 2023, eq. 6; arXiv 2303.09556).

Over c_out this is min(SNR, gamma) / SNR for eps models and min(SNR, gamma) / (SNR + 1) for v models.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ....registry import check_limits, option
from ...denoiser import Preconditioning, c_out, snr
from .. import WEIGHTS


@WEIGHTS.register("min-snr")
@dataclass(frozen=True)
class MinSNR:
    """Steps with little noise, which teach texture and not shape, count less."""

    families: ClassVar = ("eps", "v", "flow", "x0", "other")
    remedy: ClassVar = "take soft-min-snr, which is made for it, or one"
    gamma: float = option(5.0, "SNR from which a step counts less.", min=1e-3, max=1e6)

    def __post_init__(self) -> None:
        check_limits(self)

    def __call__(self, sigma: torch.Tensor, denoiser: Preconditioning) -> torch.Tensor:
        """min(SNR, gamma) c_out^2."""
        ratio = snr(denoiser, sigma).clamp(max=self.gamma)
        return ratio * c_out(denoiser, sigma, 2).square().flatten()
