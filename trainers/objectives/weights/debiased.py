# SPDX-License-Identifier: Apache-2.0
"""Debiased estimation: 1 / sqrt(SNR) on the eps error (Yu et al. 2023; arXiv 2310.08442).

That is sqrt(SNR) on the error of the denoised latent, and so sqrt(SNR) c_out^2 on that of the raw network, whatever
it predicts.
"""

from dataclasses import dataclass

import torch

from ....registry import check_limits, option
from ...denoiser import Preconditioning, c_out, snr
from .. import WEIGHTS


@WEIGHTS.register("debiased")
@dataclass(frozen=True)
class Debiased:
    """Steps with much noise, which decide what is in the picture, count more."""

    max_snr: float = option(1000.0, "SNR above which the weight no longer falls.", min=1.0, max=1e9)

    def __post_init__(self) -> None:
        check_limits(self)

    def __call__(self, sigma: torch.Tensor, denoiser: Preconditioning) -> torch.Tensor:
        """SNR / sqrt(min(SNR, max_snr)) c_out^2."""
        ratio = snr(denoiser, sigma)
        balance = ratio / ratio.clamp(max=self.max_snr).sqrt().clamp(min=1e-10)
        return balance * c_out(denoiser, sigma, 2).square().flatten()
