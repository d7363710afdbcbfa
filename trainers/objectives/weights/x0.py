# SPDX-License-Identifier: Apache-2.0
"""w = c_out^2: the mean squared error of the denoised latent, which ComfyUI's own trainer minimizes."""

from dataclasses import dataclass

import torch

from ...denoiser import Preconditioning, c_out
from .. import WEIGHTS


@WEIGHTS.register("x0")
@dataclass(frozen=True)
class X0:
    """What is seen counts: the most noisy levels, where the picture is a guess, above all."""

    def __call__(self, sigma: torch.Tensor, denoiser: Preconditioning) -> torch.Tensor:
        """c_out^2."""
        return c_out(denoiser, sigma, 2).square().flatten()
