# SPDX-License-Identifier: Apache-2.0
"""Cosine decay to zero after a linear warm-up (Loshchilov & Hutter 2017, eq. 5; arXiv 1608.03983)."""

import math
from dataclasses import dataclass

from ....registry import check_limits, option
from .. import SCHEDULES


@SCHEDULES.register("cosine")
@dataclass(frozen=True)
class Cosine:
    """From 1 at the end of the warm-up to ``floor`` at the last step."""

    warmup: int = option(0, "Steps in which the learning rate rises from 0.", min=0)
    floor: float = option(0.0, "Fraction of the peak that is left at the end.", min=0.0, max=1.0)

    def __post_init__(self) -> None:
        check_limits(self)

    def factor(self, step: int, total: int) -> float:
        """The factor for ``step`` (from 0) of ``total``."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        progress = (step - self.warmup) / max(1, total - 1 - self.warmup)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
