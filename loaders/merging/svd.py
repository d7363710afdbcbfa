# SPDX-License-Identifier: Apache-2.0
"""PEFT's ``svd``: the sum of the changes, cut to a rank."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ...adapters.pair import Kept, Pair
from .base import MODES, Change, Reranked, pairs_of
from .cat import joined


@MODES.register("svd")
@dataclass(frozen=True)
class Svd(Reranked):
    """The nearest change of a rank to sum w_i dW_i, found without dW itself."""

    takes_any: ClassVar[bool] = False

    def merge(
        self, changes: Sequence[Change], weights: Sequence[float], generator: torch.Generator
    ) -> tuple[Pair, Kept | None]:
        """Sum and cut; see ``Mode``."""
        pairs = pairs_of(changes)
        most = max(pair.rank for pair in pairs)
        return self.cut(*joined(pairs, weights).singular(), most)
