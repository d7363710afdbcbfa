# SPDX-License-Identifier: Apache-2.0
"""w = 1: the plain mean squared error of the raw network."""

from dataclasses import dataclass

import torch

from ...denoiser import Preconditioning
from .. import WEIGHTS


@WEIGHTS.register("one")
@dataclass(frozen=True)
class One:
    """Every noise level counts the same."""

    def __call__(self, sigma: torch.Tensor, denoiser: Preconditioning) -> torch.Tensor:
        """Ones."""
        return torch.ones_like(sigma)
