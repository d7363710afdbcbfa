# SPDX-License-Identifier: Apache-2.0
"""DARE (Yu et al. 2023; arXiv 2311.03099): values are dropped by chance, the others made larger to keep the mean."""

from dataclasses import dataclass

import torch

from ...registry import option
from .base import MODES, SIGNS, SIGNS_ELECTED, Combine, Reranked, Sparse
from .tasks import by_chance, disjoint_mean, weighted


@MODES.register("dare-linear")
@dataclass(frozen=True)
class DareLinear(Sparse):
    """The values are summed, of each factor."""

    def combine(self, generator: torch.Generator) -> Combine:
        """Drop by chance, and sum; see ``Sparse``."""
        return lambda tensors, weights: weighted(
            [by_chance(tensor, self.density, generator) for tensor in tensors], weights
        )


@MODES.register("dare-linear-svd")
@dataclass(frozen=True)
class DareLinearSvd(DareLinear, Reranked):
    """The values are summed, of dW."""


@MODES.register("dare-ties")
@dataclass(frozen=True)
class DareTies(Sparse):
    """The values of elected signs are averaged, of each factor."""

    signs: str = option("total", SIGNS_ELECTED, choices=SIGNS)

    def combine(self, generator: torch.Generator) -> Combine:
        """Drop by chance, and average; see ``Sparse``."""
        return lambda tensors, weights: disjoint_mean(
            [by_chance(tensor, self.density, generator) for tensor in tensors], weights, self.signs
        )


@MODES.register("dare-ties-svd")
@dataclass(frozen=True)
class DareTiesSvd(DareTies, Reranked):
    """The values of elected signs are averaged, of dW."""
