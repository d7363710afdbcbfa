# SPDX-License-Identifier: Apache-2.0
"""PEFT's ``cat``: the exact sum, of as many ranks as all have together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ...adapters.pair import Kept, Pair
from .base import MODES, Change, pairs_of


@MODES.register("cat")
@dataclass(frozen=True)
class Cat:
    """A = [w_i s_i A_i], B = [B_i]."""

    takes_any: ClassVar[bool] = False

    def merge(
        self, changes: Sequence[Change], weights: Sequence[float], generator: torch.Generator
    ) -> tuple[Pair, Kept | None]:
        """Put the factors side by side; see ``Mode``."""
        return joined(pairs_of(changes), weights), None


def joined(pairs: Sequence[Pair], weights: Sequence[float]) -> Pair:
    """The exact sum of pairs, each times its weight.

    Args:
        pairs: Of any ranks.
        weights: One for each.

    Returns:
        A pair whose alpha is its rank.
    """
    down = torch.cat([p.down * (w * p.scale) for p, w in zip(pairs, weights, strict=True)])
    return Pair(down, torch.cat([pair.up for pair in pairs], dim=1), float(len(down)))
