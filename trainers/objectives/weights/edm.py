# SPDX-License-Identifier: Apache-2.0
"""Karras' lambda(sigma) = (sigma^2 + sd^2) / (sigma sd)^2 on the error of the denoised latent.

Karras et al. 2022, Table 1; arXiv 2206.00364. It is 1 / c_out^2 of an EDM model, whose network then has unit weight,
and makes any other network minimize what a network of EDM's preconditioning would. With the noise-to-signal ratio
for sigma^2 that is SNR + 1 / sd^2, which flow models have, too.
"""

from dataclasses import dataclass

import torch

from ....registry import check_limits, option
from ...denoiser import Preconditioning, c_out, snr
from ...facts import facts
from .. import WEIGHTS


@WEIGHTS.register("edm")
@dataclass(frozen=True)
class EDM:
    """Every noise level teaches as much, where errors are as large as the data lets them be."""

    sigma_data: float = option(
        0.0, "Spread of the data; 0 is the model's own, or 1 where it has none.", min=0.0, max=1e3
    )

    def __post_init__(self) -> None:
        check_limits(self)

    def __call__(self, sigma: torch.Tensor, denoiser: Preconditioning) -> torch.Tensor:
        """(SNR + 1 / sd^2) c_out^2."""
        data = self.sigma_data or facts(denoiser).sigma_data
        return (snr(denoiser, sigma) + data**-2) * c_out(denoiser, sigma, 2).square().flatten()
