# SPDX-License-Identifier: Apache-2.0
"""PEFT's ``linear``: the factors are summed, not their products, so that cross terms come in."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ...adapters.pair import Kept, Pair
from .base import MODES, Change, by_factors
from .tasks import weighted


@MODES.register("linear")
@dataclass(frozen=True)
class Linear:
    """A = sum sign(w s) sqrt|w s| A_i, B = sum sqrt|w s| B_i, with s = alpha / rank."""

    takes_any: ClassVar[bool] = False

    def merge(
        self, changes: Sequence[Change], weights: Sequence[float], generator: torch.Generator
    ) -> tuple[Pair, Kept | None]:
        """Sum the factors; see ``Mode``."""
        return by_factors(weighted, changes, weights)
