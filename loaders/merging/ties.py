# SPDX-License-Identifier: Apache-2.0
"""TIES (Yadav et al. 2023; arXiv 2306.01708): small values go, signs are elected, those that agree are averaged."""

from dataclasses import dataclass

import torch

from ...registry import option
from .base import MODES, SIGNS, SIGNS_ELECTED, Combine, Reranked, Sparse
from .tasks import disjoint_mean, largest


@MODES.register("ties")
@dataclass(frozen=True)
class Ties(Sparse):
    """TIES of each factor."""

    signs: str = option("total", SIGNS_ELECTED, choices=SIGNS)

    def combine(self, generator: torch.Generator) -> Combine:
        """Keep the largest, and average those of elected signs; see ``Sparse``."""
        return lambda tensors, weights: disjoint_mean(
            [largest(tensor, self.density) for tensor in tensors], weights, self.signs
        )


@MODES.register("ties-svd")
@dataclass(frozen=True)
class TiesSvd(Ties, Reranked):
    """TIES of dW."""
