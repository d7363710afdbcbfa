# SPDX-License-Identifier: Apache-2.0
"""TIES (Yadav et al. 2023; arXiv 2306.01708): small values go, signs are elected, those that agree are averaged."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ...adapters.pair import Kept, Pair
from ...registry import check_limits, option
from .base import DENSITY, MODES, SIGNS, Change, Reranked, by_factors, by_svd
from .tasks import disjoint_mean, largest

_SIGNS = "How signs are elected: by the sum of the values, or by their number."


@MODES.register("ties")
@dataclass(frozen=True)
class Ties:
    """TIES of each factor."""

    takes_any: ClassVar[bool] = False
    density: float = option(0.5, DENSITY, min=0.001, max=1.0)
    signs: str = option("total", _SIGNS, choices=SIGNS)

    def __post_init__(self) -> None:
        check_limits(self)

    def merge(
        self, changes: Sequence[Change], weights: Sequence[float], generator: torch.Generator
    ) -> tuple[Pair, Kept | None]:
        """Merge the factors; see ``Mode``."""
        return by_factors(self._combined, changes, weights)

    def _combined(self, tensors: list[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
        return disjoint_mean([largest(t, self.density) for t in tensors], weights, self.signs)


@MODES.register("ties-svd")
@dataclass(frozen=True)
class TiesSvd(Reranked):
    """TIES of dW."""

    takes_any: ClassVar[bool] = False
    density: float = option(0.5, DENSITY, min=0.001, max=1.0)
    signs: str = option("total", _SIGNS, choices=SIGNS)

    def merge(
        self, changes: Sequence[Change], weights: Sequence[float], generator: torch.Generator
    ) -> tuple[Pair, Kept | None]:
        """Merge dW and cut it; see ``Mode``."""
        return by_svd(self._combined, changes, weights, self)

    def _combined(self, tensors: list[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
        return disjoint_mean([largest(t, self.density) for t in tensors], weights, self.signs)
