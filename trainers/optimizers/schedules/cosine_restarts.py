# SPDX-License-Identifier: Apache-2.0
"""Cosine decay with hard restarts (Loshchilov & Hutter 2017, eq. 5; arXiv 1608.03983).

diffusers' ``cosine_with_restarts``.
"""

import math
from dataclasses import dataclass

from ....registry import check_limits, option
from .. import SCHEDULES


@SCHEDULES.register("cosine-restarts")
@dataclass(frozen=True)
class CosineRestarts:
    """From 1 down to ``floor``, ``num_cycles`` times over the plan; the last step is at ``floor``."""

    warmup: int = option(0, "Steps in which the learning rate rises from 0.", min=0)
    num_cycles: int = option(2, "How often it falls from the peak.", min=1, max=1000)
    floor: float = option(0.0, "Fraction of the peak that is left at the end.", min=0.0, max=1.0)

    def __post_init__(self) -> None:
        check_limits(self)

    def factor(self, step: int, total: int) -> float:
        """The factor for ``step`` (from 0) of ``total``."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        progress = (step - self.warmup) / max(1, total - 1 - self.warmup)
        if progress >= 1.0:
            return self.floor
        wave = 0.5 * (1 + math.cos(math.pi * ((self.num_cycles * progress) % 1.0)))
        return self.floor + (1 - self.floor) * wave
