# SPDX-License-Identifier: Apache-2.0
"""PEFT's ``magnitude_prune``: the largest values of each are summed."""

from dataclasses import dataclass

import torch

from .base import MODES, Combine, Reranked, Sparse
from .tasks import largest, weighted


@MODES.register("magnitude-prune")
@dataclass(frozen=True)
class MagnitudePrune(Sparse):
    """Pruned factors, summed."""

    def combine(self, generator: torch.Generator) -> Combine:
        """Keep the largest, and sum; see ``Sparse``."""
        return lambda tensors, weights: weighted(
            [largest(tensor, self.density) for tensor in tensors], weights
        )


@MODES.register("magnitude-prune-svd")
@dataclass(frozen=True)
class MagnitudePruneSvd(MagnitudePrune, Reranked):
    """Pruned changes, summed and cut to a rank."""
