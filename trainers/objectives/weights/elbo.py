# SPDX-License-Identifier: Apache-2.0
"""The plain loss and a share of the variational bound, as latent diffusion's trainer has it (original_elbo_weight).

w = 1 + elbo_weight (SNR(t-1) / SNR(t) - 1) / 2 on the eps error (Ho et al. 2020, eq. 12; Kingma et al. 2021, eq. 13),
which is beta^2 / (2 posterior_variance alpha (1 - alpha_bar)); the first level has the second's, as there. That code
weighs x0 models with 0.5 sqrt(alpha_bar) / (2 * 1 - alpha_bar), where a slip lost both square and bracket: not so
here, where every model has the bound's own weight, (SNR(t-1) - SNR(t)) / 2 on the error of the denoised latent.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ....registry import check_limits, option
from ...denoiser import Preconditioning, c_out, snr
from .. import WEIGHTS


@WEIGHTS.register("elbo")
@dataclass(frozen=True)
class ELBO:
    """Adds what the likelihood of the data counts, most of it at the lowest levels."""

    families: ClassVar = ("eps", "v", "x0")
    needs_table: ClassVar = True
    remedy: ClassVar = "the bound's weight is of steps between the levels of a table: take one"
    elbo_weight: float = option(1.0, "How much of the bound is added.", min=0.0, max=1e6)

    def __post_init__(self) -> None:
        check_limits(self)

    def __call__(self, sigma: torch.Tensor, denoiser: Preconditioning) -> torch.Tensor:
        """1 + elbo_weight times the bound's weight on the network's error."""
        table = denoiser.sigmas.to(sigma.device)
        step = (table[1:] / table[:-1]).square().sub(1) / 2
        bound = torch.cat([step[:1], step])
        at = torch.searchsorted(table, sigma * (1 - 1e-5)).clamp(max=len(table) - 1)
        per_eps = snr(denoiser, sigma) * c_out(denoiser, sigma, 2).square().flatten()
        return 1 + self.elbo_weight * bound[at] * per_eps
