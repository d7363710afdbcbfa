# SPDX-License-Identifier: Apache-2.0
"""Min-SNR-gamma: min(SNR, gamma) on the error of the denoised latent (Hang et al. 2023, eq. 6; arXiv 2303.09556).

Over c_out this is min(SNR, gamma) / SNR for eps models and min(SNR, gamma) / (SNR + 1) for v models.
"""

from dataclasses import dataclass

import torch

from ....registry import check_limits, option
from ...denoiser import Denoiser, c_out, snr
from .. import WEIGHTS


@WEIGHTS.register("min-snr")
@dataclass(frozen=True)
class MinSNR:
    """Steps with little noise, which teach texture and not shape, count less."""

    gamma: float = option(5.0, "SNR from which a step counts less.", min=1e-3, max=1e6)

    def __post_init__(self) -> None:
        check_limits(self)

    def __call__(self, sigma: torch.Tensor, denoiser: Denoiser) -> torch.Tensor:
        """min(SNR, gamma) c_out^2."""
        ratio = snr(denoiser, sigma).clamp(max=self.gamma)
        return ratio * c_out(denoiser, sigma, 2).square().flatten()
