# SPDX-License-Identifier: Apache-2.0
"""DARE (Yu et al. 2023; arXiv 2311.03099): values are dropped by chance, the others made larger to keep the mean."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ...adapters.pair import Kept, Pair
from ...registry import check_limits, option
from .base import DENSITY, MODES, SIGNS, Change, Combine, Reranked, by_factors, by_svd
from .tasks import by_chance, disjoint_mean, weighted

_SIGNS = "How signs are elected: by the sum of the values, or by their number."


def _summed(density: float, generator: torch.Generator) -> Combine:
    return lambda tensors, weights: weighted(
        [by_chance(tensor, density, generator) for tensor in tensors], weights
    )


def _elected(density: float, signs: str, generator: torch.Generator) -> Combine:
    return lambda tensors, weights: disjoint_mean(
        [by_chance(tensor, density, generator) for tensor in tensors], weights, signs
    )


@MODES.register("dare-linear")
@dataclass(frozen=True)
class DareLinear:
    """The values are summed, of each factor."""

    takes_any: ClassVar[bool] = False
    density: float = option(0.5, DENSITY, min=0.001, max=1.0)

    def __post_init__(self) -> None:
        check_limits(self)

    def merge(
        self, changes: Sequence[Change], weights: Sequence[float], generator: torch.Generator
    ) -> tuple[Pair, Kept | None]:
        """Merge the factors; see ``Mode``."""
        return by_factors(_summed(self.density, generator), changes, weights)


@MODES.register("dare-linear-svd")
@dataclass(frozen=True)
class DareLinearSvd(Reranked):
    """The values are summed, of dW."""

    takes_any: ClassVar[bool] = False
    density: float = option(0.5, DENSITY, min=0.001, max=1.0)

    def merge(
        self, changes: Sequence[Change], weights: Sequence[float], generator: torch.Generator
    ) -> tuple[Pair, Kept | None]:
        """Merge dW and cut it; see ``Mode``."""
        return by_svd(_summed(self.density, generator), changes, weights, self)


@MODES.register("dare-ties")
@dataclass(frozen=True)
class DareTies:
    """The values of elected signs are averaged, of each factor."""

    takes_any: ClassVar[bool] = False
    density: float = option(0.5, DENSITY, min=0.001, max=1.0)
    signs: str = option("total", _SIGNS, choices=SIGNS)

    def __post_init__(self) -> None:
        check_limits(self)

    def merge(
        self, changes: Sequence[Change], weights: Sequence[float], generator: torch.Generator
    ) -> tuple[Pair, Kept | None]:
        """Merge the factors; see ``Mode``."""
        return by_factors(_elected(self.density, self.signs, generator), changes, weights)


@MODES.register("dare-ties-svd")
@dataclass(frozen=True)
class DareTiesSvd(Reranked):
    """The values of elected signs are averaged, of dW."""

    takes_any: ClassVar[bool] = False
    density: float = option(0.5, DENSITY, min=0.001, max=1.0)
    signs: str = option("total", _SIGNS, choices=SIGNS)

    def merge(
        self, changes: Sequence[Change], weights: Sequence[float], generator: torch.Generator
    ) -> tuple[Pair, Kept | None]:
        """Merge dW and cut it; see ``Mode``."""
        return by_svd(_elected(self.density, self.signs, generator), changes, weights, self)
