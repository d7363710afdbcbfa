# SPDX-License-Identifier: Apache-2.0
"""PEFT's ``magnitude_prune``: the largest values of each are summed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ...adapters.pair import Kept, Pair
from ...registry import check_limits, option
from .base import DENSITY, MODES, Change, Combine, Reranked, by_factors, by_svd
from .tasks import largest, weighted


def _pruned(density: float) -> Combine:
    return lambda tensors, weights: weighted([largest(t, density) for t in tensors], weights)


@MODES.register("magnitude-prune")
@dataclass(frozen=True)
class MagnitudePrune:
    """Pruned factors, summed."""

    takes_any: ClassVar[bool] = False
    density: float = option(0.5, DENSITY, min=0.001, max=1.0)

    def __post_init__(self) -> None:
        check_limits(self)

    def merge(
        self, changes: Sequence[Change], weights: Sequence[float], generator: torch.Generator
    ) -> tuple[Pair, Kept | None]:
        """Merge the factors; see ``Mode``."""
        return by_factors(_pruned(self.density), changes, weights)


@MODES.register("magnitude-prune-svd")
@dataclass(frozen=True)
class MagnitudePruneSvd(Reranked):
    """Pruned changes, summed and cut to a rank."""

    takes_any: ClassVar[bool] = False
    density: float = option(0.5, DENSITY, min=0.001, max=1.0)

    def merge(
        self, changes: Sequence[Change], weights: Sequence[float], generator: torch.Generator
    ) -> tuple[Pair, Kept | None]:
        """Merge dW and cut it; see ``Mode``."""
        return by_svd(_pruned(self.density), changes, weights, self)
