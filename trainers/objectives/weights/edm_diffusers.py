# SPDX-License-Identifier: Apache-2.0
"""What diffusers' --do_edm_style_training weighs the error of the denoised latent with, for parity.

EDM models (Playground v2.5) have no weight at all, so that low noise levels hardly train: c_out^2 on the network,
at most sd^2. Others have sigma^-2: for eps models that is their plain loss again, for v models 1 / (sigma^2 + 1).
The weight of EDM's paper is `edm`.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ...denoiser import Preconditioning, c_out
from ...facts import facts
from .. import WEIGHTS


@WEIGHTS.register("edm-diffusers")
@dataclass(frozen=True)
class EDMDiffusers:
    """For comparison with trainings by those scripts; edm or one train better."""

    families: ClassVar = ("eps", "v", "edm")
    remedy: ClassVar = "those scripts do not train it: take one or edm"

    def __call__(self, sigma: torch.Tensor, denoiser: Preconditioning) -> torch.Tensor:
        """c_out^2, and over sigma^2 where the model is not EDM."""
        out = c_out(denoiser, sigma, 2).flatten()
        return out.square() if facts(denoiser).family == "edm" else (out / sigma).square()
