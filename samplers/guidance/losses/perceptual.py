# SPDX-License-Identifier: Apache-2.0
"""A picture is drawn to another one by what an autoencoder's decoder makes of both on its way to the pixels.

Features of the decoder: Berrada et al. 2024, arXiv 2411.04873. Their distance: Zhang et al. 2018, eq. 1, with all
weights w = 1; arXiv 1801.03924.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..parts import LOSSES, Seen

_EPS = 1e-8


@LOSSES.register("perceptual")
@dataclass(frozen=True)
class Perceptual:
    """Square distance of the features of two pictures, each of length 1 at every place."""

    needs: ClassVar[frozenset[str]] = frozenset({"target", "features"})
    power: ClassVar[float] = 1.0

    def __call__(self, seen: Seen) -> torch.Tensor:
        """The sum over the layers of the mean over the places."""
        pairs = list(zip(seen.features, seen.target_features, strict=True))
        if not pairs:
            raise ValueError("perceptual guidance has no features to compare")
        return torch.stack([_distance(a, b) for a, b in pairs]).sum()


def _distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (_unit(a) - _unit(b)).square().sum(dim=1).mean()


def _unit(features: torch.Tensor) -> torch.Tensor:
    return features * (features.square().sum(dim=1, keepdim=True) + _EPS).rsqrt()
