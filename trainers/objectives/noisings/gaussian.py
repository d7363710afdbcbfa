# SPDX-License-Identifier: Apache-2.0
"""Standard normal noise, independent at every place."""

from dataclasses import dataclass

import torch

from ...random import Draws
from .. import NOISINGS


@NOISINGS.register("gaussian")
@dataclass(frozen=True)
class Gaussian:
    """The noise that the model was made with."""

    def __call__(self, clean: torch.Tensor, draws: Draws) -> torch.Tensor:
        """One draw for each sample."""
        return draws.normal(clean.shape[1:]).to(clean.device)
