# SPDX-License-Identifier: Apache-2.0
"""P2: 1 / (k + SNR)^gamma on the eps error (Choi et al. 2022, eq. 8; arXiv 2204.00227).

That is SNR / (k + SNR)^gamma on the error of the denoised latent, whatever the network predicts.
"""

from dataclasses import dataclass

import torch

from ....registry import check_limits, option
from ...denoiser import Preconditioning, c_out, snr
from .. import WEIGHTS


@WEIGHTS.register("p2")
@dataclass(frozen=True)
class P2:
    """Levels that only clean up count less."""

    k: float = option(1.0, "Keeps the weight of noise-only levels finite.", min=1e-6, max=1e6)
    gamma: float = option(1.0, "How strongly; the paper takes 0.5 and 1.", min=0.0, max=10.0)

    def __post_init__(self) -> None:
        check_limits(self)

    def __call__(self, sigma: torch.Tensor, denoiser: Preconditioning) -> torch.Tensor:
        """SNR / (k + SNR)^gamma c_out^2."""
        ratio = snr(denoiser, sigma)
        balance = ratio * (self.k + ratio).pow(-self.gamma)
        return balance * c_out(denoiser, sigma, 2).square().flatten()
