# SPDX-License-Identifier: Apache-2.0
"""Changes of any kinds and ranks, summed as they change the weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ...adapters.pair import Kept, Pair
from ...registry import option
from .base import MODES, Change, Reranked, dense
from .cat import joined


@MODES.register("sum")
@dataclass(frozen=True)
class Sum(Reranked):
    """sum w_i dW_i, exactly where neither a rank nor a share of the energy is asked for."""

    takes_any: ClassVar[bool] = True
    rank: int = option(0, "Rank of the result; 0: as many as it takes.", min=0, max=4096)

    def merge(
        self, changes: Sequence[Change], weights: Sequence[float], generator: torch.Generator
    ) -> tuple[Pair, Kept | None]:
        """Sum, and cut where it is asked for; see ``Mode``."""
        pairs = [change for change in changes if isinstance(change, Pair)]
        if len(pairs) == len(changes):
            whole = joined(pairs, weights)
            wants_all = self.energy == 1 and not 0 < self.rank < whole.rank
            fits = whole.rank <= min(whole.up.shape[0], whole.down.shape[1])
            if wants_all and fits:
                return whole, None
            return self.cut(*whole.singular(), 0)
        summed = sum(w * dense(c) for c, w in zip(changes, weights, strict=True))
        u, s, vh = torch.linalg.svd(torch.as_tensor(summed), full_matrices=False)
        return self.cut(u, s, vh, 0)
