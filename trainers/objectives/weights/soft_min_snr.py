# SPDX-License-Identifier: Apache-2.0
"""Soft-Min-SNR: SNR gamma / (SNR + gamma) on the error of the denoised latent (Crowson et al. 2024, section 3.4).

arXiv 2401.11605; with gamma = 1 / sigma_data^2 it is k-diffusion's (s sd)^2 / (s^2 + sd^2)^2 on EDM's network, and 4
is that of sd = 0.5.
"""

from dataclasses import dataclass

import torch

from ....registry import check_limits, option
from ...denoiser import Preconditioning, c_out, snr
from .. import WEIGHTS


@WEIGHTS.register("soft-min-snr")
@dataclass(frozen=True)
class SoftMinSNR:
    """Min-SNR without its corner; for EDM models, too."""

    gamma: float = option(4.0, "SNR around which a step begins to count less.", min=1e-3, max=1e6)

    def __post_init__(self) -> None:
        check_limits(self)

    def __call__(self, sigma: torch.Tensor, denoiser: Preconditioning) -> torch.Tensor:
        """SNR gamma / (SNR + gamma) c_out^2."""
        ratio = snr(denoiser, sigma)
        soft = ratio / (ratio / self.gamma + 1)
        return soft * c_out(denoiser, sigma, 2).square().flatten()
